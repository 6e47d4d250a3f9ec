"""The whole story on real prices: a small agent that grows twice, beside no growth and the large one from scratch.

Run `python benchmarks/staged_market.py` (about 8 minutes on one core). All have as many environment steps, paired seeds
and a learning rate that falls to 0; `GrowthMonitor` says what it saw. It writes benchmarks/results/staged_market.md,
.json and .png.
"""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from matplotlib.figure import Figure
from rich.progress import track

from lightning_grow import GrowthMonitor, GrowthSchedule
from lightning_grow.rl import PPO, env_spaces, evaluate
from lightning_grow.rl.evaluate import unseen

RESULTS = Path(__file__).parent / "results"
ENV = {"id": "lightning_grow/Market-v0"}
SMALL, LARGE = [128, 128, 64], [256, 256, 128]
STAGES, AT = [{"hidden_dims": [192, 192, 96]}, {"hidden_dims": LARGE}], [640, 1280]
EPOCHS = 120
LEARNING = {"num_envs": 8, "num_steps": 256, "total_iterations": EPOCHS}
KINDS: dict[str, tuple[list[int], bool]] = {
    "grown in two stages": (SMALL, True),
    "small, no growth": (SMALL, False),
    "large from scratch": (LARGE, False),
}


def train(kind: str, seed: int) -> dict[str, Any]:
    """Train one agent; return its curve, what it earns, and what was said of its growths."""
    hidden_dims, grows = KINDS[kind]
    lightning.seed_everything(seed, verbose=False)
    agent = PPO(*env_spaces(ENV), env=ENV, hidden_dims=hidden_dims, seed=seed, **LEARNING)
    monitor = GrowthMonitor("episode_return", mode="max")
    # The schedule goes on: all three learn at the same rate at the same step.
    growing = [GrowthSchedule(STAGES, at=AT, optimizer="asymmetric")] if grows else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, callbacks=[*growing, monitor], accelerator="cpu", logger=False, default_root_dir=folder,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(agent)
    growths = []
    for item in monitor.recoveries:
        after = [value for step, value in monitor.curve if step > item.step]
        growths.append({"before": statistics.fmean(item.before), "at": after[0], "after": after[9], "said": item.said})
    return {
        "curve": monitor.curve,
        "training return": monitor.curve[-1][1],
        "unseen prices": evaluate(agent, unseen(ENV), 1, seed=0, greedy=True)[0],
        "growths": growths,
    }


def table(found: dict[str, Any], seeds: int) -> list[str]:
    """What all earn, and each growth in numbers and in words."""
    lines = ["| | training return at the end | return on unseen prices, greedy |", "|---|---|---|"]
    for kind in KINDS:
        runs = [found[f"{kind}/{seed}"] for seed in range(1, seeds + 1)]
        cells = [_spread([run[name] for run in runs]) for name in ("training return", "unseen prices")]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += ["", "| seed, growth | before | first value after | tenth value after | what GrowthMonitor says |"]
    lines += ["|---|---|---|---|---|"]
    for seed in range(1, seeds + 1):
        for number, growth in enumerate(found[f"grown in two stages/{seed}"]["growths"], start=1):
            numbers = " | ".join(f"{growth[name]:.1f}" for name in ("before", "at", "after"))
            lines.append(f"| {seed}, stage {number} | {numbers} | {' '.join(growth['said'])} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def draw(found: dict[str, Any], seeds: int) -> None:
    """Learning curves, the growths marked."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for kind, color in zip(KINDS, ("C0", "0.6", "C3"), strict=True):
        curves = [dict(map(tuple, found[f"{kind}/{seed}"]["curve"])) for seed in range(1, seeds + 1)]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        rows = [[curve[step] for curve in curves] for step in steps]
        axes.plot(steps, list(map(statistics.fmean, rows)), color=color, label=kind)
        axes.fill_between(steps, list(map(min, rows)), list(map(max, rows)), color=color, alpha=0.15, linewidth=0)
    for step in AT:
        axes.axvline(step, color="C0", linestyle="--", linewidth=0.8)
        axes.annotate("grown", (step, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="C0")
    axes.set(xlabel="optimizer steps (128 environment steps each)", ylabel="return, last 100 episodes")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(RESULTS / "staged_market.png", dpi=150)


def main() -> None:
    """Train what is missing, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, 1, 2, ...")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    path = RESULTS / "staged_market.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    jobs = [(kind, seed) for seed in range(1, seeds + 1) for kind in KINDS]
    for kind, seed in track([job for job in jobs if f"{job[0]}/{job[1]}" not in found], description="training"):
        found[f"{kind}/{seed}"] = train(kind, seed)
        path.write_text(json.dumps(found))
    lines = table(found, seeds)
    lines += [
        "",
        f"{SMALL} to {LARGE}; mean (lowest to highest) of {seeds} seeds, {EPOCHS * 8 * 256:,} environment steps.",
    ]
    print("\n".join(lines))
    (RESULTS / "staged_market.md").write_text("\n".join(lines) + "\n")
    draw(found, seeds)


if __name__ == "__main__":
    main()
