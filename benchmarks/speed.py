"""Measure planning against width, layers and steps, the import, and applying a plan against `load_state_dict`.

Run `python benchmarks/speed.py` (about four minutes); it writes benchmarks/results/speed.md.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_grow import plan_growth
from lightning_grow.apply.apply import empty_state, grow_state, write_state

INPUTS = (torch.randn(2, 7, 5),)


def encoder(width: int, heads: int, layers: int) -> nn.Module:
    """A pre-norm encoder of torch's own layers."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, width), body, nn.Linear(width, 3))


def seconds(work: Callable[[], object]) -> float:
    """One timed call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, list[float]]:
    """The times of every job, in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, work in jobs.items():
            spent = seconds(work)
            if number:
                times[name].append(spent)
    return times


class Loop(nn.Module):
    """A cell called once a step, from a Python loop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(5, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Of x (batch, steps, 5), (batch, 3)."""
        state = x.new_zeros(len(x), self.cell.hidden_size)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def planning() -> list[str]:
    """Median seconds of a plan: against width, layers and steps."""
    jobs: dict[str, Callable[[], object]] = {}
    with torch.device("meta"):
        for layers, width in ((12, 64), (12, 256), (12, 4096), (24, 256)):
            pair = encoder(width, 8, layers), encoder(width * 3 // 2, 12, layers)
            name = f"an encoder of {layers} layers, d = {width} to {width * 3 // 2}"
            jobs[name] = lambda pair=pair: plan_growth(*pair, example_inputs=INPUTS)  # type: ignore[misc]
        for steps in (100, 200):
            pair, inputs = (Loop(16), Loop(24)), (torch.randn(2, steps, 5),)
            jobs[f"a loop of {steps} steps"] = lambda pair=pair, x=inputs: plan_growth(*pair, example_inputs=x)  # type: ignore[misc]
    lines = ["| planning | median s | lowest to highest |", "|---|---|---|"]
    return [*lines, *_rows(interleaved(jobs)), ""]


def importing() -> list[str]:
    """Seconds of a new interpreter that imports torch, and of one that imports this library."""
    jobs = {f"import {name}": lambda name=name: _interpreter(name) for name in ("torch", "lightning_grow")}
    times = interleaved(jobs, rounds=15)
    ratio = statistics.median(times["import lightning_grow"]) / statistics.median(times["import torch"])
    lines = ["| a new interpreter | median s | lowest to highest |", "|---|---|---|"]
    return [*lines, *_rows(times), "", f"The library takes {ratio:.2f} times as long as torch, which it imports.", ""]


def _interpreter(package: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {package}"], check=True)


def _rows(times: dict[str, list[float]]) -> list[str]:
    return [
        f"| {name} | {statistics.median(items):.2f} | {min(items):.2f} to {max(items):.2f} |"
        for name, items in times.items()
    ]


def applying() -> list[str]:
    """Times relative to load_state_dict of as many bytes; no trace, no check."""
    source, target = encoder(1024, 8, 4), encoder(1536, 12, 4)
    old, live = dict(source.state_dict()), dict(target.state_dict())
    copy = {name: tensor.clone() for name, tensor in live.items()}
    fresh: dict[str, Tensor] = empty_state(live)
    jobs: dict[str, Callable[[], object]] = {"load_state_dict": lambda: target.load_state_dict(copy)}
    for name in ("preserve", "net2wider"):
        plan = plan_growth(source, target, strategy=name, example_inputs=INPUTS)
        jobs[f"{name}, in place"] = lambda plan=plan: write_state(plan, old, live, live, 0)  # type: ignore[misc]
        jobs[f"{name}, into a second copy"] = lambda plan=plan: write_state(  # type: ignore[misc]
            plan, old, copy, fresh, 0
        )
        jobs[f"{name}, into new memory"] = lambda plan=plan: grow_state(plan, old, copy)  # type: ignore[misc]
    jobs["clone into new memory"] = lambda: {name: tensor.clone() for name, tensor in copy.items()}
    times = interleaved(jobs)
    base = statistics.median(times["load_state_dict"])
    size = sum(tensor.numel() * tensor.element_size() for tensor in live.values()) / 2**20
    lines = [f"| applying a plan, target of {size:.0f} MiB | median ms | x load_state_dict |", "|---|---|---|"]
    for name, items in times.items():
        median = statistics.median(items)
        lines.append(f"| {name} | {1000 * median:.0f} | {median / base:.1f} |")
    return [*lines, ""]


def main() -> None:
    """Measure and write the tables."""
    torch.set_num_threads(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = [*planning(), *importing(), *applying()]
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    lines.append(
        f"Peak memory above the imports: {used:.0f} MiB, with three copies of the target held by the benchmark."
    )
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "speed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
