"""What a transfer did, in plain types: a table for people, a dictionary for files."""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table

from lightning_grow.errors import WrongSetting
from lightning_grow.folding import folded, grouped, pattern

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TensorReport:
    """One tensor of the target.

    Args:
        name: Its name.
        source_name: The source's tensor, None for a new layer's.
        source_shape: The source's shape, None for a new layer's.
        target_shape: The target's shape.
        axes: What was done per axis, e.g. "fan-out 128 -> 256".
        copied: Entries that come from the source (rescaled or averaged ones included).
        new: Entries that no source entry gives.
        zeroed: How many of the new ones are 0.
        factor: The factor on the copied entries; 1.0 for a plain copy.
        explanation: In words: where its units stand, what each block is, and for the sake of which operator.
    """

    name: str
    source_name: str | None
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...]
    axes: tuple[str, ...]
    copied: int
    new: int
    zeroed: int
    factor: float = 1.0
    explanation: tuple[str, ...] = ()


@dataclass(frozen=True)
class TransferReport:
    """The whole transfer.

    Args:
        tensors: One row per tensor.
        strategy: The strategy's name.
        seed: The seed of its random entries.
        max_output_error: max|f_target - f_source| / max|f_source| over the example inputs; None if not verified.
        tolerance: The largest error that counts as rounding; None if not verified.
        function_preserving: Whether the target computes the source's function within the tolerance.
        refused: What kept it from being exact (lossy strategies only; the others raise).
        attributes: Module attributes that had to change too.
        dead_units: New units per unit group that can never learn: no fan-in and no fan-out.
        twin_units: New units per unit group that are equal to another unit in every tensor.
        notes: What else a user should know.
        plan: What was carried out, for `plot`; not in `to_dict`.
    """

    tensors: tuple[TensorReport, ...]
    strategy: str
    seed: int
    max_output_error: float | None = None
    tolerance: float | None = None
    function_preserving: bool = False
    refused: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    dead_units: dict[str, int] = field(default_factory=dict)
    twin_units: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    plan: Any = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, numbers and strings, with the schema's version."""
        plain = asdict(replace(self, plan=None)) | {"schema_version": SCHEMA_VERSION}
        plain["tensors"] = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(item).items()}
            for item in self.tensors
        ]
        plain["notes"] = list(self.notes)
        del plain["plan"]
        return plain

    def explain(self, name: str) -> str:
        """Say what became of one tensor and why.

        Args:
            name: The target tensor.

        Raises:
            WrongSetting: No tensor has that name.

        >>> linear = TensorReport("a.bias", "a.bias", (2,), (3,), ("fan-out 2 -> 3",), 2, 1, 1, explanation=("2 -> 3",))
        >>> TransferReport((linear,), "preserve", seed=0).explain("a.bias")
        '2 -> 3'
        """
        return "\n".join(named(name, {item.name: item for item in self.tensors}).explanation)

    def plot(self, names: Sequence[str] | None = None) -> Figure:
        """Draw each tensor's entries by where they come from: the source's, copies, means, new ones, zeros.

        Args:
            names: Which tensors; all matrices and convolutions that grew when None.

        Returns:
            A matplotlib figure: `figure.savefig("growth.png")`; a notebook shows it.

        Raises:
            WrongSetting: No tensor has one of the names, or the report has no plan, as one that was read from a file.
        """
        if self.plan is None:
            raise WrongSetting("This report has no plan to draw. Plot the one that grow or plan_growth returns.")
        figure: Figure = self.plan.plot_tensors(names)
        return figure

    def summary(self) -> str:
        """Return the totals in one sentence."""
        copied, new, zeroed = (sum(getattr(item, key) for item in self.tensors) for key in ("copied", "new", "zeroed"))
        checked = (
            "not verified"
            if self.max_output_error is None
            else f"largest output difference {self.max_output_error:.1e}"
        )
        kind = "function-preserving" if self.function_preserving else "not function-preserving"
        return f"{self.strategy}: {copied:,} entries copied, {new:,} new ({zeroed:,} of them 0); {checked}, {kind}."

    def __rich__(self) -> Table:
        """Return the table, layer by layer; what is alike in layers of one list is one row, for each of them."""
        table = Table(title=f"Transfer by {self.strategy}", caption=self._caption(), caption_justify="left")
        table.add_column("tensor", overflow="fold")
        for title in ("source", "target", "copied", "new", "zeroed"):
            table.add_column(title, justify="right", no_wrap=True)
        rows = [((pattern(item.name), *_cells(item)), item.name) for item in self.tensors]
        for names, (_, *cells) in zip(grouped(rows), dict.fromkeys(key for key, _ in rows), strict=True):
            table.add_row(folded(names), *cells)
        return table

    def _caption(self) -> str:
        lines = [self.summary()]
        for label, counts in (("dead", self.dead_units), ("twin", self.twin_units)):
            if sum(counts.values()):
                groups = ", ".join(f"{count} at {name}" for name, count in counts.items() if count)
                lines.append(f"{sum(counts.values())} {label} units: {groups}.")
        return "\n".join([*lines, *self.refused, *self.notes])

    def __str__(self) -> str:
        """Return the table as text."""
        return as_text(self.__rich__())


def _cells(item: TensorReport) -> tuple[str, ...]:
    source = "-" if item.source_shape is None else format_shape(item.source_shape)
    return source, format_shape(item.target_shape), f"{item.copied:,}", f"{item.new:,}", f"{item.zeroed:,}"


def named(name: str, known: Mapping[str, T]) -> T:
    """What is known under a name.

    Raises:
        WrongSetting: Nothing is.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "the plan and the report list them all."
    raise WrongSetting(f"Expected the name of a tensor of the target, but got '{name}': {hint}")


def as_text(table: Any) -> str:
    """Render a rich object without colours."""
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.export_text().rstrip()


def format_shape(shape: tuple[int, ...]) -> str:
    """E.g. "3x4".

    >>> format_shape((3, 4)), format_shape(())
    ('3x4', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"
