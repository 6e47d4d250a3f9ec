"""What a refusal advises works at the door that refused, in every place that grows a run."""

import pytest
import torch
from stacks import Stack, batches, fit, make_trainer, outputs, train_small
from torch import nn

from lightning_grow import ArchTransfer, GrowableMixin, GrowthSchedule, RefusedGrowth

# float32: rounding of sums of 12 numbers of about 1
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Normed(GrowableMixin, Stack):
    """What the norm reads is read by a sigmoid too, so it cannot be scaled: only its eps can change."""

    transfer_options = {}  # noqa: RUF012

    def __init__(self, hidden=8, state_dim=4):
        super(Stack, self).__init__()
        self.save_hyperparameters()
        self.first, self.norm = nn.Linear(state_dim, hidden), nn.LayerNorm(hidden)
        self.head, self.gate = nn.Linear(hidden, 2), nn.Linear(hidden, 2)
        self.example_input_array = torch.linspace(-1, 1, 12).reshape(3, 4)

    def forward(self, x):
        hidden = self.first(x)
        return self.head(self.norm(hidden)) + self.gate(hidden.sigmoid())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Renamed(Normed):
    """Its body has had another name."""

    def __init__(self, hidden=8, state_dim=4, name="net"):
        super(Stack, self).__init__()
        self.save_hyperparameters()
        setattr(self, name, nn.Sequential(nn.Linear(state_dim, hidden), nn.Tanh(), nn.Linear(hidden, 2)))
        self.example_input_array = torch.linspace(-1, 1, 12).reshape(3, 4)

    def forward(self, x):
        return getattr(self, self.hparams.name)(x)


# what is advised -> (class, the bigger one's hyperparameters, the advice followed)
CASES = {
    r"allow_attribute_changes=True": (Normed, {"hidden": 12}, {"allow_attribute_changes": True}),
    r"pass rename=\{target prefix: source prefix\}": (
        Renamed,
        {"hidden": 12, "name": "body"},
        {"rename": {"body": "net"}},
    ),
}


def resume(cls, path, tmp_path, hparams, options):
    grown = cls(**hparams)
    make_trainer(tmp_path, ArchTransfer(**options)).validate(grown, batches(), ckpt_path=path, verbose=False)
    return grown


def load(cls, path, tmp_path, hparams, options):
    return type(cls.__name__, (cls,), {"transfer_options": options}).load_from_checkpoint(path, **hparams)


@pytest.mark.parametrize("door", [resume, load])
@pytest.mark.parametrize("advice", CASES)
def test_what_a_refusal_advises_works_where_it_is_said(tmp_path, advice, door):
    cls, hparams, options = CASES[advice]
    small, path = train_small(tmp_path, cls)
    with pytest.raises(RefusedGrowth, match=advice):
        door(cls, path, tmp_path, hparams, {})
    grown = door(cls, path, tmp_path, hparams, options)
    torch.testing.assert_close(outputs(grown), outputs(small), **CLOSE)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_stage_may_change_attributes_where_that_is_allowed(tmp_path, allowed):
    small = Normed()
    growing = GrowthSchedule([{"hidden": 12}], at=[4], allow_attribute_changes=allowed)
    if not allowed:
        with pytest.raises(RefusedGrowth, match=r"stage 1: .*allow_attribute_changes=True"):
            fit(small, tmp_path, growing)
        return
    fit(small, tmp_path, growing)
    assert small.first.weight.shape == (12, 4)
    assert small.norm.eps != Normed().norm.eps
