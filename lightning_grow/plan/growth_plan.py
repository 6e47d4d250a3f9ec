"""The plan: every decision of a growth, made before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import Tensor

from lightning_grow.errors import RefusedGrowth
from lightning_grow.folding import fold, folded, pattern
from lightning_grow.pair.names import new_modules
from lightning_grow.pictures import plot_groups, plot_tensors
from lightning_grow.plan.explain import explain
from lightning_grow.plan.modules import Modules
from lightning_grow.plan.tensor_plan import TensorPlan
from lightning_grow.plan.unit_group import UnitGroup
from lightning_grow.report import as_text, named
from lightning_grow.strategies.base import Strategy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class GrowthPlan:
    """What a growth will do: data only; printing it shows the table.

    Args:
        strategy: The strategy.
        groups: The unit groups that grow.
        tensors: Target name -> plan, in the target's order.
        refused: Why the growth cannot keep the function (or has no meaning); empty where it can.
        impossible: Those of the refusals that no strategy can mend.
        lost: Why the function is not kept, where the strategy does not promise it.
        notes: What else a user should know.
        attributes: Module attributes that have to change too, by dotted name (a norm's eps).
        input_positions: For every dimension of every input tensor, the positions that the source has too.
        source_positions: Their positions in the source: all of it, but for dropped inputs.
        output_positions: For every dimension of every output tensor, the positions that the source has too.
        left_out: Outputs that are not compared: new ones, and what a forward takes back, of another size now.
        ways: Where it is refused: the operators from each tensor to the first one in the way.
        modules: Whose growth it is, while they live.
    """

    strategy: Strategy
    groups: tuple[UnitGroup, ...]
    tensors: Mapping[str, TensorPlan]
    refused: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)
    input_positions: tuple[tuple[Tensor, ...], ...] = field(default=(), repr=False)
    source_positions: tuple[tuple[Tensor, ...], ...] = field(default=(), repr=False)
    output_positions: tuple[tuple[Tensor, ...], ...] = field(default=(), repr=False)
    left_out: frozenset[str] = frozenset()
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    modules: Modules = field(default_factory=Modules, repr=False)

    @property
    def is_trivial(self) -> bool:
        """Whether every tensor is taken as it is."""
        return not self.refused and all(item.is_plain for item in self.tensors.values())

    @property
    def moves(self) -> bool:
        """Whether an entry of a source's tensor stands elsewhere in the target, or nowhere."""
        pairs = [item for item in self.tensors.values() if item.source_name is not None]
        return any(not axis.is_identity for item in pairs for axis in item.maps)

    def new_entries(self, name: str) -> Tensor:
        """Return which entries of a tensor continue no source entry: those without one, and all copies but the first.

        Args:
            name: The target tensor.

        Returns:
            A bool mask of the target's shape.
        """
        return self.tensors[name].new_entries()

    def explain(self, name: str) -> str:
        """Say what becomes of one tensor and why: units, places, blocks; of a refusal, the way to its cause.

        Args:
            name: The target tensor.

        Raises:
            WrongSetting: No tensor has that name.

        >>> import torch
        >>> from torch import nn
        >>> from lightning_grow import plan_growth
        >>> net = lambda width: nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
        >>> print(plan_growth(net(4), net(6), example_inputs=(torch.ones(1, 3),)).explain("2.weight"))
        2.weight: 2x4 -> 2x6
          axis 1: 4 units become 6, the new ones fresh; they are also '0.weight' axis 0, '0.bias' axis 0
          all other entries: the source's
          new entries of axis 1: 0, for aten.addmm.default in '2'
          used by aten.t.default in '2'
        """
        if name not in self.ways and not self.refused:
            named(name, self.tensors)
        return "\n".join(explain(name, self.tensors.get(name), self.groups, self.ways.get(name), self.refused))

    def to_dict(self) -> dict[str, Any]:
        """What was decided as plain lists, dicts, numbers and strings: groups, shapes, refusals, notes."""
        groups = [
            {"name": group.name, "source": group.old, "target": group.new, "new_units": group.mode}
            | {"members": [f"{name}[{dim}]" for name, dim in group.members]}
            for group in self.groups
        ]
        tensors = {
            name: {"source": item.source_name, "shape": list(item.target_shape)} for name, item in self.tensors.items()
        }
        said = {name: list(getattr(self, name)) for name in ("refused", "lost", "notes")}
        return {"strategy": self.strategy.name, "groups": groups, "tensors": tensors, **said}

    def plot(self) -> Figure:
        """Draw the unit groups: units of the source, new ones, and in how many tensors they widen together."""
        return plot_groups(
            [(item.name, item.old, item.new, item.mode, [name for name, _ in item.members]) for item in self.groups]
        )

    def plot_tensors(self, names: Sequence[str] | None = None) -> Figure:
        """Draw the tensors, each entry by where it comes from.

        Args:
            names: Which tensors; all matrices and convolutions that grow when None.

        Raises:
            WrongSetting: No tensor has one of the names.
        """
        grown = [item for item in self.tensors.values() if not item.is_plain and item.maps]
        chosen = [item for item in grown if len(item.maps) > 1] or grown
        if names is not None:
            chosen = [named(name, self.tensors) for name in names]
        return plot_tensors([item.panel() for item in chosen])

    def __rich__(self) -> Table:
        """Return the plan as a table: the unit groups, then the refusals."""
        table = Table(title=f"Growth by {self.strategy.name}", caption=self._caption(), caption_justify="left")
        for title in ("unit group", "source", "target", "new units", "tensors"):
            table.add_column(title, overflow="fold")
        alike: dict[tuple[object, ...], list[UnitGroup]] = {}
        for group in self.groups:
            members = frozenset((pattern(name), dim) for name, dim in group.members)
            alike.setdefault((pattern(group.name), group.old, group.new, group.mode, members), []).append(group)
        for groups in alike.values():
            first, dims = groups[0], [f"{name}[{dim}]" for group in groups for name, dim in group.members]
            name = folded([group.name for group in groups])
            table.add_row(name, str(first.old), str(first.new), first.mode, ", ".join(fold(dims)))
        return table

    def _caption(self) -> str:
        changed = sum(not item.is_plain for item in self.tensors.values())
        lines = [f"{changed} of {len(self.tensors)} tensors change."]
        known = [name for name, item in self.tensors.items() if item.source_name is not None]
        if new := new_modules(self.tensors, known):
            lines.append(f"New layers: {', '.join(fold(new))}.")
        lines += [f"refused: {reason}" for reason in self.refused]
        return "\n".join([*lines, *self.notes])

    def __str__(self) -> str:
        """Return the table as text."""
        return as_text(self.__rich__())


def refuse(plan: GrowthPlan) -> None:
    """Raise what the plan refuses, all of it at once.

    Raises:
        RefusedGrowth: The plan has refusals.
    """
    if plan.refused:
        raise RefusedGrowth(plan.refused)
