"""Measure the largest step of a single entry after a growth, in learning rates: new entries against the source's.

A new entry whose second moment is 0 under an old step count gets no bias correction and takes steps of several times
the learning rate. `python benchmarks/overshoot.py` (a minute on one core) trains [32] on scikit-learn's digits for 400
steps, grows to [64] and takes 100 more, with new second moments at 0 (what a zero padding does), at the mean of the
moved ones (`optimizer="transfer"`), and with moments and a warm-up of their own (`optimizer="asymmetric"`). It
writes benchmarks/results/overshoot.md and .png: medians over 5 seeds.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy

from lightning_grow.grow import transfer
from lightning_grow.training_state.moments import AVERAGED_SQUARES
from lightning_grow.training_state.optimizers import carry_optimizers
from lightning_grow.training_state.warmup import Warmup

RESULTS = Path(__file__).parent / "results"
STEPS, BEFORE, SEEDS = 100, 400, 5
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "Adam": lambda parameters: optim.Adam(parameters, lr=1e-3),
    "AdamW, amsgrad": lambda parameters: optim.AdamW(parameters, lr=1e-3, amsgrad=True),
    "NAdam": lambda parameters: optim.NAdam(parameters, lr=1e-3),
    "RAdam": lambda parameters: optim.RAdam(parameters, lr=1e-3),
    "RMSprop": lambda parameters: optim.RMSprop(parameters, lr=1e-3),
    "Adafactor": lambda parameters: optim.Adafactor(parameters, lr=1e-2),
    "Adagrad": lambda parameters: optim.Adagrad(parameters, lr=1e-2),
    "SGD, momentum": lambda parameters: optim.SGD(parameters, lr=0.05, momentum=0.9),
}


def make_net(width: int) -> nn.Sequential:
    """Two layers over 64 pixels."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 64 digits without end."""
    data = load_digits()
    pixels, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    generator = torch.Generator().manual_seed(seed)
    while True:
        picked = torch.randint(len(labels), (64,), generator=generator)
        yield pixels[picked], labels[picked]


def step(net: nn.Module, optimizer: optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    """One step of training."""
    optimizer.zero_grad()
    cross_entropy(net(batch[0]), batch[1]).backward()
    optimizer.step()


def largest_steps(make: Callable[[Any], optim.Optimizer], way: str, seed: int) -> tuple[float, float]:
    """Train small, grow in this way, go on; the largest |update| / lr of the source's entries and of new ones."""
    torch.manual_seed(seed)
    small, data = make_net(32), batches(seed)
    optimizer = make(small.parameters())
    for _ in range(BEFORE):
        step(small, optimizer, next(data))
    large = make_net(64)
    done = transfer(small, large, example_inputs=(next(data)[0],))
    large.load_state_dict(done.state_dict)
    bigger = make(large.parameters())
    checkpoint = {"optimizer_states": [optimizer.state_dict()], "state_dict": large.state_dict()}
    carried = carry_optimizers(checkpoint, large, [bigger], [], done.plan, optimizer="asymmetric")
    bigger.load_state_dict(carried.optimizer_states[0])
    new = {parameter: done.plan.new_entries(name) for name, parameter in large.named_parameters()}
    if way == "zeros":
        _forget_fill(bigger, new)
    if way == "asymmetric":
        Warmup(100, 0.1, "new", fresh=True).attach([bigger], new)
    return _go_on(large, bigger, data, new)


def _forget_fill(optimizer: optim.Optimizer, new: dict[nn.Parameter, Tensor]) -> None:
    for parameter, state in optimizer.state.items():
        for kind in state.keys() & {*AVERAGED_SQUARES}:
            state[kind][new[parameter]] = 0


def _go_on(
    net: nn.Module, optimizer: optim.Optimizer, data: Iterator[tuple[Tensor, Tensor]], new: dict[nn.Parameter, Tensor]
) -> tuple[float, float]:
    largest = [0.0, 0.0]
    for _ in range(STEPS):
        before = {parameter: parameter.detach().clone() for parameter in new}
        step(net, optimizer, next(data))
        for parameter, mask in new.items():
            move = (parameter.detach() - before[parameter]).abs() / optimizer.param_groups[0]["lr"]
            for number, entries in enumerate((move[~mask], move[mask])):
                largest[number] = max(largest[number], float(entries.max()) if len(entries) else 0.0)
    return largest[0], largest[1]


def main() -> None:
    """Write the table and the figure."""
    ways = {"zeros": "v = 0", "transfer": "transfer", "asymmetric": "asymmetric"}
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: {way: [largest_steps(make, way, seed) for seed in range(SEEDS)] for way in ways}
        for name, make in OPTIMIZERS.items()
    }
    lines = ["| optimizer | source entries | new, " + " | new, ".join(ways.values()) + " |", "|---|---|---|---|---|"]
    medians = {
        name: [
            _middle([old for old, _ in found["transfer"]]),
            *(_middle([new for _, new in found[way]]) for way in ways),
        ]
        for name, found in rows.items()
    }
    lines += [
        f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |" for name, values in medians.items()
    ]
    (RESULTS / "overshoot.md").write_text("\n".join(lines) + "\n")
    _draw(medians, ["source", *(f"new, {label}" for label in ways.values())]).savefig(
        RESULTS / "overshoot.png", dpi=110
    )
    print("\n".join(lines))


def _middle(values: list[float]) -> float:
    return float(torch.tensor(values).median())


def _draw(medians: dict[str, list[float]], labels: list[str]) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for number, label in enumerate(labels):
        places = [row + (number - 1.5) * 0.2 for row in range(len(medians))]
        axes.bar(places, [values[number] for values in medians.values()], width=0.2, label=label)
    axes.set_xticks(range(len(medians)), list(medians), fontsize=8)
    axes.set_ylabel("largest |update| / learning rate")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
