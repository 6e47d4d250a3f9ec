"""Runs with paired seeds at equal FLOPs, the learning rate of each falling to 0 at its own end.

A benchmark gives a `Task`, names its runs and calls `main`. Runs go side by side in processes of their own; each result
is written when it is there, so that a second call goes on where the first ended.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

from lightning_grow import GrowthSchedule

RESULTS = Path(__file__).parent / "results"
Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        start: What it begins with, in place of the large model's.
        grow_at: Share of the budget after which it grows into the large one; None never.
        budget: Share of the whole budget.
        strategy: How weights grow: a name, or what makes a strategy of the model before it grows.
        optimizer: What becomes of the moments.
    """

    start: Sizes = ()
    grow_at: float | None = None
    budget: float = 1.0
    strategy: Any = "preserve"
    optimizer: str = "reset"


class Budgeted(lightning.LightningModule):
    """AdamW; a warm-up, then linearly to 0 over what is left of the compute.

    Hyperparameters: grow_step, when it becomes the large model; total, steps until its learning rate is 0; costs, FLOPs
    of a step before and after.
    """

    learning_rate, warm_up = 2e-3, 100

    def spent(self, step: int) -> float:
        """FLOPs of the first steps."""
        before, after = self.hparams.costs
        return min(step, self.hparams.grow_step) * before + max(0, step - self.hparams.grow_step) * after

    def configure_optimizers(self) -> Any:
        """The learning rate knows what each step costs."""
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate)
        whole = self.spent(self.hparams.total)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / self.warm_up) * (1 - self.spent(step) / whole)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Args:
        name: Of the files in results/.
        model: A `Budgeted` module.
        large: Its sizes.
        batches: Makes the training batches of a seed and a number of steps, in order.
        validate: The numbers of a module on held-out data, the loss first.
        example: A batch, to count the FLOPs of a step.
        budget: Steps of the large model.
        every: Steps between validations.
        labels: Of the numbers that `validate` gives.
    """

    name: str
    model: type[Budgeted]
    large: Mapping[str, int]
    batches: Callable[[int, int], Iterable[Any]]
    validate: Callable[[Any], Sequence[float]]
    example: Any
    budget: int
    every: int
    labels: Sequence[str] = ("loss",)

    def cost(self, **sizes: int) -> float:
        """FLOPs of a training step, counted by torch."""
        model = self.model(**sizes, grow_step=0, total=1, costs=(1.0, 1.0))
        with FlopCounterMode(display=False) as counter:
            model.training_step(self.example, 0).backward()
        return float(counter.get_total_flops())


class Curve(lightning.Callback):
    """Validates every few steps, around a growth and at the end: FLOPs, CPU seconds of training, the numbers."""

    def __init__(self, task: Task, total: int) -> None:
        self.task, self.total, self.rows, self.outside, self.start = task, total, [], 0.0, time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Budgeted, *_: Any) -> None:
        """After the schedule, which grows in the same hook."""
        step, grown = trainer.global_step, pl_module.hparams.grow_step
        if step % self.task.every == 0 or step in (self.total, grown, grown - 1):
            self.note(pl_module, step)

    @torch.no_grad()
    def note(self, module: Budgeted, step: int) -> None:
        """Validate."""
        began, training = time.process_time(), module.training
        numbers = self.task.validate(module.eval())
        module.train(training)
        self.outside += time.process_time() - began
        seconds = time.process_time() - self.start - self.outside
        self.rows.append([module.spent(step), seconds, *numbers])


def train(task: Task, run: Run, seed: int) -> dict[str, Any]:
    """One run."""
    sizes = dict(task.large) | dict(run.start)
    costs = task.cost(**sizes), task.cost(**task.large)
    whole = task.budget * costs[1]
    grow_step = round(run.grow_at * whole / costs[0]) if run.grow_at is not None else 10**9
    left = run.budget * whole - min(grow_step * costs[0], run.budget * whole)
    total = round(grow_step + left / costs[1]) if run.grow_at is not None else round(run.budget * whole / costs[0])
    lightning.seed_everything(seed, verbose=False)
    model = task.model(**sizes, grow_step=grow_step, total=total, costs=costs)
    curve = Curve(task, total)
    strategy = run.strategy if isinstance(run.strategy, str) else run.strategy(model)
    choices: dict[str, Any] = {"strategy": strategy, "optimizer": run.optimizer, "scheduler": "keep"}
    growing = [] if run.grow_at is None else [GrowthSchedule([dict(task.large)], at=[grow_step], **choices)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=total, callbacks=[*growing, curve], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(model, task.batches(seed, total))
    return {"curve": curve.rows, "grown at": grow_step * costs[0] if growing else None}


# ---- what came out
def reached(curve: Sequence[Sequence[float]], loss: float) -> tuple[float, float] | None:
    """FLOPs and seconds at which a validated loss is first this low, interpolated; None if it never is."""
    for (*before, high), (*after, low) in itertools.pairwise(row[:3] for row in curve):
        if low <= loss:
            part = 0.0 if high <= loss else (high - loss) / (high - low)
            flops, seconds = (start + (end - start) * part for start, end in zip(before, after, strict=True))
            return flops, seconds
    return None


def at_growth(run: Mapping[str, Any]) -> float | None:
    """How much the loss changed in the step that grew."""
    if run["grown at"] is None:
        return None
    flops = [row[0] for row in run["curve"]]
    index = min(range(len(flops)), key=lambda place: abs(flops[place] - run["grown at"]))
    return float(run["curve"][index][2] - run["curve"][index - 1][2])


def table(found: Mapping[str, Any], runs: Mapping[str, Run], scratch: str, labels: Sequence[str]) -> list[str]:
    """The numbers at the end, by how much the loss is below that of the large model from scratch (paired), the time."""
    seeds = range(1, 1 + max(int(job.rpartition("/")[2]) for job in found))
    base = {seed: found[f"{scratch}/{seed}"]["curve"][-1][2] for seed in seeds if f"{scratch}/{seed}" in found}
    heads = [f"{label} at the end" for label in labels]
    titles = ["", "FLOPs", *heads, f"below {scratch}, by seed", "change at growth", "CPU s"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, run in runs.items():
        own = {seed: found[f"{name}/{seed}"] for seed in base if f"{name}/{seed}" in found}
        if not own:
            continue
        last = [item["curve"][-1] for item in own.values()]
        spreads = [_spread([row[2 + number] for row in last]) for number in range(len(labels))]
        gains = ", ".join(f"{base[seed] - item['curve'][-1][2]:+.3f}" for seed, item in own.items())
        jumps = [jump for item in own.values() if (jump := at_growth(item)) is not None]
        jump = f"{statistics.fmean(jumps):+.3f}" if jumps else ""
        seconds = statistics.median(row[1] for row in last)
        lines.append(f"| {name} | {run.budget:.1f} | {' | '.join(spreads)} | {gains} | {jump} | {seconds:.0f} |")
    return lines


def _spread(numbers: Sequence[float]) -> str:
    return f"{statistics.fmean(numbers):.4f} ({min(numbers):.4f} to {max(numbers):.4f})"


def saved(found: Mapping[str, Any], scratch: str, names: Sequence[str]) -> str:
    """What growing saves until it has the loss of the large model from scratch.

    Args:
        found: All results.
        scratch: The large model's run.
        names: The same growth with ever more of the budget; between their ends is interpolated.
    """
    shares = []
    for job in [job for job in found if job.startswith(f"{scratch}/")]:
        seed, (*its, loss) = job.rpartition("/")[2], found[job]["curve"][-1][:3]
        ends = [found[f"{name}/{seed}"]["curve"][-1] for name in names if f"{name}/{seed}" in found]
        if len(ends) == len(names):
            need = reached(ends, loss)
            said = need and ", ".join(f"{1 - mine / own:.0%}" for mine, own in zip(need, its, strict=True))
            shares.append(said or "nothing")
    return f"FLOPs, seconds saved by {names[-1]} to the loss of {scratch}, by seed: {'; '.join(shares)}."


def draw(found: Mapping[str, Any], shown: Sequence[str], label: str, path: Path) -> None:
    """Loss over compute and over time: three curves, the growth marked."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, column, xlabel in zip(
        figure.subplots(1, 2, sharey=True), (0, 1), ("training FLOPs", "CPU s"), strict=True
    ):
        for name, color in zip(shown, ("C3", "0.55", "C0"), strict=True):
            curves = [item["curve"] for job, item in found.items() if job.rpartition("/")[0] == name]
            rows = list(zip(*curves, strict=False))
            across = [statistics.fmean(row[column] for row in at) for at in rows]
            losses = [[row[2] for row in at] for at in rows]
            axes.plot(across, list(map(statistics.fmean, losses)), color=color, label=name)
            axes.fill_between(
                across, list(map(min, losses)), list(map(max, losses)), color=color, alpha=0.2, linewidth=0
            )
            grown = next((item["grown at"] for job, item in found.items() if job.rpartition("/")[0] == name), None)
            if grown:
                place = min(range(len(rows)), key=lambda at: abs(rows[at][0][0] - grown))
                axes.axvline(across[place], color=color, linestyle="--", linewidth=0.8)
                axes.annotate(" grown", (across[place], 0.93), xycoords=("data", "axes fraction"), color=color)
        axes.set(xlabel=xlabel)
    first = figure.axes[0]
    low = min(row[2] for item in found.values() for row in item["curve"])
    high = statistics.median(row[2] for item in found.values() for row in item["curve"])
    first.set(ylabel=label, ylim=(low - 0.1 * (high - low), low + 3 * (high - low)))
    first.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(
    task: Task, runs: Mapping[str, Run], shown: Sequence[str], ylabel: str, growths: Sequence[str], doc: str
) -> None:
    """Train what is missing, print, write and draw.

    Args:
        task: What is learnt.
        runs: By name; the first is the large model from scratch.
        shown: The three of the figure: from scratch, small alone, grown.
        ylabel: What the figure's losses are.
        growths: The runs of `saved`.
        doc: Of the script.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 1, 2, ...")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, one thread each")
    given = parser.parse_args()
    if given.worker:
        torch.set_num_threads(1)
        return print(json.dumps(train(task, runs[given.worker[0]], int(given.worker[1]))))
    path = RESULTS / f"{task.name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def work(job: str) -> tuple[str, Any]:
        command = [sys.executable, "-W", "ignore", sys.argv[0], "--worker", *job.split("/")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return job, json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(given.workers) as pool:
        jobs = [f"{name}/{seed}" for seed in range(1, given.seeds + 1) for name in runs]
        waiting = [pool.submit(work, job) for job in jobs if job not in found]
        for done in track(as_completed(waiting), description="training", total=len(waiting)):
            job, found[job] = done.result()
            path.write_text(json.dumps(found))
    lines = [*table(found, runs, next(iter(runs)), task.labels), "", saved(found, next(iter(runs)), growths)]
    print("\n".join(lines))
    (RESULTS / f"{task.name}.md").write_text("\n".join(lines) + "\n")
    draw(found, shown, ylabel, RESULTS / f"{task.name}.png")
