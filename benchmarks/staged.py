"""A small agent that grows inside its run, beside no growth and the large one from scratch: real prices, and MinAtar.

Run `python benchmarks/staged.py market` (about 8 minutes on one core) or `minatar` (about 9). All have as many
environment steps, paired seeds and a learning rate that falls to 0; `GrowthMonitor` says what it saw. It writes
benchmarks/results/staged_market.md, .json and .png, or those of minatar.
"""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from growth_in_rl import eyes
from matplotlib.figure import Figure
from rich.progress import track

from lightning_grow import GrowthMonitor, GrowthSchedule
from lightning_grow.rl import PPO, env_spaces, evaluate
from lightning_grow.rl.evaluate import unseen

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Args:
        env: The environment.
        small: What the small agent is built with.
        stages: What it grows to, the last of them the large agent.
        at: Optimizer steps of the growths.
        epochs: Iterations in all.
        learning: What all agents are built with.
        unseen: Whether a part of the environment is held back.
    """

    env: dict[str, Any]
    small: dict[str, Any]
    stages: list[dict[str, Any]]
    at: list[int]
    epochs: int
    learning: dict[str, Any]
    unseen: bool = False


TASKS = {
    "market": Task(
        env={"id": "lightning_grow/Market-v0"},
        small={"hidden_dims": [128, 128, 64]},
        stages=[{"hidden_dims": [192, 192, 96]}, {"hidden_dims": [256, 256, 128]}],
        at=[640, 1280],
        epochs=120,
        learning={"num_envs": 8, "num_steps": 256},
        unseen=True,
    ),
    "minatar": Task(
        env={"id": "MinAtar/Breakout-v1"},
        small={"encoder": eyes(8, 64), "hidden_dims": [32]},
        stages=[{"encoder": eyes(16, 128), "hidden_dims": [64]}],
        at=[1024],
        epochs=122,
        learning={
            "num_envs": 32,
            "num_minibatches": 8,
            "learning_rate": 2.5e-3,
            "activation": "relu",
            "clip_vloss": False,
        },
    ),
}
KINDS = ("grown", "small, no growth", "large from scratch")


def train(task: Task, kind: str, seed: int) -> dict[str, Any]:
    """Train one agent; return its curve, what it earns, and what was said of its growths."""
    lightning.seed_everything(seed, verbose=False)
    sizes = task.stages[-1] if kind == KINDS[2] else task.small
    spaces = env_spaces(task.env, images="encoder" in sizes)
    agent = PPO(*spaces, env=task.env, seed=seed, total_iterations=task.epochs, **task.learning | sizes)
    monitor = GrowthMonitor("episode_return", mode="max")
    # The schedule goes on: all three learn at the same rate at the same step.
    schedule = GrowthSchedule(task.stages, at=task.at, optimizer="asymmetric")
    growing = [schedule] if kind == KINDS[0] else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=task.epochs,
            callbacks=[*growing, monitor],
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(agent)
    growths = []
    for item in monitor.recoveries:
        after = [value for step, value in monitor.curve if step > item.step]
        growths.append({"before": statistics.fmean(item.before), "at": after[0], "after": after[9], "said": item.said})
    found = {"curve": monitor.curve, "training return": monitor.curve[-1][1], "growths": growths}
    if task.unseen:
        found["unseen prices"] = evaluate(agent, unseen(task.env), 1, seed=0, greedy=True)[0]
    return found


def table(task: Task, found: dict[str, Any], seeds: int) -> list[str]:
    """What all earn, and each growth in numbers and in words."""
    names = ["training return", "unseen prices"][: 1 + task.unseen]
    heads = ["training return at the end", "return on unseen prices, greedy"][: 1 + task.unseen]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for kind in KINDS:
        runs = [found[f"{kind}/{seed}"] for seed in range(1, seeds + 1)]
        cells = [_spread([run[name] for run in runs]) for name in names]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += ["", "| seed, growth | before | first value after | tenth value after | what GrowthMonitor says |"]
    lines += ["|---|---|---|---|---|"]
    for seed in range(1, seeds + 1):
        for number, growth in enumerate(found[f"{KINDS[0]}/{seed}"]["growths"], start=1):
            numbers = " | ".join(f"{growth[name]:.1f}" for name in ("before", "at", "after"))
            lines.append(f"| {seed}, stage {number} | {numbers} | {' '.join(growth['said'])} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def draw(task: Task, found: dict[str, Any], seeds: int, path: Path) -> None:
    """Learning curves, the growths marked."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for kind, color in zip(KINDS, ("C0", "0.6", "C3"), strict=True):
        curves = [dict(map(tuple, found[f"{kind}/{seed}"]["curve"])) for seed in range(1, seeds + 1)]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        rows = [[curve[step] for curve in curves] for step in steps]
        axes.plot(steps, list(map(statistics.fmean, rows)), color=color, label=kind)
        axes.fill_between(steps, list(map(min, rows)), list(map(max, rows)), color=color, alpha=0.15, linewidth=0)
    for step in task.at:
        axes.axvline(step, color="C0", linestyle="--", linewidth=0.8)
        axes.annotate("grown", (step, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="C0")
    axes.set(xlabel="optimizer steps", ylabel="return, last 100 episodes")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is missing, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, 1, 2, ...")
    parser.add_argument("task", choices=TASKS)
    given = parser.parse_args()
    task, seeds, path = TASKS[given.task], given.seeds, RESULTS / f"staged_{given.task}.json"
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    jobs = [(kind, seed) for seed in range(1, seeds + 1) for kind in KINDS]
    for kind, seed in track([job for job in jobs if f"{job[0]}/{job[1]}" not in found], description="training"):
        found[f"{kind}/{seed}"] = train(task, kind, seed)
        path.write_text(json.dumps(found))
    lines = table(task, found, seeds)
    sizes = {name: [task.small[name], *(stage[name] for stage in task.stages)] for name in task.small}
    steps = task.epochs * task.learning["num_envs"] * task.learning.get("num_steps", 128)
    lines += ["", f"Sizes {sizes}; mean (lowest to highest) of {seeds} seeds, {steps:,} environment steps."]
    print("\n".join(lines))
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(task, found, seeds, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
