"""Make a plan: match both models, choose what keeps the function, write down what every tensor becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from lightning_grow.options import Options
from lightning_grow.pair.copies import find_copies
from lightning_grow.pair.match import Match
from lightning_grow.pair.match_modules import match_modules
from lightning_grow.pair.mismatch import find_mismatches, saved_names
from lightning_grow.pair.named_inputs import name_inputs
from lightning_grow.pair.notes import (
    name_branches,
    name_copies,
    name_idle,
    name_left_out,
    name_moved_outputs,
    name_settings,
    name_shared_counts,
)
from lightning_grow.pair.roles import find_roles
from lightning_grow.plan.choose import Chosen, choose, find_attributes, first_choice
from lightning_grow.plan.copied_units import find_copied_units
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.plan.initial_states import find_initial_states
from lightning_grow.plan.ways import find_ways
from lightning_grow.plan.write import Draft, write_groups, write_tensors
from lightning_grow.trace.axes import resolve


def make_plan(
    source: nn.Module, target: nn.Module, source_inputs: Any, target_inputs: Any, options: Options
) -> GrowthPlan:
    """Match both modules and decide what every tensor becomes.

    Raises:
        RefusedGrowth: A module cannot be traced.
    """
    strategy, generator = options.strategy, torch.Generator().manual_seed(options.seed)
    match = match_modules(source, target, source_inputs, target_inputs, options.forward, options.rename)
    dropped = name_inputs(source, target, match, options.drop_inputs, options.allow_input_growth)
    copies = find_copies(target, match)
    impossible = find_mismatches(source, target, match, options, copies)
    states, roles = find_initial_states(match.target, match.grows), find_roles(match.target)
    units = find_copied_units(match, strategy, states.atoms, generator)
    if impossible or not strategy.transfers:
        chosen, dropped = Chosen(first_choice(match, units, strategy)), []
    else:
        chosen = choose(match, roles, states, target, options, units)
    impossible += [*chosen.parts, *_unclear(match, chosen, copies)]
    draft = Draft(match, roles, strategy, units, chosen, copies, generator)
    return GrowthPlan(
        strategy=strategy,
        groups=write_groups(draft),
        tensors={} if impossible else write_tensors(draft, saved_names(target)),
        refused=tuple(dict.fromkeys([*impossible, *(chosen.lost if strategy.function_preserving else ())])),
        impossible=tuple(impossible),
        lost=(*chosen.lost, *_name_dropped(dropped)),
        notes=(
            *name_copies(copies),
            *_name_sums(states.sums),
            *name_idle(match, copies),
            *name_settings(match),
            *name_shared_counts(match),
            *name_branches(match),
            *name_moved_outputs(match),
            *name_left_out(match),
        ),
        attributes=find_attributes(chosen, match.target, target),
        input_positions=tuple(tuple(map(match.old_positions, value.axes)) for value in match.target.inputs),
        source_positions=tuple(tuple(map(match.source_positions, value.axes)) for value in match.target.inputs),
        output_positions=tuple(tuple(map(match.old_positions, value.axes)) for value in match.target.outputs.values()),
        left_out=match.left_out.state | match.left_out.added,
        ways=find_ways(match.target, chosen.stuck) if chosen.stuck is not None else {},
    )


def _unclear(match: Match, chosen: Chosen, copies: Collection[str]) -> list[str]:
    """Idle matrices along units of which new ones are a mean: what writes such units needs it, what reads them a 0."""
    units = set(chosen.run.means.values()) if chosen.run is not None else set()
    values = {name: match.target.tensors[name] for name in match.beside if name not in copies}
    return [
        f"'{name}' grows but no traced operator uses it, so it is unknown whether it reads or writes the units of "
        f"'{match.beside[name]}'. Pass forward= a callable that uses it, or keep its shape."
        for name, value in values.items()
        if value.trained and sum(axis.size > 1 for axis in value.axes) > 1
        if any(resolve(axis) in units for axis in value.axes)
    ]


def _name_sums(shapes: Iterable[tuple[int, ...]]) -> list[str]:
    """Say which constants are taken for the start of a sum, which might be the first state of a recurrence."""
    return [
        f"A 0 of the shape {'x'.join(map(str, shape))} is taken for the start of a sum. If it is the first state "
        "of a recurrence, give example inputs of two steps."
        for shape in sorted(shapes)
    ]


def _name_dropped(names: list[str]) -> list[str]:
    """What is lost with inputs that the target does not have."""
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"{len(names)} inputs are dropped as drop_inputs asks ({shown}): the outputs change."]
