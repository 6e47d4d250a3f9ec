"""Growing inside one fit, on real Trainers and files."""

import argparse
import copy
import dataclasses
import enum
import json
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf
from stacks import GrowableStack, Stack, batches, fit, make_trainer, outputs, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, TensorDataset

from lightning_grow import ArchTransfer, GrowthSchedule, RefusedGrowth
from lightning_grow.callbacks.growth_schedule import override

STAGES = [{"hidden_dims": [12]}, {"hidden_dims": [16]}]
CLOSE = {"rtol": 0, "atol": 1e-6}  # float32 outputs of about 1


def make(cls=Stack, **hparams):
    L.seed_everything(0, verbose=False)
    return cls(**hparams)


class Outputs(L.Callback):
    """The module's outputs, width and optimizer after every batch; put it before and after the schedule."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        width = pl_module.net[0].out_features
        shapes = [tuple(parameter.shape) for parameter in trainer.optimizers[0].param_groups[0]["params"]]
        self.seen[trainer.global_step] = (width, outputs(pl_module), shapes[0], pl_module.net[0].weight.shape[0])


@pytest.mark.parametrize("cls", [Stack, GrowableStack])
@pytest.mark.parametrize("optimizer", ["reset", "transfer", "asymmetric"])
def test_a_run_grows_at_its_steps_and_keeps_what_it_computes(tmp_path, cls, optimizer):
    before, after, module = Outputs(), Outputs(), make(cls)
    schedule = GrowthSchedule(STAGES, at=[8, 20], optimizer=optimizer)
    trainer = fit(module, tmp_path, before, schedule, after, max_epochs=4)
    assert trainer.global_step == 32
    widths = {step: width for step, (width, *_) in after.seen.items()}
    assert [step for step in widths if widths[step] != widths.get(step - 1, 8)] == [8, 20]
    assert module.net[0].out_features == 16
    assert module.hparams.hidden_dims == [16]
    for step in (8, 20):
        torch.testing.assert_close(after.seen[step][1], before.seen[step][1], **CLOSE)
        assert after.seen[step][2] == (widths[step], 4)
    reports = sorted(tmp_path.glob("growth_report*.json"))
    assert len(reports) == 2
    assert all(json.loads(path.read_text())["function_preserving"] for path in reports)


def test_new_units_learn_after_each_stage(tmp_path):
    module = make()
    fit(module, tmp_path, GrowthSchedule(STAGES, at=[8, 16], num_warmup_steps=0), max_epochs=4)
    assert module.net[2].weight[:, 8:].abs().min() > 0


class Rounding(Stack):
    """Has something that no state dict carries, so that a buffer must be converted too."""

    def __init__(self, hidden_dims=(8,), **hparams):
        super().__init__(hidden_dims, **hparams)
        self.register_buffer("mixing", torch.linspace(-1, 1, 16).reshape(4, 4), persistent=False)

    def forward(self, x):
        return self.net(x @ self.mixing)


class Bits(L.Callback):
    """The weights, and the outputs for example inputs of the module's own type."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 8:
            inputs = trainer.precision_plugin.convert_input(pl_module.example_input_array)
            with torch.no_grad():
                self.seen = (
                    pl_module(inputs),
                    pl_module.net[0].weight[:8].clone(),
                    pl_module.net[2].weight[:, :8].clone(),
                )


@pytest.mark.parametrize(
    "options", [{}, {"verify": False}, {"example_inputs": (torch.ones(2, 4),)}, {"optimizer": "transfer"}]
)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_stage_keeps_every_bit_of_the_weights_in_any_precision(tmp_path, precision, options):
    before, after, module = Bits(), Bits(), make(Rounding)
    schedule = GrowthSchedule(STAGES, at=[8, 12], **options)
    fit(module, tmp_path, before, schedule, after, precision=precision, max_epochs=2)
    assert module.net[0].out_features == 16
    assert all(map(torch.equal, before.seen[1:], after.seen[1:]))
    assert after.seen[0].dtype == module.dtype
    tolerance = 10 * torch.finfo(module.dtype).eps  # sums of 8 units, of about 1, in another order
    torch.testing.assert_close(after.seen[0], before.seen[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_file_of_a_later_stage_is_resumed_in_any_precision(tmp_path, precision):
    def run(module, max_epochs, ckpt_path=None):
        schedule = GrowthSchedule(STAGES, at=[4, 12])
        return fit(module, tmp_path, schedule, ckpt_path=ckpt_path, precision=precision, max_epochs=max_epochs)

    straight = make(Rounding)
    run(straight, 3)
    run(make(Rounding), 1).save_checkpoint(tmp_path / "stage.ckpt")
    resumed = Rounding()
    run(resumed, 3, tmp_path / "stage.ckpt")
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(straight).items())


@pytest.mark.parametrize("saved_at", [1, 2])
@pytest.mark.parametrize("optimizer", ["reset", "transfer", "asymmetric"])
def test_straight_equals_saved_in_any_stage_and_resumed(tmp_path, optimizer, saved_at):
    def schedule():
        return GrowthSchedule(STAGES, at=[4, 12], optimizer=optimizer, num_warmup_steps=6)

    straight = make()
    fit(straight, tmp_path, schedule(), max_epochs=4)
    trainer = fit(make(), tmp_path, schedule(), max_epochs=saved_at)
    trainer.save_checkpoint(tmp_path / "stage.ckpt")
    resumed = Stack()  # as configured: the first stage
    fit(resumed, tmp_path, schedule(), ckpt_path=tmp_path / "stage.ckpt", max_epochs=4)
    assert resumed.net[0].out_features == 16
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(resumed)[name], tensor), name


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_a_file_of_a_later_stage_is_evaluated_by_the_configured_module(tmp_path, method):
    trained = make()
    fit(trained, tmp_path, GrowthSchedule(STAGES, at=[4, 99]), max_epochs=1).save_checkpoint(tmp_path / "stage.ckpt")
    module = Stack()
    trainer = make_trainer(tmp_path, GrowthSchedule(STAGES, at=[4, 99]))
    getattr(trainer, method)(module, batches(), ckpt_path=tmp_path / "stage.ckpt")
    torch.testing.assert_close(outputs(module), outputs(trained), **CLOSE)


def test_a_file_of_an_early_stage_grows_into_a_later_one(tmp_path):
    trained = make()
    fit(trained, tmp_path, GrowthSchedule(STAGES, at=[4, 99]), max_epochs=1).save_checkpoint(tmp_path / "stage.ckpt")
    module = Stack(hidden_dims=[16])
    make_trainer(tmp_path, ArchTransfer()).validate(module, batches(), ckpt_path=tmp_path / "stage.ckpt")
    torch.testing.assert_close(outputs(module), outputs(trained), **CLOSE)


def test_a_second_fit_goes_on_from_the_last_stage(tmp_path):
    module, schedule = make(), GrowthSchedule(STAGES, at=[4, 8])
    fit(module, tmp_path, schedule, max_epochs=2)
    fit(module, tmp_path, schedule, max_epochs=2)
    assert module.net[0].out_features == 16


def test_a_plateau_begins_the_next_stage_and_survives_a_resume(tmp_path):
    def schedule():
        return GrowthSchedule(STAGES, on_plateau={"monitor": "val_loss", "patience": 2, "min_delta": 1e9})

    module = make()
    fit(module, tmp_path, schedule(), max_epochs=7)
    assert module.net[0].out_features == 16  # epoch 1 is better than nothing; stages after 3 and after 6
    trainer = fit(make(), tmp_path, schedule(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "waiting.ckpt")
    resumed = Stack()
    fit(resumed, tmp_path, schedule(), ckpt_path=tmp_path / "waiting.ckpt", max_epochs=3)
    assert resumed.net[0].out_features == 12


class TrainLogged(Stack):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.trainer.training:
            self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss


def wait(monitor="val_loss", patience=2, stages=STAGES):
    """A schedule whose monitored value never counts as better than the first."""
    return GrowthSchedule(stages, on_plateau={"monitor": monitor, "patience": patience, "min_delta": 1e9})


def grown_after(tmp_path, schedule, cls=Stack, **arguments):
    """The epochs (of 8 steps) after which the module was wider."""
    after = Outputs()
    fit(make(cls), tmp_path, schedule, after, **arguments)
    widths = [width for _, (width, *_) in sorted(after.seen.items())]
    return [step // 8 - 1 for step in range(1, len(widths)) if widths[step] != widths[step - 1]]


@pytest.mark.parametrize(
    ("monitor", "every", "epochs"), [("val_loss", 1, [2, 5]), ("val_loss", 2, [5]), ("train_loss", 2, [2, 5])]
)
def test_only_epochs_with_a_new_value_are_counted(tmp_path, monitor, every, epochs):
    found = grown_after(tmp_path, wait(monitor), TrainLogged, max_epochs=8, check_val_every_n_epoch=every)
    assert found == epochs


def test_a_plateau_of_one_fit_is_none_of_the_next(tmp_path):
    schedule = wait()
    assert [grown_after(tmp_path, schedule, max_epochs=4) for _ in range(2)] == [[2], [2]]
    assert [grown_after(tmp_path, schedule, max_epochs=2) for _ in range(2)] == [[], []]


SAVED = {
    "the end of an epoch": ({"save_on_train_epoch_end": True}, {}),
    "the end of a validation": ({"save_on_train_epoch_end": False}, {}),
    "validations within an epoch": ({"save_on_train_epoch_end": False}, {"val_check_interval": 0.5}),
    "validations every other epoch": ({"save_on_train_epoch_end": False}, {"check_val_every_n_epoch": 2}),
}


def same_batches():
    """Eight times the same, for Lightning's resume within an epoch begins with its first batch."""
    inputs, targets = next(iter(batches()))
    return DataLoader(TensorDataset(inputs.repeat(8, 1), targets.repeat(8, 1)), batch_size=4)


@pytest.mark.parametrize("case", SAVED)
def test_a_plateau_goes_on_from_a_file_of(tmp_path, case):
    saving, arguments = SAVED[case]

    def run(module, *callbacks, ckpt_path=None):
        trainer = make_trainer(
            tmp_path, wait(patience=1), *callbacks, enable_checkpointing=bool(callbacks), max_epochs=4, **arguments
        )
        trainer.fit(module, same_batches(), same_batches(), ckpt_path=ckpt_path)
        return weights(module)

    straight = run(make(), ModelCheckpoint(tmp_path, filename="{step}", monitor="val_loss", save_top_k=-1, **saving))
    files = sorted(tmp_path.glob("*.ckpt"))
    assert files
    for file in files:
        resumed = run(Stack(), ckpt_path=file)
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items()), file


def test_a_resume_that_leaves_a_validation_out_says_so(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8)
    fit(make(), tmp_path, wait(), saving, enable_checkpointing=True, max_epochs=1)
    with pytest.warns(UserWarning, match="has no 'val_loss' of this epoch and does not count it"):
        fit(Stack(), tmp_path, wait(), ckpt_path=tmp_path / "step=8.ckpt", max_epochs=2)


def test_an_average_grows_at_each_stage_and_in_a_resume(tmp_path):
    def callbacks():
        return GrowthSchedule(STAGES, at=[4, 12]), EMAWeightAveraging(decay=0.9)

    # saved inside fit: when it ends, the average becomes the model
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    straight = make()
    fit(straight, tmp_path, *callbacks(), saving, enable_checkpointing=True, max_epochs=3)
    resumed = Stack()
    fit(resumed, tmp_path, *callbacks(), ckpt_path=tmp_path / "epoch=0.ckpt", max_epochs=3)
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def test_the_average_computes_what_it_did_at_each_stage(tmp_path):
    average, found = EMAWeightAveraging(decay=0.9), {}

    class Look(L.Callback):
        def __init__(self, when):
            self.when = when

        @torch.no_grad()
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step in (4, 12):
                module = average._average_model.module
                found[trainer.global_step, self.when] = module(module.example_input_array)

    fit(make(), tmp_path, average, Look("before"), GrowthSchedule(STAGES, at=[4, 12]), Look("after"), max_epochs=2)
    for step in (4, 12):
        torch.testing.assert_close(found[step, "after"], found[step, "before"], **CLOSE)


class Held(Stack):
    """Keeps more of its architecture than layers."""

    def __init__(self, hidden_dims=(8,), **hparams):
        super().__init__(hidden_dims, **hparams)
        self.width, self.scale = hidden_dims[0], lambda x: x / hidden_dims[0] ** 0.5
        self.groups = [{"params": list(self.net.parameters())}]
        self.order = list(self.net)

    def forward(self, x):
        for layer in self.order:
            x = layer(x)
        return self.scale(x)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.groups, lr=1e-2)


def test_what_a_module_keeps_beside_its_layers_grows_too(tmp_path):
    before, after, module = Outputs(), Outputs(), make(Held)
    schedule = GrowthSchedule(STAGES, at=[8, 20], num_warmup_steps=0)
    fit(module, tmp_path, before, schedule, after, max_epochs=4)
    torch.testing.assert_close(module.scale(torch.ones(())), torch.tensor(0.25))
    assert module.net[2].weight[:, 8:].abs().min() > 0  # so the optimizer has the new ones
    for step in (8, 20):
        torch.testing.assert_close(after.seen[step][1], before.seen[step][1], **CLOSE)


class State(Stack):
    """Gathers, outside of any state dict, one value for every unit."""

    def __init__(self, hidden_dims=(8,), **hparams):
        super().__init__(hidden_dims, **hparams)
        self.mean = torch.zeros(hidden_dims[-1])

    def on_train_batch_end(self, *_):
        self.mean = self.mean + 1


class Opaque:
    __slots__ = ("width",)

    def __init__(self, width):
        self.width = width


class Opened(Stack):
    """Knows its width by an object that nobody can look into."""

    def __init__(self, hidden_dims=(8,), **hparams):
        super().__init__(hidden_dims, **hparams)
        self.known = Opaque(hidden_dims[-1])

    def forward(self, x):
        return self.net(x) / self.known.width


class Both(Opened):
    """Counts in the dict that also holds its width."""

    def __init__(self, hidden_dims=(8,), **hparams):
        super().__init__(hidden_dims, **hparams)
        self.known = {"width": hidden_dims[-1], "steps": 0}

    def forward(self, x):
        return self.net(x) / self.known["width"]

    def on_train_batch_start(self, *_):
        self.known["steps"] += 1


class Shaping(Opened):
    def forward(self, x):
        return self.net[2](self.net[:2](x).reshape(-1, self.known.width))


class Frozen(Stack):
    """Hands its optimizer what it had when its layers were made."""

    def __init__(self, hidden_dims=(8,), **hparams):
        super().__init__(hidden_dims, **hparams)
        self.known = {*self.net.parameters()}

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.known], lr=1e-2)


class Partly(Stack):
    """Trains the first stage only."""

    def configure_optimizers(self):
        small = self.net[0].out_features == 8
        return torch.optim.AdamW(self.parameters() if small else self.net[2].parameters(), lr=1e-2)


class Adding(Stack):
    """Adds a group to its optimizer in the run."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net[0].parameters(), lr=1e-2)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.trainer.optimizers[0].add_param_group({"params": [*self.net[2].parameters()]})


LATE = {
    "state of the units": (State, r"stage 1: mean: .*in no state dict.*register_buffer"),
    "an attribute it cannot see": (Opened, "stage 1: Opened computes something else .* of its output scale"),
    "what it shares with the run": (Both, r"stage 1: Both computes something else .*it may be known\)"),
    "a forward that fails": (Shaping, "stage 1: Shaping computes something else .* forward fails, RuntimeError"),
    "dead parameters": (Frozen, r"stage 1: optimizer 0 \(AdamW\) holds parameters that .* no longer has \(net\."),
    "untrained parameters": (Partly, r"stage 1: no optimizer trains net\.0\.bias, net\.0\.weight"),
    "a group of the run": (Adding, "stage 1: optimizer 0 has 2 parameter groups, but 1 as"),
}


class Keep(L.Callback):
    """What there is when an error comes up, and what there was before the batch in which it did."""

    def look(self, trainer, module):
        optimizer = trainer.optimizers[0]
        state = [item for values in optimizer.state.values() for item in values.values()]
        held = [*map(id, (optimizer, trainer.strategy.model, *module.modules(), *module.parameters()))]
        return held, dict(module.hparams), [*weights(module).values(), *state], getattr(module, "known", None)

    def on_train_batch_end(self, trainer, pl_module, *_):
        held, hparams, tensors, known = self.look(trainer, pl_module)
        self.before = held, hparams, [tensor.clone() for tensor in tensors], known

    def on_exception(self, trainer, pl_module, exception):
        self.after = self.look(trainer, pl_module)


@pytest.mark.parametrize("optimizer", ["reset", "transfer"])
@pytest.mark.parametrize("case", LATE)
def test_what_shows_only_at_the_stage_is_refused_and_nothing_has_changed(tmp_path, case, optimizer):
    cls, words = LATE[case]
    keep, schedule = Keep(), GrowthSchedule(STAGES[:1], at=[12], optimizer=optimizer)
    with pytest.raises(RefusedGrowth, match=words):
        fit(make(cls), tmp_path, keep, schedule, max_epochs=3)
    (*before, tensors, known), (*after, now, known_now) = keep.before, keep.after
    assert before == after
    assert known is known_now
    assert all(map(torch.equal, now, tensors))
    assert not [*tmp_path.glob("growth_report*")]


def test_the_check_of_the_living_module_leaves_no_trace(tmp_path):
    class Counting(Stack):
        def __init__(self, hidden_dims=(8,), **hparams):
            super().__init__(hidden_dims, **hparams)
            self.calls, self.shapes = 0, {}

        def forward(self, x):
            self.calls += 1
            self.shapes[x.shape] = self.calls
            return self.net(x)

    module = make(Counting)
    fit(module, tmp_path, GrowthSchedule(STAGES, at=[2, 5]), max_epochs=1, limit_val_batches=0)
    assert (module.calls, [*module.shapes]) == (8, [(4, 4)])


def test_accumulated_gradients_are_not_cut_in_two(tmp_path):
    after = Outputs()
    fit(make(), tmp_path, GrowthSchedule(STAGES[:1], at=[0]), after, accumulate_grad_batches=4, max_epochs=1)
    assert {step: width for step, (width, *_) in after.seen.items()} == {0: 8, 1: 12, 2: 12}


def test_the_schedule_of_the_learning_rate_goes_on_through_a_kept_growth(tmp_path):
    rates = {}
    for name, callbacks in {"plain": [], "staged": [GrowthSchedule(STAGES, at=[4, 12], optimizer="transfer")]}.items():
        logger = CSVLogger(tmp_path, name=name)
        module = make(schedule="cosine")
        fit(module, tmp_path, *callbacks, LearningRateMonitor("step"), logger=logger, log_every_n_steps=1, max_epochs=3)
        lines = (tmp_path / name / "version_0" / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("lr-AdamW")
        rates[name] = [line.split(",")[column] for line in lines[1:] if line.split(",")[column]]
    assert rates["plain"] == rates["staged"]


REFUSED = {
    "shrinks": (Stack, {"stages": [{"hidden_dims": [4]}], "at": [4]}, "stage 1: .*8 units, target has 4"),
    "changes nothing": (Stack, {"stages": [{"learning_rate": 1.0}], "at": [4]}, "stage 1: .*changes no shape"),
    "second shrinks": (Stack, {"stages": [*STAGES[:1], {"hidden_dims": [9]}], "at": [4, 8]}, "stage 2: "),
    "not logged": (Stack, {"stages": STAGES, "on_plateau": {"monitor": "loss"}}, "monitors 'loss', .*val_loss"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_before_it_costs_anything(tmp_path, case):
    cls, arguments, words = REFUSED[case]
    module = make(cls)
    before = weights(module)
    with pytest.raises(RefusedGrowth, match=words):
        fit(module, tmp_path, GrowthSchedule(**arguments), max_epochs=1)
    if case != "not logged":  # that is known after the first epoch only
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(module).items())


def test_a_module_without_hyperparameters_is_told_what_to_do(tmp_path):
    class Plain(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 2)
            self.example_input_array = torch.ones(1, 4)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(RefusedGrowth, match=r"keeps no hyperparameters.*save_hyperparameters"):
        make_trainer(tmp_path, GrowthSchedule(STAGES, at=[4, 8])).fit(Plain(), batches())


def test_stochastic_weight_averaging_is_refused(tmp_path):
    with pytest.raises(RefusedGrowth, match="StochasticWeightAveraging both own"):
        fit(make(), tmp_path, StochasticWeightAveraging(1e-3), GrowthSchedule(STAGES, at=[4, 8]))


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook"])
def test_processes_that_the_trainer_spawns_are_refused(tmp_path, strategy):
    with pytest.raises(ProcessRaisedException, match=r'RefusedGrowth: .* Use strategy="ddp"'):
        fit(make(), tmp_path, GrowthSchedule(STAGES, at=[4, 8]), strategy=strategy, devices=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "one of at .* and on_plateau"),
        ({"at": [1, 2], "on_plateau": {"monitor": "x"}}, "one of at .* and on_plateau"),
        ({"at": [1]}, "one step for each of the 2 stages"),
        ({"at": [2, 1]}, "ascending"),
        ({"on_plateau": {"monitor": "x", "mode": "up"}}, "'min' or 'max'"),
        ({"at": [1, 2], "optimizer": "rest"}, "optimizer"),
    ],
)
def test_wrong_settings_are_said_at_once(arguments, words):
    with pytest.raises(ValueError, match=words):
        GrowthSchedule(STAGES, **arguments)


@pytest.mark.parametrize("value", [object(), torch.nn.ReLU(), [print]])
def test_a_stage_that_could_not_be_told_is_said_at_once(value):
    with pytest.raises(ValueError, match="stage 1 to set 'cfg' to something that a reached stage can be told by"):
        GrowthSchedule([{"cfg": value}], at=[1])


class Width(enum.IntEnum):
    SMALL, LARGE = 8, 12


class Kind(enum.Enum):
    SMALL, LARGE = "small", "large"


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    rate: float = 1e-2


class Configured(Stack):
    """Takes all in one argument, whatever gives its width."""

    def __init__(self, cfg, read=None):
        L.LightningModule.__init__(self)
        self.save_hyperparameters(ignore=["read"])
        self.width = read(cfg)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, self.width), torch.nn.ReLU(), torch.nn.Linear(self.width, 2))
        self.example_input_array = torch.linspace(-1, 1, 12).reshape(3, 4)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Direct(Configured):
    def __init__(self, cfg):
        super().__init__(cfg, int)


class ByName(Configured):
    def __init__(self, cfg):
        super().__init__(cfg, lambda kind: Width[kind.name].value)


class ByAttribute(Configured):
    def __init__(self, cfg):
        super().__init__(cfg, lambda cfg: cfg.width)


class ByKey(Configured):
    def __init__(self, cfg):
        super().__init__(cfg, lambda cfg: cfg["model"].width)


KINDS = {
    "an integer enum": (Direct, Width.SMALL, {"cfg": Width.LARGE}),
    "an enum": (ByName, Kind.SMALL, {"cfg": Kind.LARGE}),
    "a number of NumPy": (Direct, 8, {"cfg": np.int64(12)}),
    "a dataclass": (ByAttribute, Config(8), {"cfg": Config(12)}),
    "a field of a dataclass": (ByAttribute, Config(8), {"cfg.width": 12}),
    "a name in a namespace": (ByAttribute, argparse.Namespace(width=8, rate=1), {"cfg.width": 12}),
    "a namespace in a dict": (ByKey, {"model": SimpleNamespace(width=8)}, {"cfg.model.width": 12}),
    "a key of an OmegaConf": (ByAttribute, OmegaConf.create({"width": 8, "rate": "${.width}"}), {"cfg.width": 12}),
    "a whole OmegaConf": (ByAttribute, OmegaConf.create({"width": 8}), {"cfg": OmegaConf.create({"width": 12})}),
}


@pytest.mark.parametrize("case", KINDS)
def test_hyperparameters_of_any_kind_stay_of_that_kind(tmp_path, case):
    cls, small, stage = KINDS[case]

    def run(max_epochs, ckpt_path=None):
        module, trainer = (
            make(cls, cfg=copy.deepcopy(small)),
            make_trainer(tmp_path, GrowthSchedule([stage], at=[8]), max_epochs=max_epochs),
        )
        trainer.fit(module, batches(), batches(), ckpt_path=ckpt_path, weights_only=False)
        return module, trainer

    straight, trainer = run(2)
    assert (straight.width, straight.net[0].out_features) == (12, 12)
    assert type(straight.hparams.cfg) is type(stage.get("cfg", small) if "NumPy" not in case else 1)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    resumed, _ = run(3, tmp_path / "grown.ckpt")
    assert resumed.net[0].out_features == 12
    assert type(resumed.hparams.cfg) is type(straight.hparams.cfg)


@pytest.mark.parametrize("kind", [OmegaConf.create, lambda values: argparse.Namespace(**values)])
def test_a_file_whose_hyperparameters_are_one_object_grows(tmp_path, kind):
    small, large = (ByAttribute(kind({"width": width})) for width in (8, 12))
    trainer = make_trainer(tmp_path, GrowthSchedule([{"cfg.width": 10}], at=[4]), max_epochs=1)
    trainer.fit(small, batches(), batches())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    trainer = make_trainer(tmp_path, ArchTransfer())
    trainer.validate(large, batches(), ckpt_path=tmp_path / "small.ckpt", weights_only=False)
    torch.testing.assert_close(outputs(large), outputs(small), **CLOSE)


class Late(Stack):
    """Makes its layers in configure_model."""

    def __init__(self, width=8):
        super(Stack, self).__init__()
        self.save_hyperparameters()
        self.net = None
        self.example_input_array = torch.linspace(-1, 1, 12).reshape(3, 4)

    def configure_model(self):
        if self.net is None:
            self.net = torch.nn.Sequential(
                torch.nn.Linear(4, self.hparams.width), torch.nn.Linear(self.hparams.width, 2)
            )

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_layers_made_in_configure_model_grow(tmp_path):
    before, after, module = Outputs(), Outputs(), make(Late)
    schedule = GrowthSchedule([{"width": 12}], at=[4])
    make_trainer(tmp_path, before, schedule, after, max_epochs=1).fit(module, batches(), batches())
    assert module.net[0].out_features == 12
    torch.testing.assert_close(after.seen[4][1], before.seen[4][1], **CLOSE)


class Needy(Late):
    def __init__(self, loss, width=8):
        super(Stack, self).__init__()
        self.save_hyperparameters(ignore=["loss"])
        self.net, self.example_input_array = torch.nn.Linear(4, 2), torch.ones(3, 4)


def test_a_module_that_its_hyperparameters_cannot_build_is_told_what_to_do(tmp_path):
    with pytest.raises(RefusedGrowth, match=r"Needy cannot be built .*\['width'\].*argument: 'loss'.*source="):
        make_trainer(tmp_path, GrowthSchedule([{"width": 12}], at=[4])).fit(
            Needy(torch.nn.MSELoss()), batches(), batches()
        )


def test_a_name_that_reaches_into_a_number_is_refused():
    with pytest.raises(RefusedGrowth, match=r"'width\.x' reaches into 'width', which is of the type int.*as a whole"):
        override({"width": 8}, {"width.x": 1})


def test_nested_hyperparameters_are_reached_by_dots():
    assert override({"a": {"b": 1, "c": 2}}, {"a.b": 3, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}


DISTRIBUTED = """
    import sys

    import lightning as L
    import torch

    here, folder, max_epochs, ckpt_path, out = sys.argv[1:]
    sys.path.insert(0, here)
    from stacks import Stack, batches

    from lightning_grow import GrowthSchedule

    class Sums(L.Callback):
        def on_train_end(self, trainer, pl_module):
            own = torch.stack([tensor.double().sum() for tensor in pl_module.state_dict().values()])
            every = pl_module.all_gather(own)
            assert torch.equal(every[0], every[1]), every

    if __name__ == "__main__":
        L.seed_everything(0)
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        schedule = GrowthSchedule([{"hidden_dims": [12]}, {"hidden_dims": [16]}], at=[4, 12], num_warmup_steps=6)
        trainer = L.Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=int(max_epochs), callbacks=[schedule, Sums()],
            default_root_dir=folder, limit_val_batches=0, **quiet,
        )
        trainer.fit(Stack(), batches(), ckpt_path=ckpt_path or None)
        trainer.save_checkpoint(out)
"""


def test_two_processes_grow_alike_and_go_on_from_any_stage(tmp_path, request):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(DISTRIBUTED))

    def train(max_epochs, ckpt_path, out):
        command = [sys.executable, script, request.path.parents[1], tmp_path, max_epochs, ckpt_path, tmp_path / out]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(tmp_path / out)

    straight = train(4, "", "straight.ckpt")  # 4 steps an epoch in each of two processes
    middle = train(2, "", "middle.ckpt")
    resumed = train(4, tmp_path / "middle.ckpt", "resumed.ckpt")
    assert (middle["hyper_parameters"]["hidden_dims"], middle["global_step"]) == ([12], 8)
    assert (resumed["hyper_parameters"]["hidden_dims"], resumed["global_step"]) == ([16], 16)
    assert all(torch.equal(tensor, straight["state_dict"][name]) for name, tensor in resumed["state_dict"].items())


class Steps(L.Callback):
    """The longest step of any weight in every optimizer step, in learning rates."""

    def __init__(self):
        self.before, self.longest = {}, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}
        moves = [(now[name] - old).abs().max() for name, old in self.before.items() if old.shape == now[name].shape]
        self.longest.append(float(max(moves, default=torch.zeros(()))) / trainer.optimizers[0].param_groups[0]["lr"])
        self.before = now


def test_a_stage_in_the_warmup_of_the_last_one_lets_no_moments_overshoot(tmp_path):
    L.seed_everything(0, verbose=False)
    steps = Steps()
    schedule = GrowthSchedule(
        [{"hidden_dims": [12]}, {"hidden_dims": [16]}], at=[400, 408], optimizer="asymmetric", num_warmup_steps=100
    )
    fit(Stack(), tmp_path, schedule, steps, max_epochs=54)
    # A fresh Adam's steps are about one rate long; with moments of eight steps under a count of 400 they are 4.
    assert max(steps.longest[409:]) < 1.5


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_an_average_of_another_type_than_the_module_keeps_every_bit(tmp_path, precision):
    class Before(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            average = trainer.callbacks[0]._average_model.module
            if average.net[0].weight.shape[0] == 8:
                self.old = average.net[0].weight.detach().clone()
            elif not hasattr(self, "new"):
                self.new = average.net[0].weight.detach().clone()

    L.seed_everything(0, verbose=False)
    seen, average = Before(), EMAWeightAveraging(decay=0.9, update_every_n_steps=3)
    schedule = GrowthSchedule([{"hidden_dims": [12]}], at=[7], example_inputs=(torch.randn(3, 4),))
    fit(Stack(), tmp_path, average, seen, schedule, max_epochs=2, precision=precision)
    assert seen.new.dtype == seen.old.dtype
    assert torch.equal(seen.new[:8], seen.old)


def test_a_refused_file_of_a_later_stage_leaves_the_module_as_it_was(tmp_path):
    L.seed_everything(0, verbose=False)
    schedule = GrowthSchedule([{"hidden_dims": [12]}], at=[8])
    fit(Stack(), tmp_path, schedule, max_epochs=2).save_checkpoint(tmp_path / "late.ckpt")
    checkpoint = torch.load(tmp_path / "late.ckpt")
    checkpoint["state_dict"]["net.2.bias"] = torch.zeros(3)
    torch.save(checkpoint, tmp_path / "late.ckpt")
    module = Stack()
    weight, before = module.net[0].weight, weights(module)
    with pytest.raises(RefusedGrowth):
        fit(module, tmp_path, GrowthSchedule([{"hidden_dims": [12]}], at=[8]), ckpt_path=tmp_path / "late.ckpt")
    assert module.net[0].weight is weight
    assert tuple(module.hparams.hidden_dims) == (8,)
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())


class Grouped(Stack):
    """Gives out what its norm makes of groups of units: the source's stand in the front half of each."""

    def __init__(self, hidden_dims=(8,)):
        super().__init__(hidden_dims=hidden_dims)
        self.norm = torch.nn.GroupNorm(2, hidden_dims[0])

    def forward(self, x):
        return self.net(x), self.norm(self.net[0](x))

    def training_step(self, batch, batch_idx):
        return sum(output.square().mean() for output in self(batch[0]))


def test_outputs_that_grow_between_their_positions_are_compared_at_the_sources(tmp_path):
    module = make(Grouped)
    fit(module, tmp_path, GrowthSchedule([{"hidden_dims": [16]}], at=[4], allow_output_growth=True), max_epochs=1)
    assert module.net[0].out_features == 16


def test_a_growth_is_marked_in_every_logger(tmp_path):
    """The parameters there are by now, what the module is built from, and in TensorBoard its table and picture."""
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    module = make()
    fit(module, tmp_path, GrowthSchedule(STAGES, at=[8, 20]), max_epochs=4, logger=loggers)
    assert "hidden_dims:\n- 16" in (tmp_path / "csv" / "version_0" / "hparams.yaml").read_text()
    header, *rows = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    marked = [dict(zip(columns, row.split(","), strict=True)) for row in rows]
    counts = {int(row["step"]): float(row["growth/parameters"]) for row in marked if row["growth/parameters"]}
    assert counts == {8: 4 * 12 + 12 + 12 * 2 + 2, 20: 4 * 16 + 16 + 16 * 2 + 2}
    events = EventAccumulator(str(tmp_path / "board" / "version_0")).Reload()
    assert [event.step for event in events.Images("growth")] == [8, 20]
    (text, _) = events.Tensors("growth/text_summary")
    assert b"net.0.weight" in text.tensor_proto.string_val[0]


def test_a_growth_is_marked_in_weights_and_biases_and_mlflow(tmp_path, monkeypatch):
    """Both write to this disk; what they wrote is read back."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a data base needs the whole of mlflow
    wandb_logger = WandbLogger(save_dir=tmp_path, offline=True)
    mlflow_logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"))
    module = make()
    fit(module, tmp_path, GrowthSchedule(STAGES[:1], at=[8]), max_epochs=2, logger=[wandb_logger, mlflow_logger])
    client, run = mlflow_logger.experiment, mlflow_logger.run_id
    counts = [(item.step, item.value) for item in client.get_metric_history(run, "growth/parameters")]
    assert counts == [(8, 4 * 12 + 12 + 12 * 2 + 2)]
    (folder,) = (tmp_path / "mlruns").glob(f"*/{run}/artifacts")
    assert (folder / "growth_step8.png").exists()
    assert "net.0.weight" in (folder / "growth_step8.txt").read_text()
    assert json.loads((folder / "growth_step8.json").read_text())["hidden_dims"] == [12]
    assert wandb_logger.experiment.summary["growth/parameters"] == counts[0][1]
    wandb.finish()
    images = list((tmp_path / "wandb").glob("offline-run-*/files/media/images/growth_*.png"))
    tables = list((tmp_path / "wandb").glob("offline-run-*/files/media/table/growth/table_*.json"))
    assert len(images) == 1
    assert "net.0.weight" in tables[0].read_text()
