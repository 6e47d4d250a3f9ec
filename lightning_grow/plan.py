"""The plan: every decision of a growth, made before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.table import Table
from torch import Tensor

from lightning_grow.apply import empty_state, move_copy, move_state, write_state
from lightning_grow.errors import RefusedGrowth
from lightning_grow.report import as_text
from lightning_grow.strategies.base import Strategy
from lightning_grow.tensor_plan import TensorPlan


@dataclass(frozen=True)
class UnitGroup:
    """The (parameter, axis) pairs that widen together.

    Args:
        name: Where the group was first met.
        old: Units of the source.
        new: Units of the target.
        mode: "fresh" or "copied".
        members: (parameter, dimension) pairs.
        output: Which of the target's outputs they are the last axis of; -1 for inner units.
        units: For every member, the unit that each position belongs to (-1: none), int64 (size of the dimension,).
    """

    name: str
    old: int
    new: int
    mode: str
    members: tuple[tuple[str, int], ...]
    output: int = -1
    units: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class GrowthPlan:
    """What a growth will do; printing it shows the table, `apply` does it.

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

    @property
    def is_trivial(self) -> bool:
        """Whether every tensor is taken as it is."""
        return not self.refused and all(item.is_plain for item in self.tensors.values())

    @property
    def moves(self) -> bool:
        """Whether an entry of a source's tensor stands elsewhere in the target, or nowhere."""
        pairs = [item for item in self.tensors.values() if item.source_name is not None]
        return any(not axis.is_identity for item in pairs for axis in item.maps)

    def apply(
        self, source_state: Mapping[str, Tensor], target_state: Mapping[str, Tensor], seed: int = 0
    ) -> dict[str, Tensor]:
        """Build the grown state.

        Args:
            source_state: The source's state dict, or any other copy of its weights (an average).
            target_state: The target's state dict, for its names, types, and the initial values of new entries.
            seed: Seed of random entries; the same seed gives the same fill.

        Returns:
            A new state dict with `target_state`'s names; neither argument is changed.
        """
        grown = empty_state(target_state)
        write_state(self.tensors, self.strategy, source_state, target_state, grown, seed)
        return grown

    def new_entries(self, name: str) -> Tensor:
        """Return which entries of a tensor continue no source entry: those without one, and all copies but the first.

        Args:
            name: The target tensor.

        Returns:
            A bool mask of the target's shape.
        """
        return self.tensors[name].new_entries()

    def move(self, name: str, tensor: Tensor, power: float) -> Tensor | None:
        """Move an optimizer's state tensor of the source's shape.

        Args:
            name: The target parameter.
            tensor: The state, in the source parameter's shape.
            power: 1 for what follows the gradient (momentum), 2 for its square, 0 for what has no unit. The gradient
                of a weight that was scaled by a is 1/a of the source's.

        Returns:
            A tensor of the target's shape, 0 at new entries; None where the state has another shape than the source's
            parameter. Exact where ``plan.tensors[name].is_one_to_one``; where units are copied or averaged, the entries
            that go on keep their values, and these are approximate.
        """
        return move_state(self.tensors[name], tensor, power)

    def move_copy(self, name: str, tensor: Tensor, grown: Tensor) -> Tensor | None:
        """Move another copy of a weight, an average of it, say.

        Args:
            name: The target parameter.
            tensor: The copy, in the source parameter's shape.
            grown: The parameter itself, grown by this plan: the copy's new entries are its own.

        Returns:
            A tensor of the target's shape; None where the copy has another shape than the source's parameter.
        """
        return move_copy(self.tensors[name], tensor, grown, self.strategy)

    def __rich__(self) -> Table:
        """Return the plan as a table: the unit groups, then the refusals."""
        table = Table(title=f"Growth by {self.strategy.name}", caption=self._caption(), caption_justify="left")
        for title in ("unit group", "source", "target", "new units", "tensors"):
            table.add_column(title, overflow="fold")
        for group in self.groups:
            members = ", ".join(f"{name}[{dim}]" for name, dim in group.members)
            table.add_row(group.name, str(group.old), str(group.new), group.mode, members)
        return table

    def _caption(self) -> str:
        changed = sum(not item.is_plain for item in self.tensors.values())
        lines = [f"{changed} of {len(self.tensors)} tensors change."]
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
