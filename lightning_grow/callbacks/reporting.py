"""What is said of a growth: its table, its file, and what became of the optimizers."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from lightning_grow.convert import Growth
from lightning_grow.errors import MissingExtra
from lightning_grow.files.hparams import find_hparams
from lightning_grow.folding import by_reason
from lightning_grow.report import TransferReport
from lightning_grow.training_state.optimizers import CarriedState, OptimizerChoice, Schedule, learning_rates
from lightning_grow.training_state.warmup import Warmup


@rank_zero_only
def print_report(growth: Growth) -> None:
    """Print the table of a growth, once."""
    Console().print(growth.transfer.report)


def write_report(trainer: Trainer, report: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Write growth_report.json where the run logs to; beside one that is there, with the global step in its name."""
    folder = trainer.log_dir or trainer.default_root_dir  # on every rank: Lightning broadcasts the folder's name
    if trainer.is_global_zero and "://" not in str(folder):
        path = Path(folder) / "growth_report.json"
        path = path.with_name(f"growth_report_step{checkpoint.get('global_step', 0)}.json") if path.exists() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2))


def mark_growth(trainer: Trainer, module: LightningModule, report: TransferReport) -> None:
    """Mark a growth in every logger: the parameters there are now, and what the module is built from by now.

    TensorBoard, Weights & Biases and MLflow have the table and the picture too.
    """
    count, hparams = sum(parameter.numel() for parameter in module.parameters()), find_hparams(module)
    for logger in trainer.loggers:
        if not isinstance(logger, MLFlowLogger):  # which refuses a parameter's second value; it has a file of them
            logger.log_hyperparams(hparams)
        logger.log_metrics({"growth/parameters": count}, step=trainer.global_step)
        if trainer.is_global_zero:
            _show(logger, report, hparams, trainer.global_step)


def _show(logger: Logger, report: TransferReport, hparams: Mapping[str, Any], step: int) -> None:
    """Put the table and the picture where a logger has a place for them; without matplotlib there is no picture."""
    if not isinstance(logger, (TensorBoardLogger, WandbLogger, MLFlowLogger)):
        return
    with suppress(MissingExtra):
        figure = report.plot()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure("growth", figure, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image("growth", [figure], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(logger.run_id, figure, f"growth_step{step}.png")
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("growth", f"```\n{report}\n```", step)
    elif isinstance(logger, WandbLogger):
        logger.log_text("growth/table", ["table"], [[str(report)]], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, str(report), f"growth_step{step}.txt")
        settings = json.dumps(dict(hparams), indent=2, default=str)
        logger.experiment.log_text(logger.run_id, settings, f"growth_step{step}.json")


def describe_optimizers(
    trainer: Trainer,
    checkpoint: Mapping[str, Any],
    carried: CarriedState,
    optimizer: OptimizerChoice,
    scheduler: Schedule,
    warmup: Warmup,
) -> str:
    """Say what was kept of the training state and what is fresh, with the learning rate that results."""
    had = _join(learning_rates(checkpoint.get("optimizer_states") or ()))
    built = [{"param_groups": item.param_groups} for item in trainer.optimizers]
    has = _join(learning_rates(carried.optimizer_states or built))
    names = ", ".join(type(item).__name__ for item in trainer.optimizers) or "no optimizer"
    moments = "state is fresh" if optimizer == "reset" else f"moments of {carried.moved} parameters moved"
    schedule = "goes on" if scheduler == "keep" else "starts over as the config builds it"
    lines = [
        f"Optimizer: {names}, {moments}; the schedule {schedule}.",
        f"Learning rate: {has or 'none'} now, {had or 'none'} before.",
        f"Progress is kept: epoch {checkpoint.get('epoch', 0)}, global step {checkpoint.get('global_step', 0)}.",
    ]
    if warmup.num_steps:
        lines.append(
            f"Warm-up: {warmup.start_factor:g} to 1 times the rate over {warmup.num_steps} optimizer "
            f"steps ({warmup.scope} entries)."
        )
    for title, items in (
        ("Fresh although the checkpoint had state", carried.fresh),
        ("Moments that are approximate", carried.approximate),
        ("Not at the pace of before", carried.paced),
    ):
        lines.extend([f"{title}: {by_reason(items)}."] if items else [])
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value":
        lines.append("Clipping by the gradients' norm counts those of new entries too, so the old ones' shrink.")
    return " ".join(lines)


def _join(rates: list[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates))
