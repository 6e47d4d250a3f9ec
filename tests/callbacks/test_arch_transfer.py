import copy
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from stacks import AtStart, GrowableStack, Stack, batches, equal, fit, make_trainer, outputs, train_small, weights

from lightning_grow.callbacks import ArchTransfer
from lightning_grow.callbacks.surroundings import check_total
from lightning_grow.errors import CheckpointError, RefusedGrowth, UnknownStrategy

CLOSE = {"rtol": 0, "atol": 1e-6}  # float32 outputs of about 1


class Rates(L.Callback):
    """The learning rate each optimizer step really used."""

    def on_fit_start(self, trainer, pl_module):
        self.used = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.used.append(optimizer.param_groups[0]["lr"])


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("cls", [Stack, GrowableStack])
@pytest.mark.parametrize("hidden_dims", [[8], [16]])
def test_a_resume_keeps_outputs_and_progress(tmp_path, cls, hidden_dims):
    small, path = train_small(tmp_path, cls)
    at_start = AtStart()
    trainer = fit(cls(hidden_dims), tmp_path, ArchTransfer(), at_start, ckpt_path=path, max_epochs=4)
    torch.testing.assert_close(at_start.outputs, outputs(small), **CLOSE)
    assert (at_start.step, at_start.epoch) == (16, 2)
    assert trainer.global_step == 32


@pytest.mark.parametrize("cls", [Stack, GrowableStack])
def test_where_nothing_differs_the_resume_is_lightnings_own(tmp_path, cls):
    _, path = train_small(tmp_path, cls, schedule="cosine")

    def resume(*callbacks):
        L.seed_everything(1, verbose=False)
        trainer = fit(cls(schedule="cosine"), tmp_path, *callbacks, ckpt_path=path, max_epochs=3)
        optimizer, schedule = trainer.optimizers[0].state_dict(), trainer.lr_scheduler_configs[0].scheduler.state_dict()
        return weights(trainer.lightning_module), optimizer, schedule, torch.random.get_rng_state()

    assert equal(resume(), resume(ArchTransfer()))


def test_another_learning_rate_alone_is_a_plain_resume(tmp_path):
    _, path = train_small(tmp_path)
    at_start = AtStart()
    fit(Stack(learning_rate=1e-3), tmp_path, ArchTransfer(), at_start, ckpt_path=path, max_epochs=3)
    assert at_start.rates == [1e-2]  # the checkpoint's, as Lightning does
    assert len(at_start.state) == 4


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_an_old_file_can_be_evaluated_by_the_bigger_module(tmp_path, method):
    small, path = train_small(tmp_path)
    big = Stack([16])
    trainer = make_trainer(tmp_path, ArchTransfer())
    getattr(trainer, method)(big, batches(), ckpt_path=path, **({} if method == "predict" else {"verbose": False}))
    torch.testing.assert_close(outputs(big), outputs(small), **CLOSE)


def test_a_weights_only_file_resumes(tmp_path):
    small, path = train_small(tmp_path)
    make_trainer(tmp_path)
    trainer = fit(small, tmp_path, max_epochs=2)
    trainer.save_checkpoint(path, weights_only=True)
    at_start = AtStart()
    fit(Stack([16]), tmp_path, ArchTransfer(), at_start, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(at_start.outputs, outputs(small), **CLOSE)
    assert at_start.step == 16


def test_new_units_learn(tmp_path):
    _, path = train_small(tmp_path)
    big = Stack([16])
    fit(big, tmp_path, ArchTransfer(num_warmup_steps=0), ckpt_path=path, max_epochs=4)
    assert big.net[2].weight[:, 8:].abs().min() > 0
    assert big.net[0].weight[8:].unique(dim=0).shape == (8, 4)  # and no two are alike


# ----- optimizer and schedule: cosine over 40 steps from 0.01, saved at step 16 -------------------------------------

AT_16, AT_24, FRESH_8 = 0.006545, 0.003455, 0.009045


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "start", "end", "moments"),
    [
        ("reset", None, 0.01, FRESH_8, 0),
        ("reset", "keep", AT_16, AT_24, 0),
        ("transfer", None, AT_16, AT_24, 4),
        ("transfer", "reset", 0.01, FRESH_8, 4),
    ],
)
def test_every_choice_gives_the_right_learning_rate(tmp_path, optimizer, scheduler, start, end, moments):
    _, path = train_small(tmp_path, schedule="cosine")
    at_start = AtStart()
    callback = ArchTransfer(optimizer=optimizer, scheduler=scheduler)
    trainer = fit(Stack([16], schedule="cosine"), tmp_path, callback, at_start, ckpt_path=path, max_epochs=3)
    assert at_start.rates == pytest.approx([start], abs=1e-6)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(end, abs=1e-6)
    assert len(at_start.state) == moments


class PerEpoch(Stack):
    """A schedule that steps once an epoch, by a monitored value."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


@pytest.mark.parametrize("optimizer", ["reset", "transfer", "asymmetric"])
def test_a_kept_schedule_of_epochs_goes_on(tmp_path, optimizer):
    _, path = train_small(tmp_path, PerEpoch, max_epochs=3)
    rates = Rates()
    fit(
        PerEpoch([16]),
        tmp_path,
        ArchTransfer(optimizer=optimizer, scheduler="keep", warmup_scope="new"),
        rates,
        ckpt_path=path,
        max_epochs=5,
    )
    plain = Rates()
    fit(PerEpoch(), tmp_path, plain, ckpt_path=path, max_epochs=5)
    assert rates.used == plain.used
    assert len(set(plain.used)) == 2


def test_a_reset_takes_the_configs_lower_learning_rate(tmp_path):
    _, path = train_small(tmp_path)
    at_start = AtStart()
    fit(Stack([16], learning_rate=1e-4), tmp_path, ArchTransfer(), at_start, ckpt_path=path, max_epochs=3)
    assert at_start.rates == [1e-4]
    assert at_start.state == {}


def test_a_schedule_is_not_kept_from_another_base_rate(tmp_path):
    _, path = train_small(tmp_path, schedule="cosine")
    callback = ArchTransfer(scheduler="keep")
    with pytest.raises(RefusedGrowth, match=r"runs from the learning rate 0\.01, the config's .* from 0\.001"):
        fit(Stack([16], learning_rate=1e-3, schedule="cosine"), tmp_path, callback, ckpt_path=path, max_epochs=3)


def test_moments_move_with_their_entries(tmp_path):
    _, path = train_small(tmp_path)
    old = read(path)["optimizer_states"][0]["state"]
    at_start = AtStart()
    fit(Stack([16]), tmp_path, ArchTransfer(optimizer="transfer"), at_start, ckpt_path=path, max_epochs=3)
    for index, block in enumerate([(slice(8),), (slice(8),), (slice(None), slice(8)), (slice(None),)]):
        for kind in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(at_start.state[index][kind][block], old[index][kind])
        assert at_start.state[index]["step"] == 16


# ----- the warm-up ---------------------------------------------------------------------------------------------------


def test_the_warmup_runs_after_a_growth_and_ends(tmp_path):
    _, path = train_small(tmp_path)
    rates, callback = Rates(), ArchTransfer(num_warmup_steps=10)
    fit(Stack([16]), tmp_path, callback, rates, ckpt_path=path, max_epochs=4)
    assert rates.used == pytest.approx([0.01 * (0.1 + 0.9 * min(step, 10) / 10) for step in range(16)])
    assert callback.state_dict() == {}


WARMUPS = [(choice, scope) for choice in ("reset", "transfer") for scope in ("all", "new", "source")]


@pytest.mark.parametrize(("optimizer", "scope"), [*WARMUPS, ("asymmetric", "new")])
def test_straight_equals_saved_in_the_warmup_and_resumed(tmp_path, optimizer, scope):
    _, path = train_small(tmp_path)

    def callback():
        return ArchTransfer(optimizer=optimizer, num_warmup_steps=20, warmup_scope=scope)

    def resume(ckpt_path, max_epochs):
        L.seed_everything(1, verbose=False)
        return fit(Stack([16]), tmp_path, callback(), ckpt_path=ckpt_path, max_epochs=max_epochs)

    straight = resume(path, 6)
    resume(path, 4).save_checkpoint(tmp_path / "middle.ckpt")
    again = resume(tmp_path / "middle.ckpt", 5)
    again.save_checkpoint(tmp_path / "late.ckpt")
    resumed = resume(tmp_path / "late.ckpt", 6)
    assert read(tmp_path / "middle.ckpt")["callbacks"]["ArchTransfer"]["steps"] == [16]
    assert equal(weights(resumed.lightning_module), weights(straight.lightning_module))
    assert equal(resumed.optimizers[0].state_dict(), straight.optimizers[0].state_dict())


def test_a_finished_warmup_leaves_no_trace_in_the_checkpoint(tmp_path):
    _, path = train_small(tmp_path)
    callback = ArchTransfer(num_warmup_steps=4, warmup_scope="new")
    fit(Stack([16]), tmp_path, callback, ckpt_path=path, max_epochs=3).save_checkpoint(tmp_path / "big.ckpt")
    checkpoint = read(tmp_path / "big.ckpt")
    assert checkpoint["callbacks"] == {}
    assert checkpoint["lightning_grow"].keys() == {"version", "architecture", "tape"}


def test_growing_again_in_the_warmup_starts_a_new_one(tmp_path):
    _, path = train_small(tmp_path)
    fit(Stack([16]), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3).save_checkpoint(tmp_path / "mid.ckpt")
    callback = ArchTransfer()
    fit(Stack([32]), tmp_path, callback, ckpt_path=tmp_path / "mid.ckpt", max_epochs=4)
    assert callback.state_dict()["steps"] == [8]


def test_growing_again_forgets_which_entries_were_new(tmp_path):
    _, path = train_small(tmp_path)
    scoped = ArchTransfer(warmup_scope="new")
    fit(Stack([16]), tmp_path, scoped, ckpt_path=path, max_epochs=3).save_checkpoint(tmp_path / "mid.ckpt")
    assert "pending" in read(tmp_path / "mid.ckpt")["lightning_grow"]
    trainer = fit(Stack([32]), tmp_path, ArchTransfer(), ckpt_path=tmp_path / "mid.ckpt", max_epochs=4)
    trainer.save_checkpoint(tmp_path / "late.ckpt")
    assert "pending" not in read(tmp_path / "late.ckpt")["lightning_grow"]


def test_growing_again_goes_on_holding_back_what_was_new(tmp_path):
    def grow(width, ckpt_path, max_epochs):
        callback = ArchTransfer(warmup_scope="new")
        trainer = fit(Stack([width]), tmp_path, callback, ckpt_path=ckpt_path, max_epochs=max_epochs)
        trainer.save_checkpoint(tmp_path / f"{width}.ckpt")
        return read(tmp_path / f"{width}.ckpt")["lightning_grow"]["pending"]["new_entries"]

    _, path = train_small(tmp_path)
    assert grow(16, path, 3)["net.0.bias"] == [8, 8]
    assert grow(32, tmp_path / "16.ckpt", 4)["net.0.bias"] == [8, 24]  # the first growth's 8, and 16 of its own


def test_the_warmup_is_logged(tmp_path):
    _, path = train_small(tmp_path)
    logger = CSVLogger(tmp_path)
    callback = ArchTransfer(num_warmup_steps=4)
    fit(Stack([16]), tmp_path, callback, ckpt_path=path, max_epochs=3, logger=logger, log_every_n_steps=1)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr-warmup-factor")
    assert [float(cell) for row in rows[1:] if (cell := row.split(",")[column])] == pytest.approx(
        [0.1, 0.325, 0.55, 0.775, 1, 1, 1, 1]
    )


class Manual(Stack):
    """Two optimizers stepped by hand, the second at every other batch."""

    def __init__(self, hidden_dims=(8,)):
        super().__init__(hidden_dims)
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.Adam(self.net[index].parameters(), lr=0.01) for index in (0, 2)]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers[: 1 + batch_idx % 2]:
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        pass


def test_optimizers_stepped_by_hand_warm_up_each_at_its_pace(tmp_path):
    _, path = train_small(tmp_path, Manual)

    def resume(ckpt_path, max_epochs):
        L.seed_everything(1, verbose=False)
        callback = ArchTransfer(optimizer="transfer", num_warmup_steps=14)
        return fit(Manual([16]), tmp_path, callback, ckpt_path=ckpt_path, max_epochs=max_epochs)

    straight = resume(path, 5)
    resume(path, 4).save_checkpoint(tmp_path / "middle.ckpt")
    resumed = resume(tmp_path / "middle.ckpt", 5)
    assert read(tmp_path / "middle.ckpt")["callbacks"]["ArchTransfer"]["steps"] == [14, 8]
    assert equal(weights(resumed.lightning_module), weights(straight.lightning_module))


# ----- one callback, many runs ---------------------------------------------------------------------------------------


def test_a_second_fit_with_the_same_callback_needs_no_checkpoint(tmp_path):
    _, path = train_small(tmp_path)
    callback = ArchTransfer()
    fit(Stack([16]), tmp_path, callback, ckpt_path=path, max_epochs=3)
    trainer = fit(Stack([16]), tmp_path, callback, max_epochs=1)
    assert trainer.global_step == 8
    assert callback.state_dict() == {}


def test_nothing_stays_on_trainer_or_module(tmp_path):
    _, path = train_small(tmp_path)
    module = Stack([16])
    trainer = fit(module, tmp_path, ArchTransfer(num_warmup_steps=99), ckpt_path=path, max_epochs=3)
    assert "on_load_checkpoint" not in vars(module)
    assert "load_checkpoint" not in vars(trainer.strategy)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    pickle.dumps(module)


def test_nothing_stays_after_an_error(tmp_path):
    _, path = train_small(tmp_path, hidden_dims=[16])
    module, callback = Stack([8]), ArchTransfer()
    before = weights(module)
    with pytest.raises(RefusedGrowth):
        fit(module, tmp_path, callback, ckpt_path=path, max_epochs=3)
    assert "on_load_checkpoint" not in vars(module)
    assert equal(weights(module), before)
    pickle.dumps((module, callback))


def test_a_users_own_hook_runs_first_and_comes_back(tmp_path):
    small, path = train_small(tmp_path)
    checkpoint = read(path)
    checkpoint["state_dict"] = {"old_" + name: tensor for name, tensor in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    big, at_start = Stack([16]), AtStart()

    def rename(checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.removeprefix("old_"): tensor for name, tensor in state.items()}

    big.on_load_checkpoint = rename
    fit(big, tmp_path, ArchTransfer(), at_start, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(at_start.outputs, outputs(small), **CLOSE)
    assert big.on_load_checkpoint is rename


def test_a_copy_of_the_module_does_not_drag_the_trainer_along(tmp_path):
    class Copying(L.Callback):
        def setup(self, trainer, pl_module, stage):
            self.copy, self.shared = copy.deepcopy(pl_module), pl_module.on_load_checkpoint

    copying = Copying()
    fit(Stack(), tmp_path, ArchTransfer(), copying, max_epochs=1)
    assert copying.copy.on_load_checkpoint is copying.shared  # a plain function is shared, whatever it holds on to


# ----- other callbacks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_a_moving_average_grows_with_the_same_fill(tmp_path, order):
    _, path = train_small(tmp_path, Stack, EMAWeightAveraging(decay=0.9))
    kept = read(path)
    assert "current_model_state" in kept

    class Average(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.live, self.average = weights(pl_module), copy.deepcopy(average._average_model.module.state_dict())

    average, seen = EMAWeightAveraging(decay=0.9), Average()
    fit(Stack([16]), tmp_path, *[ArchTransfer(), average][::order], seen, ckpt_path=path, max_epochs=3)
    assert torch.equal(seen.live["net.0.weight"][:8], kept["current_model_state"]["net.0.weight"])
    assert torch.equal(seen.average["net.0.weight"][:8], kept["state_dict"]["net.0.weight"])
    assert torch.equal(seen.live["net.0.weight"][8:], seen.average["net.0.weight"][8:])


def outputs_of(state, hidden_dims, inputs):
    module = Stack(hidden_dims)
    module.load_state_dict(state)
    with torch.no_grad():
        return module(inputs)


def test_the_average_computes_what_it_did_as_well_as_the_live_model(tmp_path):
    _, path = train_small(tmp_path, Stack, EMAWeightAveraging(decay=0.9))
    kept, inputs = read(path), torch.randn(9, 4)
    average, big = EMAWeightAveraging(decay=0.9), Stack([16])

    class Outputs(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.live = outputs_of(pl_module.state_dict(), [16], inputs)
            self.average = outputs_of(average._average_model.module.state_dict(), [16], inputs)

    seen = Outputs()
    fit(big, tmp_path, ArchTransfer(), average, seen, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(seen.live, outputs_of(kept["current_model_state"], [8], inputs))
    torch.testing.assert_close(seen.average, outputs_of(kept["state_dict"], [8], inputs))


@pytest.mark.filterwarnings("ignore:The checkpoint was not created with WeightAveraging")
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_an_average_that_begins_or_ends_at_the_growth_behaves_as_in_lightning(tmp_path, before, after):
    def averages(wanted):
        return [EMAWeightAveraging(decay=0.9)] if wanted else []

    _, path = train_small(tmp_path, Stack, *averages(before))
    kept, inputs, found = read(path), torch.randn(9, 4), []
    for hidden_dims in ([8], [16]):  # a plain resume and a growing one
        start = AtStart()
        fit(Stack(hidden_dims), tmp_path, ArchTransfer(), *averages(after), start, ckpt_path=path, max_epochs=3)
        found.append(outputs_of(start.weights, hidden_dims, inputs))
    plain, grown = found
    torch.testing.assert_close(grown, plain)
    torch.testing.assert_close(plain, outputs_of(kept["state_dict"], [8], inputs))  # the average, where there was one


class Classes(Stack):
    def __init__(self, hidden_dims=(8,), classes=2):
        super().__init__(hidden_dims)
        self.save_hyperparameters()
        self.net[-1] = torch.nn.Linear(hidden_dims[-1], classes)

    def training_step(self, batch, batch_idx):
        return self(batch[0])[:, :2].square().mean()


def test_new_actions_begin_alike_in_the_average(tmp_path):
    _, path = train_small(tmp_path, Classes, EMAWeightAveraging(decay=0.9))
    average, found = EMAWeightAveraging(decay=0.9), {}

    class Heads(L.Callback):
        def on_train_start(self, trainer, pl_module):
            found["live"] = pl_module.net[-1].bias.detach().clone()
            found["average"] = average._average_model.module.net[-1].bias.detach().clone()

    growing = ArchTransfer(allow_output_growth=True, new_action_prob=0.01)
    fit(Classes([16], 4), tmp_path, growing, average, Heads(), ckpt_path=path, max_epochs=3)
    assert torch.equal(found["live"][2:], found["average"][2:])
    assert found["live"][2] < -2


def test_stochastic_weight_averaging_grows_too(tmp_path):
    averaging = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
    _, path = train_small(tmp_path, Stack, averaging, max_epochs=4)
    assert any(state.get("average_model_state") for state in read(path)["callbacks"].values())
    again = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
    assert fit(Stack([16]), tmp_path, again, ArchTransfer(), ckpt_path=path, max_epochs=6).global_step >= 40


@pytest.mark.parametrize(("reset", "kept"), [(False, True), (True, False)])
def test_monitors_forget_only_when_asked(tmp_path, reset, kept):
    def monitors():
        folder = {"dirpath": tmp_path / "best", "monitor": "val_loss"}
        return [ModelCheckpoint(**folder), EarlyStopping("val_loss", patience=99)]

    module = Stack()
    trainer = make_trainer(tmp_path, *monitors(), enable_checkpointing=True)
    trainer.fit(module, batches(), batches())
    trainer.save_checkpoint(tmp_path / "small.ckpt")

    class Scores(L.Callback):
        def on_train_start(self, trainer, pl_module):
            best, early = trainer.checkpoint_callback, trainer.early_stopping_callback
            self.known = best.best_model_score is not None, bool(torch.isfinite(early.best_score))

    scores = Scores()
    callbacks = [*monitors(), ArchTransfer(reset_monitors=reset), scores]
    trainer = make_trainer(tmp_path, *callbacks, enable_checkpointing=True, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(Stack([16]), batches(), batches(), ckpt_path=tmp_path / "small.ckpt")
    assert scores.known == (kept, kept)


def test_the_best_of_the_small_network_is_tested_by_the_big_one(tmp_path):
    def checkpoints():
        return ModelCheckpoint(dirpath=tmp_path / "best", monitor="val_loss", save_top_k=1, filename="{epoch}")

    trainer = make_trainer(tmp_path, checkpoints(), enable_checkpointing=True)
    trainer.fit(Stack(), batches(), batches())
    best = trainer.checkpoint_callback.best_model_path
    big = make_trainer(tmp_path, ArchTransfer(), checkpoints(), enable_checkpointing=True, max_epochs=3)
    module = Stack([16], learning_rate=100.0)  # so that nothing gets better
    big.fit(module, batches(), batches(), ckpt_path=best)
    assert big.checkpoint_callback.best_model_path == best
    big.test(module, batches(), ckpt_path="best")
    old = read(best)["state_dict"]["net.0.weight"]
    assert torch.equal(module.net[0].weight[:8], old)


class DelayedStack(Stack):
    """Its target network runs in training_step alone."""

    def __init__(self, hidden_dims=(8,)):
        super().__init__(hidden_dims)
        self.save_hyperparameters()
        self.target_net = copy.deepcopy(self.net).requires_grad_(requires_grad=False)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for slow, fast in zip(self.target_net.parameters(), self.net.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.05)

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - self.target_net(batch[0]).detach() - batch[1]).square().mean()


def test_a_target_network_grows_as_the_network_it_follows(tmp_path):
    small, path = train_small(tmp_path, DelayedStack)
    inputs = torch.randn(9, 4)
    assert not torch.allclose(small.net(inputs), small.target_net(inputs), atol=1e-3)

    class Outputs(L.Callback):
        @torch.no_grad()
        def on_train_start(self, trainer, pl_module):
            self.live, self.target = pl_module.net(inputs), pl_module.target_net(inputs)

    seen = Outputs()
    fit(DelayedStack([16]), tmp_path, ArchTransfer(), seen, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(seen.live, small.net(inputs).detach())
    torch.testing.assert_close(seen.target, small.target_net(inputs).detach())


def test_a_search_for_the_learning_rate_with_a_checkpoint_is_warned_of(tmp_path):
    _, path = train_small(tmp_path)
    finder = LearningRateFinder(num_training_steps=3, update_attr=False)
    arguments = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "max_epochs": 3}
    with pytest.warns(UserWarning, match="LearningRateFinder together with ckpt_path loses the checkpoint's progress"):
        fit(Stack([16]), tmp_path, ArchTransfer(), finder, ckpt_path=path, **arguments)


# ----- what is refused, and what it says -----------------------------------------------------------------------------

REFUSED = {
    "state_dim": ({"state_dim": 6}, ["4", "6", "allow_input_growth"]),
    "shrink": ({"hidden_dims": [4]}, ["8", "4"]),
    "activation": ({"activation": "tanh"}, ["anh"]),
    "activation and width": ({"activation": "tanh", "hidden_dims": [16]}, ["anh"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_both_sides_and_changes_nothing(tmp_path, case):
    hparams, words = REFUSED[case]
    _, path = train_small(tmp_path, GrowableStack)
    file, module = path.read_bytes(), GrowableStack(**hparams)
    before = weights(module)
    with pytest.raises(RefusedGrowth) as caught:
        fit(module, tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    assert all(word in str(caught.value) for word in words)
    assert equal(weights(module), before)
    assert path.read_bytes() == file


@pytest.mark.parametrize("state_dim", [6, 3])
def test_a_refused_input_says_how_both_sizes_come_about(tmp_path, state_dim):
    _, path = train_small(tmp_path, GrowableStack)
    with pytest.raises(RefusedGrowth) as caught:
        fit(GrowableStack(state_dim=state_dim), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    assert str(caught.value).count("In the checkpoint: state_dim 4 is that many numbers.") == 1
    assert str(caught.value).count(f"In the config: state_dim {state_dim} is that many numbers.") == 1


def test_an_unknown_strategy_is_said_before_the_file_is_read(tmp_path):
    with pytest.raises(UnknownStrategy, match="Did you mean 'preserve'"):
        fit(Stack(), tmp_path, ArchTransfer("preserv"), ckpt_path=tmp_path / "not there.ckpt")


def test_a_broken_file_is_a_checkpoint_error(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.ckpt is not a checkpoint"):
        fit(Stack(), tmp_path, ArchTransfer(), ckpt_path=tmp_path / "text.ckpt")


def test_ones_own_file_with_code_in_it_needs_weights_only_false(tmp_path):
    _, path = train_small(tmp_path)
    checkpoint = read(path)
    checkpoint["hyper_parameters"]["folder"] = Path("data")
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"pathlib\.PosixPath"):
        fit(Stack([16]), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    trainer = make_trainer(tmp_path, ArchTransfer(), max_epochs=3)
    trainer.fit(Stack([16]), batches(), batches(), ckpt_path=path, weights_only=False)
    assert trainer.global_step == 24


def test_lost_weights_do_not_grow(tmp_path):
    _, path = train_small(tmp_path)
    checkpoint = read(path)
    checkpoint["state_dict"]["net.0.bias"][0] = float("nan")
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"small\.ckpt: NaN or infinite weights in net\.0\.bias"):
        fit(Stack([16]), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)


class Anonymous(Stack):
    """Keeps no hyperparameters."""

    def save_hyperparameters(self, *args, **kwargs):
        self._hparams = {"state_dim": 4, "learning_rate": 1e-2, "schedule": None}

    @property
    def hparams(self):
        return Hparams(self._hparams)


class Hparams(dict):
    """Read by attribute, and never saved: Lightning skips what is false."""

    __getattr__ = dict.__getitem__

    def __bool__(self):
        return False


def test_without_hyperparameters_the_three_ways_out_are_named(tmp_path):
    small, path = train_small(tmp_path, Anonymous)
    with pytest.raises(RefusedGrowth) as caught:
        fit(Anonymous([16]), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    for way in ("source=", "convert_checkpoint", "save_hyperparameters"):
        assert way in str(caught.value)
    at_start, callback = AtStart(), ArchTransfer(source=lambda hparams: Anonymous([8]))
    fit(Anonymous([16]), tmp_path, callback, at_start, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(at_start.outputs, outputs(small), **CLOSE)


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": 99, "max_steps": 16}])
def test_a_run_at_its_total_is_an_error_that_names_the_override(tmp_path, limit):
    _, path = train_small(tmp_path)
    name = "max_steps" if "max_steps" in limit else "max_epochs"
    with pytest.raises(RefusedGrowth, match=rf"reached its total: \d+ of {name}=.* trainer\.{name}="):
        fit(Stack([16]), tmp_path, ArchTransfer(), ckpt_path=path, **limit)


def test_the_last_file_of_a_monitored_run_is_at_its_total_too(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    trainer = make_trainer(tmp_path, best, enable_checkpointing=True)
    trainer.fit(Stack(), batches(), batches())
    with pytest.raises(RefusedGrowth, match="2 of max_epochs=2"):
        check_total(make_trainer(tmp_path, max_epochs=2), read(tmp_path / "last.ckpt"))
    check_total(make_trainer(tmp_path, max_epochs=3), read(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_state_of_another_shape_never_reaches_an_optimizer(tmp_path, fused):
    _, path = train_small(tmp_path)
    checkpoint = read(path)
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3, 4)
    checkpoint["optimizer_states"][0]["param_groups"][0]["fused"] = fused
    torch.save(checkpoint, path)
    with pytest.raises(RefusedGrowth, match=r"'exp_avg' of 'net\.0\.weight' has the shape \(3, 4\)"):
        fit(Stack(), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "rest"}, "'reset', 'transfer' or 'asymmetric', but got 'rest'"),
        ({"scheduler": "kept"}, "'reset', 'keep' or None, but got 'kept'"),
        ({"num_warmup_steps": -1}, "num_warmup_steps"),
        ({"optimizer": "asymmetric", "num_warmup_steps": 0}, "moments of their own"),
        ({"optimizer": "asymmetric", "warmup_scope": "all"}, "moments of their own"),
    ],
)
def test_wrong_settings_are_said_at_once(settings, words):
    with pytest.raises(ValueError, match=words):
        ArchTransfer(**settings)


# ----- what it says and writes ---------------------------------------------------------------------------------------


def test_the_log_says_what_differs_and_which_rate_results(tmp_path, caplog, capsys):
    _, path = train_small(tmp_path)
    with caplog.at_level("INFO"):
        fit(Stack([16], learning_rate=1e-3), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    for words in (
        "hidden_dims: (8,) in the checkpoint, [16] in the config.",
        "learning_rate: 0.01 in the checkpoint, 0.001 in the config.",
        "with the strategy 'preserve'",
        "Learning rate: 0.001 now, 0.01 before.",
        "epoch 2, global step 16",
        "over 100 optimizer steps",
    ):
        assert caplog.text.count(words) == 1
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("clip", "said"), [({"gradient_clip_val": 1.0}, True), ({}, False)])
def test_what_clipping_does_with_new_entries_is_said(tmp_path, caplog, clip, said):
    _, path = train_small(tmp_path)
    with caplog.at_level("INFO"):
        fit(Stack([16]), tmp_path, ArchTransfer(optimizer="transfer"), ckpt_path=path, max_epochs=3, **clip)
    assert ("Clipping by the gradients' norm counts those of new entries too" in caplog.text) is said


def test_the_report_says_what_became_of_the_moments(tmp_path):
    _, path = train_small(tmp_path)
    fit(Stack([16]), tmp_path, ArchTransfer("net2wider", optimizer="asymmetric"), ckpt_path=path, max_epochs=3)
    state = json.loads((tmp_path / "growth_report.json").read_text())["training_state"]
    assert (state["optimizer"], state["scheduler"], state["moved"], state["fresh"]) == ("asymmetric", "keep", 4, [])
    assert [line.split(":")[0] for line in state["approximate"]] == ["net.0.weight", "net.0.bias", "net.2.weight"]


def test_the_report_is_written_beside_the_run(tmp_path):
    _, path = train_small(tmp_path)
    for _ in range(2):
        fit(Stack([16]), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    names = sorted(file.name for file in tmp_path.glob("growth_report*"))
    assert names == ["growth_report.json", "growth_report_step16.json"]
    assert json.loads((tmp_path / names[0]).read_text())["max_output_error"] < 1e-6


# ----- two processes -------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
    import sys
    import torch
    import lightning as L
    from lightning_grow.callbacks import ArchTransfer
    from stacks import Stack, batches

    torch.set_num_threads(1)
    folder = sys.argv[1]
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[ArchTransfer()],
    )
    torch.manual_seed(trainer.global_rank)  # ranks start apart
    module = Stack([16])
    trainer.fit(module, batches(), ckpt_path=f"{folder}/small.ckpt")
    sums = trainer.strategy.all_gather(sum(p.sum() for p in module.parameters()))
    if trainer.is_global_zero:
        print("steps", trainer.global_step, "ranks agree", bool(sums[0] == sums[1]))
"""


def test_two_processes_grow_alike(tmp_path):
    train_small(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    import_path = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env={"PYTHONPATH": ":".join(filter(None, import_path)), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "steps 20 ranks agree True" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_no_bit_of_a_weight_is_lost_in_the_precision_of_the_run(tmp_path, precision):
    class Start(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.weights = weights(pl_module)

    L.seed_everything(0, verbose=False)
    small, path, start = Stack(), tmp_path / "small.ckpt", Start()
    fit(small, tmp_path, precision=precision).save_checkpoint(path)
    big = Stack([16])
    fit(big, tmp_path, ArchTransfer(), start, ckpt_path=path, max_epochs=3, precision=precision)
    assert big.example_input_array.dtype == torch.float32  # the user's own
    for name, old in weights(small).items():
        new = start.weights[name][tuple(slice(size) for size in old.shape)]
        assert new.dtype == old.dtype
        assert torch.equal(new, old)
