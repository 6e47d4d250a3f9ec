"""Measure what growing does to many architectures: naive copies against the library's strategies.

Run `python benchmarks/architectures.py` (about two minutes); it writes benchmarks/results/architectures.md. Errors are
max|f_target - f_source| / max|f_source| in float64 on random inputs; "alive" is the share of new units that a gradient
reaches within two Adam steps after `preserve`, on a batch of the example's size.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "zoo")]

import blocks  # noqa: E402
import families  # noqa: E402
import huggingface  # noqa: E402
import models  # noqa: E402
import routed  # noqa: E402

from lightning_grow import RefusedGrowth, measure_liveness, plan_growth  # noqa: E402
from lightning_grow.grow import transfer  # noqa: E402
from lightning_grow.verify.compare import output_error  # noqa: E402
from lightning_grow.verify.run import outputs  # noqa: E402

Case = tuple[str, str, Callable[[], tuple[nn.Module, nn.Module, dict[str, Any]]]]


def cases() -> Iterator[Case]:
    """Every architecture with what grows in it."""
    for name, pair in models.PAIRS.items():

        def make(pair: models.Pair = pair) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
            source, target, inputs = pair.make()
            return source, target, {"example_inputs": inputs}

        sizes = [str([size for size in item if not callable(size)])[1:-1] for item in (pair.source, pair.target)]
        yield name, " -> ".join(sizes), make
    for name, block in (blocks.BLOCKS | routed.ROUTED | families.FAMILIES).items():
        sizes = [str([size for size in item if not callable(size)])[1:-1] for item in (block.source, block.target)]
        yield name, " -> ".join(sizes), block.make
    for name, what, growth in huggingface.GROWTHS:
        yield name, what, lambda name=name, growth=growth: huggingface.make(name, growth)  # type: ignore[misc]


def naive_error(source: nn.Module, target: nn.Module, options: dict[str, Any]) -> float:
    """The error in the first output of copying every tensor into the top left corner of the target's initial values."""
    old, state = dict(source.state_dict()), {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for name, tensor in state.items():
        if name in old and tensor.dim() == old[name].dim():
            corner = tuple(slice(min(sizes)) for sizes in zip(tensor.shape, old[name].shape, strict=True))
            tensor[corner] = old[name][corner]
    target.load_state_dict(state)
    forward, inputs = options.get("forward"), options["example_inputs"]
    return output_error(outputs(source, inputs, forward)[:1], outputs(target, inputs, forward)[:1])


def row(make: Callable[[], tuple[nn.Module, nn.Module, dict[str, Any]]]) -> list[str]:
    """The measured columns of one case."""
    cells = [f"{naive_error(*make()):.0e}"]
    for strategy in ("zero_pad", "preserve", "net2wider"):
        source, target, options = make()
        try:
            error = transfer(source, target, strategy=strategy, **options).report.max_output_error or 0.0
            cells.append(f"{error:.0e}" if error else "0")
        except RefusedGrowth:
            cells.append("refused")
    try:
        return [*cells, alive(*make())]
    except RuntimeError:  # RWKV's own forward on a CPU writes over what its gradient needs
        return [*cells, "-"]


def alive(source: nn.Module, target: nn.Module, options: dict[str, Any]) -> str:
    """The share of new units that learn after `preserve`."""
    plan = plan_growth(source, target, **options)
    if plan.refused or not plan.groups:
        return "-"
    target.load_state_dict(transfer(source, target, **options).state_dict)
    found = measure_liveness(plan, target, options["example_inputs"], options.get("forward")).values()
    new = sum(group.new for group in found)
    return f"{1 - sum(group.idle for group in found) / new:.0%}"


def main() -> None:
    """Measure every case and write the table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    lines = [
        "| architecture | what grew | naive copy | zero_pad | preserve | net2wider | alive |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, what, make in track(list(cases())):
        lines.append("| " + " | ".join([name, what, *row(make)]) + " |")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "architectures.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
