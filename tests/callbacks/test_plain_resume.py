"""What changes nothing costs nothing; and what cannot be compared is said."""

import random
import warnings

import lightning as L
import pytest
import torch
from stacks import Stack, batches, fit, make_trainer, train_small
from torch import nn

import lightning_grow.comparison
from lightning_grow import ArchTransfer, CheckpointError, GrowableMixin, RefusedGrowth, convert_checkpoint


class Counted(Stack):
    """Counts how often its __init__ has run."""

    made = 0

    def __init__(self, hidden_dims=(8,), state_dim=4, activation="relu", learning_rate=1e-2, schedule=None):
        super().__init__(hidden_dims, state_dim, activation, learning_rate, schedule)
        type(self).made += 1


class CountedMixin(GrowableMixin, Counted):
    pass


@pytest.fixture
def traced(monkeypatch):
    """The modules that are traced while a test runs; our own function, wrapped to count."""
    seen, own = [], lightning_grow.comparison.trace
    monkeypatch.setattr(lightning_grow.comparison, "trace", lambda *given: (seen.append(given[0]), own(*given))[1])
    return seen


@pytest.mark.parametrize("cls", [Counted, CountedMixin])
def test_where_only_the_learning_rate_differs_nothing_is_built(tmp_path, cls, traced):
    _, path = train_small(tmp_path, cls, ArchTransfer())
    target = cls(learning_rate=1e-3)
    cls.made, before = 0, len(traced)
    with warnings.catch_warnings(record=True) as said:
        fit(target, tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    assert cls.made == 0
    assert traced[before:] == [target]  # once, to compare it with what the file says
    assert not [item for item in said if "plain resume" in str(item.message)]


def test_where_nothing_differs_nothing_is_traced(tmp_path, traced):
    _, path = train_small(tmp_path, Counted, ArchTransfer())
    before = len(traced)
    fit(Counted(), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    assert len(traced) == before


class Choosy(Stack):
    """Goes by what its weights make of the input, which no trace can show; and draws from Python's random."""

    def forward(self, x):
        random.random()
        hidden = self.net(x)
        return hidden if bool(hidden.sum() > 1e9) else hidden * 2


@pytest.mark.parametrize("cls", [Counted, Choosy])
def test_a_run_is_traced_once_for_all_its_checkpoints(tmp_path, cls, traced):
    trainer = fit(cls(), tmp_path, ArchTransfer(), max_epochs=1)
    before = random.getstate()
    for number in range(3):
        trainer.save_checkpoint(tmp_path / f"{number}.ckpt")
    assert traced == [trainer.lightning_module]
    assert random.getstate() == before  # the run goes on as if it had not been saved
    records = [torch.load(tmp_path / f"{number}.ckpt", weights_only=True)["lightning_grow"] for number in range(3)]
    assert ["tape" in record for record in records] == [cls is Counted] * 3


@pytest.mark.parametrize("callbacks", [(), (ArchTransfer(),)], ids=["Lightning's own file", "our record"])
def test_another_activation_is_refused_whoever_wrote_the_file(tmp_path, callbacks):
    _, path = train_small(tmp_path, Stack, *callbacks)
    with pytest.raises(RefusedGrowth, match=r"aten\.tanh"):
        fit(Stack(activation="tanh"), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)


def test_a_grown_file_records_what_it_computes_now(tmp_path):
    _, path = train_small(tmp_path, Counted, ArchTransfer())
    convert_checkpoint(path, Counted([16]), tmp_path / "big.ckpt")
    Counted.made = 0
    fit(
        target := Counted([16], learning_rate=1e-3),
        tmp_path,
        ArchTransfer(),
        ckpt_path=tmp_path / "big.ckpt",
        max_epochs=3,
    )
    assert Counted.made == 1  # the target itself
    assert target.hparams.learning_rate == 1e-3


class Gone(L.LightningModule):
    """Its __init__ needs something that is not there on the day of the resume."""

    ready = True

    def __init__(self, rate=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(4, 2)
        if not type(self).ready:
            raise OSError("the server is away")

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_what_cannot_be_compared_is_said_and_resumes(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(Gone(), batches())
    trainer.save_checkpoint(path := tmp_path / "old.ckpt")
    target = Gone(rate=0.2)
    monkeypatch.setattr(Gone, "ready", False)
    with pytest.warns(UserWarning, match=r"(?s)plain resume.*\(rate\).*the server is away"):
        make_trainer(tmp_path, ArchTransfer(), max_epochs=2).fit(target, batches(), ckpt_path=path)
    assert target.trainer.global_step == 16


@pytest.mark.parametrize("width", [8, 16])
def test_a_record_of_a_later_version_is_refused_by_name(tmp_path, width):
    _, path = train_small(tmp_path, Stack, ArchTransfer())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_grow"]["version"] = 7
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"a later lightning_grow: its record has version 7.*reads up to 1"):
        fit(Stack([width]), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
