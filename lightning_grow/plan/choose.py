"""Find a choice under which the function is kept: fresh or copied units, identity layers, at last another eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from lightning_grow.options import Options
from lightning_grow.pair.match import Match
from lightning_grow.pair.roles import Roles
from lightning_grow.plan.copied_units import CopiedUnits
from lightning_grow.plan.initial_states import InitialStates
from lightning_grow.plan.interpret import interpret
from lightning_grow.plan.run import Run, number_variable
from lightning_grow.plan.scale import Scale, Variable, solve
from lightning_grow.plan.step import Choice
from lightning_grow.strategies.base import Strategy
from lightning_grow.trace.axes import Axis, resolve
from lightning_grow.trace.tape import Node, Trace, Value


@dataclass(frozen=True, eq=False)
class Chosen:
    """What a plan is written from.

    Args:
        choice: What was fixed.
        run: The run that keeps the function under it; None where none does, or none is asked for.
        factors: log(factor) of every variable that changes.
        parts: Where the two models compute different things, whatever their sizes.
        lost: Why else the function is not kept.
        stuck: The run that came furthest, where none keeps the function.
    """

    choice: Choice
    run: Run | None = None
    factors: Mapping[Variable, float] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    stuck: Run | None = None

    def factor(self, scale: Scale) -> float:
        """The number behind an expression, now that the system is solved."""
        total = sum(coefficient * self.factors.get(item, 0.0) for item, coefficient in scale.terms.items())
        return math.exp(total + scale.constant)


def first_choice(match: Match, units: CopiedUnits, strategy: Strategy) -> Choice:
    """What the strategy wants: its copies, and new layers as identities."""
    starts = _identities(match) | _unit_gains(match) if strategy.transfers else frozenset[str]()
    return Choice(frozenset(units.sources), starts)


def choose(
    match: Match, roles: Roles, states: InitialStates, target: nn.Module, options: Options, units: CopiedUnits
) -> Chosen:
    """Run the tape under one choice after the other, until the function is kept.

    Args:
        match: Source and target side by side; holds afterwards what the last run found.
        roles: Which dimensions of parameters are read and written.
        states: The states that begin at 0.
        target: The bigger module.
        options: The growth's options.
        units: Which units may be copies.
    """
    promises = options.strategy.function_preserving
    start = first_choice(match, units, options.strategy)
    attempt = _attempts(match, roles, states, units.never)
    bare = replace(start, identities=frozenset())  # a branch that begins at 0 learns better than one of identities
    first = attempt(bare if promises else replace(start, copied=frozenset()), None)
    is_deeper = any(name not in match.names for name in match.target.tensors)
    if not promises or (first.parts and not is_deeper):
        return Chosen(start, parts=() if is_deeper else first.parts, lost=first.lost, stuck=first.run)
    numbers = _free_numbers(match.target, target) if options.allow_attribute_changes else frozenset()
    tensors = match.target.tensors
    gains = replace(start, identities=frozenset(name for name in start.identities if len(tensors[name].axes) < 2))
    begins = [bare, gains, start, replace(bare, free_numbers=numbers), replace(start, free_numbers=numbers)]
    tried, chosen, furthest = set[Choice](), first, first
    for choice in begins:
        while choice not in tried:
            tried.add(choice)
            chosen = attempt(choice, chosen.run) if choice is not bare else first
            if not chosen.lost:
                return chosen
            furthest = max(furthest, chosen, key=_reach)
            choice = _turned(match, chosen, units)
    return Chosen(start, lost=furthest.lost, stuck=furthest.run)


def _reach(chosen: Chosen) -> tuple[int, int]:
    """How far a run came before something stood in its way: what stops the furthest is the true reason."""
    return chosen.run.first_failure if chosen.run is not None else 0, len(chosen.choice.identities)


def _attempts(
    match: Match, roles: Roles, states: InitialStates, never: frozenset[Axis]
) -> Callable[[Choice, Run | None], Chosen]:
    """Runs that all begin with the same match; each takes over from the one before it what it can."""
    gains = _gains(match.target, roles)

    def rank(item: Variable) -> float:
        """Norm gains take up a factor first, then matrices, then biases, then tables; a module attribute last."""
        value = match.target.tensors.get(item[0])
        if value is None:
            return 3.0
        return 0.0 if item[0] in gains else {1: 2.0, 2: 1.0}.get(len(value.axes), 1.0)

    def attempt(choice: Choice, before: Run | None) -> Chosen:
        run = interpret(before.under(choice) if before is not None else Run(match, roles, states, choice))
        failures = run.failures
        factors, broken = ({}, []) if failures else solve(run.equations, rank)
        parts = dict.fromkeys(item.reason for item in failures if item.parts)
        given = [atom for atom in run.admitted if match.grows(atom) and atom in never] if broken else []
        scaled = [_broken(item.reason, run.describe(given) if given else "") for item in broken]
        lost = dict.fromkeys([item.reason for item in failures] + scaled)
        return Chosen(choice, run, factors, tuple(parts), tuple(lost))

    return attempt


def _broken(reason: str, given: str) -> str:
    way = "Use a multiple of the source's size, so that units can be copied"
    if given:
        way = f"Units of {given} cannot be copies, for inputs, constants or a state that begins at 0 have them: keep it"
    return (
        f"{reason} gets its input at another scale than in the source, and no parameter before it can take up the "
        f"factor. {way}; or, if it is a norm, allow_attribute_changes=True."
    )


def _gains(trace: Trace, roles: Roles) -> frozenset[str]:
    """The parameters with one entry per unit that another tensor is multiplied with."""
    products = (node for node in trace.nodes if node.name == "mul" and len(node.tensors()) == 2)
    names = (roles.gain(value) for node in products for value in node.tensors())
    return frozenset(name for name in names if name is not None)


def _turned(match: Match, last: Chosen, units: CopiedUnits) -> Choice:
    """Copy the units that could not be fresh, leave fresh those that could not be copied."""
    run = last.run
    at_fault = {atom for item in run.failures for atom in item.growing} or run.admitted if run is not None else set()
    grown = {atom for atom in at_fault if 0 < match.old_size(atom) < atom.size}
    return replace(last.choice, copied=last.choice.copied ^ (grown - units.never))


def _free_numbers(trace: Trace, target: nn.Module) -> frozenset[tuple[int, str]]:
    """The eps of norms, and numbers that are added, where a module attribute of that value gives them."""
    return frozenset(
        (number, name)
        for number, node in enumerate(trace.nodes)
        for name, value in node.arguments.items()
        if (name == "eps" or node.name == "add") and isinstance(value, float) and _attribute(target, node, value)
    )


def _attribute(target: nn.Module, node: Node, value: float) -> str:
    """The dotted name of the module attribute that has this value where `node` runs."""
    own = vars(target.get_submodule(node.path)).items()
    name = next((key for key, item in own if isinstance(item, float) and item == value), "")
    return f"{node.path}.{name}".lstrip(".") if name else ""


def find_attributes(chosen: Chosen, trace: Trace, target: nn.Module) -> dict[str, float]:
    """The module attributes that have to change, by dotted name, with their new values."""
    changed: dict[str, float] = {}
    for number, name in chosen.run.numbers if chosen.run is not None else ():
        value, factor = trace.nodes[number].arguments[name], chosen.factor(number_variable(number, name))
        if abs(factor - 1.0) > 1e-12:
            changed[_attribute(target, trace.nodes[number], value)] = value * factor
    return changed


def _unit_gains(match: Match) -> frozenset[str]:
    """New parameters that scale what comes into their module, or a sum: at 1 they leave a residual stream as it is."""
    trace = match.target

    def comes_in(value: Value, module: str) -> bool:
        maker = trace.makers.get(value)
        return maker is None or maker.name == "add" or not f"{maker.path}.".startswith(f"{module}.")

    def scales(name: str, value: Value) -> bool:
        readers, module = trace.readers.get(value, []), name.rpartition(".")[0]
        scaled = [item for node in readers for item in node.tensors() if item is not value]
        return (
            bool(scaled)
            and all(node.name == "mul" for node in readers)
            and all(comes_in(item, module) for item in scaled)
        )

    return frozenset(
        name
        for name, value in trace.tensors.items()
        if name not in match.names and value.trained and len(value.axes) < 2 and scales(name, value)
    )


def _identities(match: Match) -> frozenset[str]:
    """New square layers, one after the other, between two ends of one source axis: they can start as identities.

    What lies between two of them is that axis too, which is stated.
    """
    layers = [
        (name, resolve(value.axes[0]), resolve(value.axes[1]))
        for name, value in match.target.tensors.items()
        if name not in match.names and len(value.axes) == 2
    ]
    found, chains = set[str](), [[layer] for layer in layers if match.atoms.get(layer[2])]
    while chains:
        chain = chains.pop()
        _, end, _ = chain[-1]
        begin = match.atoms[chain[0][2]]
        if {resolve(atom) for atom in begin} & {resolve(atom) for atom in match.atoms.get(end, ())}:
            found.update(name for name, _, _ in chain)
            for name, out, _ in chain[:-1]:
                match.pair(begin[0], out, f"the output of '{name}'")
        elif end not in match.atoms and end.size == chain[0][2].size:
            chains += [[*chain, layer] for layer in layers if layer[2] is end and layer not in chain]
    return frozenset(found)
