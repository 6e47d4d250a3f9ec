"""Measure what becomes of a run after an exact growth, by optimizer state, warm-up scope and warm-up length.

Every choice resumes the same small run, on three tasks: PPO on CartPole, PPO on market prices, and scikit-learn's
digits. Run `python benchmarks/optimizer_choices.py` (about an hour on one core); it writes optimizer_choices.json, .md
and .png to benchmarks/results.
"""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from growth_in_rl import RUNS, make_agent, mean_return, train, without_optimizer
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_grow import ArchTransfer

RESULTS = Path(__file__).parent / "results"
CHOICES: dict[str, dict[str, Any]] = {
    "reset": {"optimizer": "reset", "num_warmup_steps": 0},
    **{f"reset, all, {steps}": {"optimizer": "reset", "num_warmup_steps": steps} for steps in (30, 100, 300)},
    "reset, new, 100": {"optimizer": "reset", "warmup_scope": "new", "num_warmup_steps": 100},
    "reset, source, 100": {"optimizer": "reset", "warmup_scope": "source", "num_warmup_steps": 100},
    "transfer": {"optimizer": "transfer", "num_warmup_steps": 0},
    "transfer, all, 100": {"optimizer": "transfer", "num_warmup_steps": 100},
    "transfer, source, 100": {"optimizer": "transfer", "num_warmup_steps": 100, "warmup_scope": "source"},
    "asymmetric, new, 30": {"optimizer": "asymmetric", "num_warmup_steps": 30},
    "asymmetric, new, 100": {"optimizer": "asymmetric", "num_warmup_steps": 100},
    "asymmetric, new, 300": {"optimizer": "asymmetric", "num_warmup_steps": 300},
    "no growth": {},
    "no growth, reset": {},
}
"""Arguments of ArchTransfer, all with the strategy `preserve`; none for the two controls."""

RESET = ("no growth, reset",)
LENGTH = {"cartpole": 16, "market": 16, "digits": 400}  # iterations of 16 optimizer steps; optimizer steps
SCORES = {"cartpole": "episode return", "market": "episode return", "digits": "-validation loss"}


class Watch(Callback):
    """Keep (optimizer steps since the growth, score), from before the first step on."""

    def __init__(self, score: Any, every: int) -> None:
        self.score, self.every, self.curve, self.start = score, every, [], 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The function at growth: the weights are loaded, no step is taken."""
        self.start = trainer.global_step
        self.curve.append((0, self.score(pl_module)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After every few optimizer steps."""
        done = trainer.global_step - self.start
        if done % self.every == 0:
            self.curve.append((done, self.score(pl_module)))


class Digits(lightning.LightningModule):
    """A classifier with one hidden layer, on 64 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )
        self.example_input_array = torch.linspace(0, 1, 5 * 64).reshape(5, 64)

    def forward(self, pixels: Tensor) -> Tensor:
        """Class scores."""
        return self.net(pixels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross entropy."""
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at its usual rate."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def digits(seed: int) -> tuple[DataLoader[Any], tuple[Tensor, Tensor]]:
    """A thousand batches of the training part, and the whole validation part."""
    data = load_digits()
    pixels, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:1200], order[1200:]
    picked = torch.randint(1200, (1000, 32), generator=torch.Generator().manual_seed(seed))
    batches = [(pixels[train[rows]], labels[train[rows]]) for rows in picked]
    return DataLoader(batches, batch_size=None), (pixels[held_out], labels[held_out])


def follow_digits(seed: int, folder: Path, choices: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """The curve of every choice."""
    batches, (pixels, labels) = digits(seed)

    @torch.no_grad()
    def score(module: Digits) -> float:
        return -float(cross_entropy(module(pixels), labels))

    def fit(width: int, steps: int, callbacks: list[Callback], path: Path | None) -> lightning.Trainer:
        lightning.seed_everything(seed if path is None else seed + 100, verbose=False)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(
            max_steps=steps,
            callbacks=callbacks,
            default_root_dir=folder,
            accelerator="cpu",
            enable_model_summary=False,
            **quiet,
        )
        trainer.fit(Digits(width), batches, ckpt_path=path)
        return trainer

    path = folder / "small.ckpt"
    fit(16, 1000, [], None).save_checkpoint(path)
    curves = {}
    for name in choices:
        watch, options, start = Watch(score, 5), CHOICES[name], without_optimizer(path) if name in RESET else path
        growing: list[Callback] = [ArchTransfer(**options)] if options else []
        fit(64 if options else 16, 1000 + LENGTH["digits"], [*growing, watch], start)
        curves[name] = watch.curve
    return curves


def follow_agent(task: str, seed: int, folder: Path, choices: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """The curve of every choice."""
    run, path = RUNS[task], folder / "small.ckpt"
    train(make_agent(run, run["small"], seed), run["before"], folder, [], None).save_checkpoint(path)
    curves = {}
    for name in choices:
        watch, options = Watch(lambda agent: mean_return(agent, run["env"]), 16), CHOICES[name]
        start = without_optimizer(path) if name in RESET else path
        agent = make_agent(run, run["large"] if options else run["small"], seed + 100)
        growing: list[Callback] = [ArchTransfer(**options)] if options else []
        train(agent, run["before"] + LENGTH[task], folder, [*growing, watch], start)
        curves[name] = watch.curve
    return curves


def summarise(curve: list[tuple[int, float]]) -> dict[str, float]:
    """The worst drop below the score at growth, the steps until it is made good, and the gain at the end.

    The end is the mean of the last quarter. A drop that is not made good counts the whole curve.
    """
    start, scores = curve[0][1], [score for _, score in curve]
    worst = min(range(len(curve)), key=lambda number: scores[number])
    healed = next((steps for steps, score in curve[worst:] if score >= start), curve[-1][0])
    return {
        "drop": start - scores[worst],
        "steps": healed,
        "gain": statistics.fmean(scores[-len(scores) // 4 :]) - start,
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Median, lowest and highest over the seeds, per task and choice."""
    lines = []
    for task, length in LENGTH.items():
        of_task = [row for row in rows if row["task"] == task]
        if not of_task:
            continue
        seeds = len({row["seed"] for row in of_task})
        steps = length if task == "digits" else 16 * length
        lines += [
            f"**{task}** ({SCORES[task]}; {steps} optimizer steps after the growth): "
            f"median (lowest to highest) of {seeds} seeds.",
            "",
            "| optimizer, scope, steps of warm-up | worst drop | steps to recover | gain at the end |",
            "|---|---|---|---|",
        ]
        for name in CHOICES:
            found = [summarise(row["curve"]) for row in of_task if row["choice"] == name]
            lines.append(f"| {name} | " + " | ".join(_spread(found, key) for key in ("drop", "steps", "gain")) + " |")
        lines.append("")
    return "\n".join(lines)


def _spread(found: list[dict[str, float]], key: str) -> str:
    values = [item[key] for item in found]
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def draw(rows: list[dict[str, Any]]) -> Figure:
    """The mean score since the growth, a panel per task."""
    shown = ("reset", "reset, all, 100", "transfer", "asymmetric, new, 100", "no growth")
    tasks = [task for task in LENGTH if any(row["task"] == task for row in rows)]
    figure = Figure(figsize=(4 * len(tasks), 3), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for name in shown:
            curves = [row["curve"] for row in rows if row["task"] == task and row["choice"] == name]
            steps = [point[0] for point in curves[0]]
            axes.plot(
                steps,
                [statistics.fmean(curve[number][1] for curve in curves) for number in range(len(steps))],
                label=name,
            )
        axes.set_title(f"{task}: {SCORES[task]}", fontsize=9)
        axes.set_xlabel("optimizer steps since the growth", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


def main() -> None:
    """Run all seeds and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="small runs per task")
    parser.add_argument("--tasks", nargs="+", default=list(LENGTH), choices=list(LENGTH))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    file = RESULTS / "optimizer_choices.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    rows = [row for row in rows if row["task"] not in options.tasks]
    for task in options.tasks:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                follow = follow_digits if task == "digits" else lambda *own, task=task: follow_agent(task, *own)
                for name, curve in follow(seed, Path(folder), CHOICES).items():
                    rows.append({"task": task, "seed": seed, "choice": name, "curve": curve})
                    print(task, seed, name, summarise(curve), flush=True)
    file.write_text(json.dumps(rows))
    (RESULTS / "optimizer_choices.md").write_text(as_markdown(rows))
    draw(rows).savefig(RESULTS / "optimizer_choices.png", dpi=110)


if __name__ == "__main__":
    main()
