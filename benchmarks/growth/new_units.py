"""Does every new unit work? What becomes of new entries after a growth, by strategy, on the language model.

Run `python benchmarks/growth/new_units.py` (about 6 minutes on one core); it prints its table and writes
results/new_units.md and .json.

A small GPT learns for 800 steps and grows to twice its width; then the large one learns for 400. Of all new weights the
share that has moved; of hidden units the share that is dormant (mean activation at most 0.025 of the layer's) and the
effective rank, over the layers; the share of gradient and update that new entries have in a step at the end.
"""

import json
import statistics
from itertools import islice
from typing import Any

import torch
from language_model import TASK, validate
from paired import RESULTS
from rich.progress import track
from torch import nn

from lightning_grow import grow
from lightning_grow.monitor.sample import Sample

STRATEGIES = ("preserve", "net2wider", "copy_and_extend", "interpolate", "zero_pad", "random")
BEFORE, AFTER, RATE, SEEDS = 800, 400, 2e-3, (1, 2)
COLUMNS = (
    "loss at the growth",
    "loss",
    "moved",
    "dormant_share",
    "effective_rank",
    "new_gradient_share",
    "new_update_share",
)


def make(width: int, seed: int) -> Any:
    """A GPT."""
    torch.manual_seed(seed)
    return TASK.model(**dict(TASK.large) | {"width": width}, grow_step=0, total=1, costs=(1.0, 1.0))


def learn(model: nn.Module, seed: int, first: int, steps: int, new: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Train; what the last step shows."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    batches = islice(TASK.batches(seed, first + steps), first, None)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100)
        sample = Sample(model, 0.025, new) if step == steps - 1 else None
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        if sample:
            sample.take_gradients(model)
        optimizer.step()
    return {name: value.item() for name, value in sample.close(model).items()} if sample else {}


def measure(strategy: str | None, seed: int) -> dict[str, float]:
    """One growth; without a strategy the large model from scratch, for as many steps."""
    large, new, found = make(64, seed + 100), {}, {}
    if strategy is not None:
        small = make(32, seed)
        learn(small, seed, 0, BEFORE, {})
        report = grow(small, large, strategy=strategy, verify=False)
        new = {name: report.plan.new_entries(name) for name, item in report.plan.tensors.items() if not item.is_state}
        new = {name: mask for name, mask in new.items() if mask.any()}
        with torch.no_grad():
            found["loss at the growth"] = validate(large)[0] - validate(small)[0]
    start = {name: value.detach().clone() for name, value in large.named_parameters()}
    found |= learn(large, seed, BEFORE, AFTER, new)
    with torch.no_grad():
        found["loss"] = validate(large)[0]
    moved = [(value - start[name]).abs()[new[name]] > 0 for name, value in large.named_parameters() if name in new]
    return found | ({"moved": torch.cat(moved).float().mean().item()} if moved else {})


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    jobs = [(strategy, seed) for strategy in (*STRATEGIES, None) for seed in SEEDS]
    found = {f"{name or 'from scratch'}/{seed}": measure(name, seed) for name, seed in track(jobs, "growing")}
    (RESULTS / "new_units.json").write_text(json.dumps(found))
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in (*STRATEGIES, "from scratch"):
        rows = [found[f"{name}/{seed}"] for seed in SEEDS]
        cells = [
            f"{statistics.fmean(row[column] for row in rows):.3f}" if column in rows[0] else "" for column in COLUMNS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (RESULTS / "new_units.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
