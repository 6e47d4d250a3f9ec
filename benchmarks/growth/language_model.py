"""Does growing a language model pay? A byte-level GPT on the Python standard library's sources, at equal FLOPs.

Run `python benchmarks/growth/language_model.py --seeds 5` (about 50 minutes of one core a seed; `--workers 2` for two).
It writes results/language_model.json after each run, so that a second call goes on where the first ended, and at the
end language_model.md and .png. Every run has its learning rate fall to 0 at its own end; runs of a seed share data and
order.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_grow import Block as NewEntries
from lightning_grow import GrowthSchedule, Strategy

RESULTS = Path(__file__).parent / "results"
LENGTH, BATCH, HEAD = 128, 8, 32
LARGE = {"width": 64, "depth": 4}
BUDGET = 4000  # steps of the large model
LEARNING_RATE, WARM_UP, EVERY = 2e-3, 100, 200


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        start: What it begins with, in place of the large model's.
        grow_at: Share of the budget after which it grows into the large one; None never.
        budget: Share of the whole budget.
        strategy: How weights grow.
        optimizer: What becomes of the moments.
    """

    start: tuple[tuple[str, int], ...] = ()
    grow_at: float | None = None
    budget: float = 1.0
    strategy: str = "preserve"
    optimizer: str = "reset"


NARROW, SHALLOW = ("width", 32), ("depth", 2)
RUNS = {
    "large from scratch": Run(),
    "shallow alone": Run((SHALLOW,)),
    "depth x2": Run((SHALLOW,), 0.2),
    "depth x2, 0.7 of the budget": Run((SHALLOW,), 0.2, budget=0.7),
    "depth x2, 0.5 of the budget": Run((SHALLOW,), 0.2, budget=0.5),
    "depth x2 after 0.1": Run((SHALLOW,), 0.1),
    "depth x2 after 0.4": Run((SHALLOW,), 0.4),
    "depth x2, moments moved": Run((SHALLOW,), 0.2, optimizer="transfer"),
    "depth x2, asymmetric": Run((SHALLOW,), 0.2, optimizer="asymmetric"),
    "depth x2, blocks stacked": Run((SHALLOW,), 0.2, strategy="stack"),
    "narrow alone": Run((NARROW,)),
    "width x2": Run((NARROW,), 0.2),
    "width x2, net2wider": Run((NARROW,), 0.2, strategy="net2wider"),
    "width x2, copy_and_extend": Run((NARROW,), 0.2, strategy="copy_and_extend"),
    "width x2, asymmetric": Run((NARROW,), 0.2, optimizer="asymmetric"),
    "width and depth x2": Run((NARROW, SHALLOW), 0.2),
}
SHOWN = ("large from scratch", "shallow alone", "depth x2")


class Stack(Strategy):
    """New blocks are copies of the old ones, in their order: the literature's baseline, which loses the function.

    References: Du et al., "Stacking your Transformers" (2024), G_stack.
    """

    name = "stack"

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.model, self.depth = model, depth

    def new_layer(self, block: NewEntries) -> Tensor:
        """The tensor of the block `depth` before."""
        parts = block.name.split(".")
        return self.model.get_parameter(".".join([parts[0], str(int(parts[1]) % self.depth), *parts[2:]])).detach()


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, length, width)` to the same."""
        seen, layers = self.norm1(x), (self.queries, self.keys, self.values)
        heads = (layer(seen).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in layers)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(lightning.LightningModule):
    """Predicts the next byte.

    Args:
        width: Of the stream.
        depth: Blocks.
        grow_step: When it becomes the large model; the learning rate knows what each step costs.
        total: Steps until its learning rate is 0.
        costs: FLOPs of a step before and after.
    """

    def __init__(self, width: int, depth: int, grow_step: int, total: int, costs: tuple[float, float]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        nn.init.normal_(self.tokens.weight, std=0.02)  # as GPT-2
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        self.example_input_array = torch.arange(2 * LENGTH, device="cpu").view(2, LENGTH) % 256

    def forward(self, tokens: Tensor) -> Tensor:
        """`(batch, length)` to logits `(batch, length, 256)`."""
        x = self.tokens(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def spent(self, step: int) -> float:
        """FLOPs of the first steps."""
        before, after = self.hparams.costs
        return min(step, self.hparams.grow_step) * before + max(0, step - self.hparams.grow_step) * after

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The mean cross-entropy in nats."""
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> Any:
        """AdamW; warm-up, then linearly to 0 over what is left of the compute."""
        optimizer = torch.optim.AdamW(self.parameters(), LEARNING_RATE)
        whole = self.spent(self.hparams.total)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / WARM_UP) * (1 - self.spent(step) / whole)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Windows:
    """Batches of bytes from random places, the same for every run of a seed."""

    def __init__(self, data: np.ndarray, seed: int, steps: int) -> None:
        self.data, self.seed, self.steps = data, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        generator = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            starts = generator.integers(len(self.data) - LENGTH - 1, size=BATCH)
            yield torch.from_numpy(self.data[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int64))


class Curve(lightning.Callback):
    """Validates every few steps, around a growth and at the end: FLOPs, CPU seconds of training, loss."""

    def __init__(self, windows: Tensor, total: int) -> None:
        self.windows, self.total, self.rows, self.outside, self.start = windows, total, [], 0.0, time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: GPT, *_: Any) -> None:
        """After the schedule, which grows in the same hook."""
        step, grown = trainer.global_step, pl_module.hparams.grow_step
        if step % EVERY == 0 or step in (self.total, grown, grown - 1):
            self.note(pl_module, step)

    @torch.no_grad()
    def note(self, module: GPT, step: int) -> None:
        """Validate."""
        began = time.process_time()
        losses = [module.training_step(part, 0).item() for part in self.windows.split(32)]
        self.outside += time.process_time() - began
        seconds = time.process_time() - self.start - self.outside
        self.rows.append([module.spent(step), seconds, statistics.fmean(losses)])


def read_bytes() -> tuple[np.ndarray, np.ndarray]:
    """The standard library's sources: training bytes, and those of every twentieth file."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) + sorted(
        path for path in Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py") if "site-packages" not in path.parts
    )
    parts = [path.read_bytes() for path in files]
    train, held_out = (
        b"".join(part for index, part in enumerate(parts) if (index % 20 == 0) == held) for held in (0, 1)
    )
    return np.frombuffer(train, np.uint8), np.frombuffer(held_out, np.uint8)


def cost(width: int, depth: int) -> float:
    """FLOPs of a training step, counted by torch."""
    model = GPT(width, depth, 0, 1, (1.0, 1.0))
    with FlopCounterMode(display=False) as counter:
        model.training_step(torch.zeros(BATCH, LENGTH + 1, dtype=torch.int64), 0).backward()
    return float(counter.get_total_flops())


def train(name: str, seed: int) -> dict[str, Any]:
    """One run."""
    run = RUNS[name]
    sizes = LARGE | dict(run.start)
    costs = cost(**sizes), cost(**LARGE)
    whole = BUDGET * costs[1]
    grow_step = round(run.grow_at * whole / costs[0]) if run.grow_at is not None else 10**9
    left = run.budget * whole - min(grow_step * costs[0], run.budget * whole)
    total = round(grow_step + left / costs[1]) if run.grow_at is not None else round(run.budget * whole / costs[0])
    data, held_out = read_bytes()
    starts = np.random.default_rng(0).integers(len(held_out) - LENGTH - 1, size=256)
    windows = torch.from_numpy(held_out[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int64))
    lightning.seed_everything(seed, verbose=False)
    model = GPT(**sizes, grow_step=grow_step, total=total, costs=costs)
    curve = Curve(windows, total)
    strategy = Stack(model, sizes["depth"]) if run.strategy == "stack" else run.strategy
    choices: dict[str, Any] = {"strategy": strategy, "optimizer": run.optimizer, "scheduler": "keep"}
    growing = [] if run.grow_at is None else [GrowthSchedule([LARGE], at=[grow_step], **choices)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=total, callbacks=[*growing, curve], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(model, Windows(data, seed, total))
    return {"curve": curve.rows, "grown at": grow_step * costs[0] if growing else None}


def reached(curve: list[list[float]], loss: float) -> float | None:
    """FLOPs at which a validated loss is first this low, interpolated; None if it never is."""
    for (before, _, high), (after, _, low) in itertools.pairwise(curve):
        if low <= loss:
            return after if high <= loss else before + (after - before) * (high - loss) / (high - low)
    return None


def at_growth(run: dict[str, Any]) -> float | None:
    """How much the loss changed in the step that grew."""
    if run["grown at"] is None:
        return None
    flops = [row[0] for row in run["curve"]]
    index = min(range(len(flops)), key=lambda place: abs(flops[place] - run["grown at"]))
    return run["curve"][index][2] - run["curve"][index - 1][2]


def table(found: dict[str, Any], seeds: int) -> list[str]:
    """Final loss, by how much it is below that of the large model from scratch (paired), the loss at growth, time."""
    base = [found[f"large from scratch/{seed}"]["curve"][-1][2] for seed in range(1, seeds + 1)]
    lines = ["| | FLOPs | final loss | below large from scratch, by seed | change at growth | CPU s |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in RUNS:
        runs = [found[f"{name}/{seed}"] for seed in range(1, seeds + 1)]
        last = [run["curve"][-1][2] for run in runs]
        gains = ", ".join(f"{scratch - loss:+.3f}" for scratch, loss in zip(base, last, strict=True))
        jumps = [jump for run in runs if (jump := at_growth(run)) is not None]
        jump = f"{statistics.fmean(jumps):+.3f}" if jumps else ""
        seconds = statistics.median(run["curve"][-1][1] for run in runs)
        spread = f"{statistics.fmean(last):.4f} ({min(last):.4f} to {max(last):.4f})"
        lines.append(f"| {name} | {RUNS[name].budget:.1f} | {spread} | {gains} | {jump} | {seconds:.0f} |")
    return [*lines, "", *saved(found, seeds)]


def saved(found: dict[str, Any], seeds: int) -> list[str]:
    """FLOPs with which growing reaches the large model's loss: between the runs that end at 0.5, 0.7 and 1."""
    shares = []
    for seed in range(1, seeds + 1):
        ends = [
            found[f"{name}/{seed}"]["curve"][-1]
            for name in ("depth x2, 0.5 of the budget", "depth x2, 0.7 of the budget", "depth x2")
        ]
        scratch = found[f"large from scratch/{seed}"]["curve"][-1]
        flops = reached([[0.0, 0.0, float("inf")], *ends], scratch[2])
        shares.append("never" if flops is None else f"{1 - flops / scratch[0]:.0%}")
    return [f"FLOPs saved to the loss of the large model from scratch, by seed: {', '.join(shares)}."]


def draw(found: dict[str, Any], seeds: int) -> None:
    """Loss over compute: three curves, the growth marked."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(SHOWN, ("C3", "0.55", "C0"), strict=True):
        runs = [found[f"{name}/{seed}"] for seed in range(1, seeds + 1)]
        rows = list(zip(*(run["curve"] for run in runs), strict=True))
        losses = [[loss for _, _, loss in row] for row in rows]
        flops = [row[0][0] for row in rows]
        axes.plot(flops, list(map(statistics.fmean, losses)), color=color, label=name)
        axes.fill_between(flops, list(map(min, losses)), list(map(max, losses)), color=color, alpha=0.2, linewidth=0)
        if runs[0]["grown at"]:
            axes.axvline(runs[0]["grown at"], color=color, linestyle="--", linewidth=0.8)
            axes.annotate(" grown", (runs[0]["grown at"], 0.93), xycoords=("data", "axes fraction"), color=color)
    axes.set(xlabel="training FLOPs", ylabel="validation loss (nats a byte)", ylim=(None, 2.6))
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "language_model.png", dpi=150)


def main() -> None:
    """Train what is missing, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 1, 2, ...")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, one thread each")
    given = parser.parse_args()
    if given.worker:
        torch.set_num_threads(1)
        print(json.dumps(train(given.worker[0], int(given.worker[1]))))
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "language_model.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    jobs = [f"{name}/{seed}" for seed in range(1, given.seeds + 1) for name in RUNS]

    def work(job: str) -> tuple[str, Any]:
        command = [sys.executable, "-W", "ignore", __file__, "--worker", *job.split("/")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return job, json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(given.workers) as pool:
        waiting = [pool.submit(work, job) for job in jobs if job not in found]
        for done in track(as_completed(waiting), description="training", total=len(waiting)):
            job, found[job] = done.result()
            path.write_text(json.dumps(found))
    lines = table(found, given.seeds)
    print("\n".join(lines))
    (RESULTS / "language_model.md").write_text("\n".join(lines) + "\n")
    draw(found, given.seeds)


if __name__ == "__main__":
    main()
