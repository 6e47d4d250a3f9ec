"""How two checkpoints differ: hyperparameters, shapes, values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from lightning_grow.files.hparams import compare_hparams
from lightning_grow.files.record import checkpoint_hparams
from lightning_grow.folding import folded, grouped, pattern
from lightning_grow.formats.weights import Kind, Weights, read_weights
from lightning_grow.report import format_shape
from lightning_grow.waiting import each

ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """How two checkpoints differ.

    Args:
        hyperparameters: Each that differs, as (one's, other's).
        shapes: Each tensor that differs in shape or is in one of them only, as (one's, other's).
        values: The largest absolute difference of each tensor that has one shape and other values.
        equal: How many tensors are the same in both.
    """

    hyperparameters: dict[str, tuple[Any, Any]]
    shapes: dict[str, tuple[str, str]]
    values: dict[str, float]
    equal: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.hyperparameters or self.shapes or self.values)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings."""
        return {**asdict(self), "same": self.is_empty}

    def __rich__(self) -> Table:
        """Return the differences as a table; tensors of a list that differ alike are one row."""
        caption = f"Tensors that are the same in both: {self.equal}."
        table = Table("what", "one", "other", caption=caption, caption_justify="left")
        for name, pair in self.hyperparameters.items():
            table.add_row(name, *map(str, pair))
        cells = dict(self.shapes) | {name: ("", f"differs by up to {most:.3g}") for name, most in self.values.items()}
        for names in grouped([((pattern(name), pair), name) for name, pair in cells.items()]):
            table.add_row(folded(names), *cells[names[0]])
        return table


def find_difference(one: Path, other: Path, key: str = "") -> Difference:
    """Compare two files or folders of any kinds, tensor by tensor.

    Raises:
        CheckpointError: One cannot be read.
    """
    pair = read_weights(one, key), read_weights(other, key)
    states = pair[0].state, pair[1].state
    names = list(dict.fromkeys([*states[0], *states[1]]))
    shapes = {name: _shapes(name, *states) for name in names}
    differing = {name: found for name, found in shapes.items() if found[0] != found[1]}
    shared = [name for name in names if name not in differing]
    sizes = [states[0][name].numel() for name in shared]
    most = {name: _largest(states[0][name], states[1][name]) for name in each(shared, "comparing the weights", sizes)}
    values = {name: size for name, size in most.items() if size}
    return Difference(compare_hparams(*map(_hparams, pair)), differing, values, len(shared) - len(values))


def _shapes(name: str, *states: Mapping[str, Tensor]) -> tuple[str, str]:
    """The shape in each, with the type where that differs."""
    kinds = {state[name].dtype for state in states if name in state}
    first, second = (
        " ".join([format_shape(tuple(state[name].shape)), *([str(state[name].dtype)] if len(kinds) > 1 else [])])
        if name in state
        else ABSENT
        for state in states
    )
    return first, second


def _largest(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference; infinite where a value is a number in one of them only."""
    same = (one == other) | (one.isnan() & other.isnan())
    wide = torch.complex128 if one.is_complex() else torch.float64
    off = (one.to(wide) - other.to(wide)).abs()[~same]
    if not len(off):
        return 0.0
    return float(off.max()) if bool(torch.isfinite(off).all()) else float("inf")


def _hparams(weights: Weights) -> dict[str, Any]:
    if weights.kind is Kind.LIGHTNING:
        return checkpoint_hparams(weights.content)
    return weights.content if weights.kind is Kind.HUGGINGFACE else {}
