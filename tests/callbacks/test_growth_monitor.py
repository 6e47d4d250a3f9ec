"""Growths watched in real fits: what is logged, what is said, and that nothing else changes."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from stacks import Stack, equal, fit, train_small, weights

from lightning_grow import ArchTransfer, GrowthMonitor, GrowthSchedule

STAGES = [{"hidden_dims": [12]}]


class Logging(Stack):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


def run(folder, *callbacks, stages=STAGES, at=16, epochs=6, **arguments):
    L.seed_everything(0, verbose=False)
    module = Logging()
    growing = [GrowthSchedule(stages, at=[at])] if stages else []
    trainer = fit(module, folder, *growing, *callbacks, max_epochs=epochs, **arguments)
    return module, trainer


def test_a_stage_is_watched(tmp_path, caplog):
    monitor = GrowthMonitor("loss", every_n_batches=2)
    logger = CSVLogger(tmp_path)
    with caplog.at_level("INFO"):
        run(tmp_path, monitor, logger=logger, log_every_n_steps=1)
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = dict(zip(text[0].split(","), zip(*(line.split(",") for line in text[1:]), strict=True), strict=True))
    summary = {f"growth/{name}": value for name, value in monitor.recoveries[0].summary().items()}
    assert {name: float(next(filter(None, reversed(columns[name])))) for name in summary} == pytest.approx(summary)
    assert "growth/recovered_after" in summary
    seen = {name for name in columns if name.startswith("growth/")} - {*summary, "growth/parameters"}
    steps = {
        name: [int(step) for step, value in zip(columns["step"], columns[name], strict=True) if value] for name in seen
    }
    assert min(steps["growth/new_gradient_share"]) >= 16 > min(steps["growth/dormant_share"])
    assert steps["growth/effective_rank"] == steps["growth/dormant_share"]
    assert all(0 <= float(value) <= 1 for name in steps for value in columns[name] if value)
    assert "loss after the growth at step 16" in caplog.text
    assert "all 4 new units learn." in caplog.text
    assert (tmp_path / "lightning_logs" / "version_0" / "growth.png").stat().st_size > 5000


def test_training_is_as_without(tmp_path):
    watched, plain = run(tmp_path, GrowthMonitor("loss", every_n_batches=1))[0], run(tmp_path)[0]
    assert equal(weights(watched), weights(plain))
    assert not any(part._forward_pre_hooks for part in watched.modules())


def test_a_growing_resume_is_held_against_what_was_before_it(tmp_path, caplog):
    _, path = train_small(tmp_path, Logging, GrowthMonitor("loss"))
    grown, monitor = Logging(hidden_dims=(12,)), GrowthMonitor("loss", every_n_batches=1)
    with caplog.at_level("INFO"):
        fit(grown, tmp_path, monitor, ArchTransfer(), ckpt_path=path, max_epochs=3)
    (recovery,) = monitor.recoveries
    before = torch.load(path, weights_only=True)["callbacks"]["GrowthMonitor"]["values"]
    assert (recovery.step, list(recovery.before)) == (16, before)
    assert len(before) == 5
    assert recovery.after[0][0] >= 1
    assert "after the growth at step 16" in caplog.text


class Lame(Logging):
    """Whose new units no gradient reaches."""

    def on_after_backward(self):
        self.net[0].weight.grad[8:] = self.net[0].bias.grad[8:] = 0
        self.net[2].weight.grad[:, 8:] = 0


def test_units_that_no_gradient_reaches_are_named(tmp_path, caplog):
    L.seed_everything(0, verbose=False)
    with caplog.at_level("INFO"):
        fit(Lame(), tmp_path, GrowthSchedule(STAGES, at=[4]), GrowthMonitor("loss", every_n_batches=1), max_epochs=2)
    assert "new units idle after 3 looks, for no gradient reaches them: 4 at 'net.0.weight' axis 0" in caplog.text


def test_a_hint_says_what_it_stands_on(tmp_path, caplog):
    with caplog.at_level("INFO"):
        monitor = GrowthMonitor("loss", mode="max", patience=5, every_n_batches=1, tau=0.0)
        run(tmp_path, monitor, stages=None, epochs=3)
    assert "Hint: loss has not improved in 5 values, 0.0% of the units are dormant" in caplog.text


def test_a_value_that_nothing_logs_is_said(tmp_path):
    with pytest.warns(
        UserWarning, match="monitors 'reward', which was not logged. Log it, or take: growth/dormant_share, .*loss"
    ):
        run(tmp_path, GrowthMonitor("reward"), stages=None, epochs=1)
