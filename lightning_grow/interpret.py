"""Run the target's tape on cells: find what must be 0, a mean, or scaled for the outputs to be the source's.

Everything new starts free. Where an operator lets a free cell reach a kept one (a sum over units, a residual
addition, a norm's statistic), the parameter cells behind it are set to 0, or to the mean that a LayerNorm wants, and
the tape is run again from the first operator that uses them. What no parameter can mend is recorded as a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_grow import probe
from lightning_grow.axes import Axis, atoms, resolve
from lightning_grow.cells import LOST, ZERO, Cell, Entry, Kind, Layout, Slot, filled, kept, with_scale
from lightning_grow.meanings import (
    Along,
    Cells,
    Contract,
    Create,
    Lookup,
    Normalize,
    Opaque,
    Pointwise,
    Rearrange,
    Reduce,
    Softmax,
)
from lightning_grow.pairing import Pairing
from lightning_grow.roles import Dimension, Roles, split_labels
from lightning_grow.scale import ONE, Equation, Scale, shifted, variable
from lightning_grow.trace import Node, Trace, Value
from lightning_grow.twins import Twins


@dataclass
class Decisions:
    """What was found: the parameter cells that are not free, and how copied units are read.

    Args:
        zeros: Cells that must be 0.
        means: Cells that must be the mean of the source's entries along an axis.
        shares: Dimensions whose reads of a copied atom are divided among the copies.
    """

    zeros: set[Entry] = field(default_factory=set)
    means: dict[Entry, Axis] = field(default_factory=dict)
    shares: set[tuple[Dimension, Axis]] = field(default_factory=set)


@dataclass(frozen=True)
class Failure:
    """A place where the function cannot be kept.

    Args:
        node: Its index on the tape.
        reason: The sentence for the user.
        atoms: The growing atoms at fault; copying their units may mend it.
        parted: Whether the two models compute different things there, whatever their sizes.
    """

    node: int
    reason: str
    atoms: tuple[Axis, ...] = ()
    parted: bool = False


class _Commit(Exception):
    """A decision was made: run again from the first use of its entries."""

    def __init__(self, zeros: Iterable[Entry] = (), means: dict[Entry, Axis] | None = None) -> None:
        super().__init__()
        self.zeros, self.means = set(zeros), means or {}


class _Lost(Exception):
    """The operator cannot be kept; the refusal is recorded."""


class Interpreter:
    """One run over the target's tape under a fixed choice of copied atoms."""

    def __init__(
        self,
        source: Trace,
        target: Trace,
        pairing: Pairing,
        roles: Roles,
        renamed: dict[str, str],
        copied: frozenset[Axis] = frozenset(),
        identities: frozenset[str] = frozenset(),
    ) -> None:
        self.source, self.target, self.pairing, self.roles = source, target, pairing, roles
        self.renamed, self.copied, self.identities = renamed, copied, identities
        self.layout = Layout(pairing.old_size, copied)
        self.twins = Twins(source, target, renamed)
        self.cells: dict[Value, Cells] = {}
        self.decisions = Decisions()
        self.equations: list[Equation] = []
        self.failures: list[Failure] = []
        self.parted: dict[int, str] = {}  # operators on the source's values that the source does not have
        self.admitted: set[Axis] = set()  # growing atoms under a statistic that is kept by zeros or means
        self.at = 0
        self.found: Node | None = None
        self.first_use = _first_uses(target)

    # ------------------------------------------------------------------ the run
    def run(self) -> None:
        """Interpret the tape until no decision is open, then compare the outputs."""
        while True:
            try:
                while self.at < len(self.target.nodes):
                    self._node(self.target.nodes[self.at])
                    self.at += 1
                self._outputs()
                return
            except _Commit as commit:
                self._commit(commit)

    def _commit(self, commit: _Commit) -> None:
        known = (commit.zeros <= self.decisions.zeros) and (commit.means.keys() <= self.decisions.means.keys())
        if known or commit.zeros & self.decisions.means.keys() or commit.means.keys() & self.decisions.zeros:
            raise AssertionError(f"decision made twice at node {self.at}: {commit.zeros} {commit.means}")
        self.decisions.zeros |= commit.zeros
        self.decisions.means.update(commit.means)
        names = {name for name, _ in commit.zeros | set(commit.means)}
        for value in set(self.cells):
            if value.name is not None and {value.name} & names:
                del self.cells[value]
        self.at = min([self.at, *(self.first_use.get(name, 0) for name in names)])
        self.equations = [item for item in self.equations if item.node < self.at]
        self.failures = [item for item in self.failures if item.node < self.at]

    def _node(self, node: Node) -> None:
        if all(value.constant is not None for value in node.outputs):
            return
        self.found = self.twins.find(self.at, node, lambda candidate: self._fits(candidate, node))
        if self.found is not None:
            for old, new in zip(self.found.outputs, node.outputs, strict=True):
                for dim, (source, target) in enumerate(zip(old.axes, new.axes, strict=True)):
                    self.pairing.pair(source, target, f"the output of {node.op} in {node.where} axis {dim}")
        for number, (output, meaning) in enumerate(zip(node.outputs, node.meaning, strict=True)):
            self.twins.twin[output] = self.found.outputs[number] if self.found else None
            try:
                self.cells[output] = self._interpret(node, output, meaning)
            except _Lost:
                shape = [self.layout.count(axis) for axis in output.axes]
                self.cells[output] = filled(shape, lambda _: LOST)

    def _fits(self, candidate: Node, node: Node) -> bool:
        for old, new in zip(candidate.outputs, node.outputs, strict=True):
            if len(old.axes) != len(new.axes):
                return False
            if any(one.size > two.size for one, two in zip(old.axes, new.axes, strict=True)):
                return False
        return True

    def _interpret(self, node: Node, output: Value, meaning: Any) -> Cells:
        handler = self._handlers[type(meaning)]
        cells: Cells = handler(self, node, output, meaning)
        if any(cell.kind is Kind.LOST for cell in cells.flat):
            raise _Lost
        return cells

    def _fail(self, reason: str, atoms_at_fault: Iterable[Axis] = (), parted: bool = False) -> _Lost:
        if not any(item.reason == reason for item in self.failures):
            self.failures.append(Failure(self.at, reason, tuple(dict.fromkeys(atoms_at_fault)), parted))
        return _Lost()

    def _part(self, origin: str) -> _Lost:
        """The two models part here."""
        return self._fail(self._parted(origin), parted=True)

    # ------------------------------------------------------------------ cells of values
    def of(self, value: Value) -> Cells:
        """The cells of a value; those of parameters, inputs and constants are made on first use."""
        if value not in self.cells:
            self.cells[value] = self._given(value)
        return self.cells[value]

    def _given(self, value: Value) -> Cells:
        grid = self.layout.grid(value.axes)
        name = value.name

        def make(index: tuple[int, ...]) -> Cell:
            slots = [slot[number] for slot, number in zip(grid, index, strict=True)]
            if name is not None and value.constant is None:
                return self._parameter_cell(value, name, index, slots)
            if any(slot.is_new for slot in slots):
                return Cell(Kind.NEW, origin="new entries of an input or a constant")
            return kept()

        return filled([len(slots) for slots in grid], make)

    def _parameter_cell(self, value: Value, name: str, index: tuple[int, ...], slots: list[Slot]) -> Cell:
        entry = (name, index)
        if entry in self.decisions.zeros:
            return ZERO
        if entry in self.decisions.means:
            return self._mean_cell(value, name, index, self.decisions.means[entry])
        if name not in self.renamed:
            if name in self.identities and not any(slot.is_new for slot in slots):
                return Cell(Kind.IDENTITY)
            return self._free(entry, f"the new layer's '{name}'", value.trained)
        if not any(slot.is_new for slot in slots):
            return kept(variable(name, index) if value.trained else ONE)
        return self._free(entry, f"new units of '{name}'", value.trained)

    def _free(self, entry: Entry, origin: str, trained: bool) -> Cell:
        sources = frozenset([entry]) if trained else None
        return Cell(Kind.NEW, sources=sources, mean_sources=sources, direct=trained, origin=origin)

    def _mean_cell(self, value: Value, name: str, index: tuple[int, ...], atom: Axis) -> Cell:
        """The mean over the source's units of the cell beside it."""
        base = list(index)
        for dim, axis in enumerate(value.axes):
            slots = self.layout.slots(axis)
            if atom in slots[index[dim]].new_atoms():
                wanted = [(item, "kept" if item is atom else part) for item, part in slots[index[dim]].coordinates]
                base[dim] = next(i for i, slot in enumerate(slots) if list(slot.coordinates) == wanted)
        slots = [self.layout.slots(axis)[number] for axis, number in zip(value.axes, base, strict=True)]
        beside = self._parameter_cell(value, name, tuple(base), slots)
        if beside.kind is Kind.KEPT:
            return Cell(Kind.MEAN, beside.scale, atom=atom)
        return beside if beside.kind is Kind.ZERO else replace(beside, sources=None, mean_sources=None, direct=False)

    # ------------------------------------------------------------------ one operator at a time
    def _rearrange(self, node: Node, output: Value, meaning: Rearrange) -> Cells:
        cells: Cells = meaning.move(self.layout.count, *[self.of(value) for value in meaning.inputs])
        if self.found is None and len(meaning.inputs) == 1:
            cells = self._unmatched(cells)
        elif self.found is None:
            cells = self._unmatched(cells)
        return cells

    def _unmatched(self, cells: Cells) -> Cells:
        """Without a twin a kept cell is no longer known to be the source's."""
        return cells

    def _create(self, node: Node, output: Value, meaning: Create) -> Cells:
        return filled(
            [self.layout.count(axis) for axis in output.axes],
            lambda _: Cell(Kind.NEW, origin=f"{node.op} in {node.where}"),
        )

    def _opaque(self, node: Node, output: Value, meaning: Opaque) -> Cells:
        inputs = node.tensors()
        growing = [atom for value in inputs for axis in value.axes for atom in atoms(axis) if self.pairing.grows(atom)]
        if growing or self.found is None:
            raise self._fail(
                f"{meaning.reason}, in {node.where}, and meets {self._describe(growing)}. Declare what it does with "
                "@axis_rule, or keep this size as it is.",
                growing,
            )
        for value in inputs:
            for cell in self.of(value).flat:
                self._require(cell, node)
        return filled([self.layout.count(axis) for axis in output.axes], lambda _: kept())

    def _describe(self, growing: Sequence[Axis]) -> str:
        """Say which axes grow, by the place where each was first met."""
        parts = []
        for atom in dict.fromkeys(growing):
            place = self.pairing.places.get(atom, "a new layer's axis")
            parts.append(f"{place} ({self.pairing.old_size(atom)} -> {atom.size})")
        return ", ".join(parts) or "a value that the source does not have"

    def _require(self, cell: Cell, node: Node) -> None:
        """A cell that may not be scaled here."""
        if cell.kind in (Kind.KEPT, Kind.MEAN):
            self._equal(cell.scale, ONE, node)

    def _equal(self, first: Scale, second: Scale, node: Node) -> None:
        self.equations.append(Equation(first - second, f"{node.op} in {node.where}", self.at))

    # ---- pointwise
    def _pointwise(self, node: Node, output: Value, meaning: Pointwise) -> Cells:
        numbers, function = self._function(node, meaning)
        arrays = [self.of(value) for value in meaning.inputs]
        if meaning.views is not None:
            arrays = [view(self.layout.count, cells) for view, cells in zip(meaning.views, arrays, strict=True)]
        grid = self.layout.grid(output.axes)
        shape = [len(slots) for slots in grid]
        arrays = [_broadcast(cells, shape, value, output) for cells, value in zip(arrays, meaning.inputs, strict=True)]
        constants = [self._constant_cell(node, number) for number in range(len(meaning.inputs))]
        passed: set[int] = set()
        result = filled(shape, lambda _: LOST)
        for index in np.ndindex(result.shape):
            slots = [grid[dim][number] for dim, number in enumerate(index)]
            inputs = [constant or cells[index] for constant, cells in zip(constants, arrays, strict=True)] + numbers
            result[index] = self._combine(node, function, inputs, slots, passed)
        if self.found is None:
            self._pass_twin(node, output, meaning, result, passed, function)
        return result

    def _pass_twin(
        self, node: Node, output: Value, meaning: Pointwise, result: Cells, passed: set[int], function: Any
    ) -> None:
        """x + 0 is x; a ReLU of a ReLU's output is that output."""
        if len(passed) == 1:
            self.twins.twin[output] = self.twins.twin.get(meaning.inputs[passed.pop()])

    def _function(self, node: Node, meaning: Pointwise) -> tuple[list[Cell], _Probed]:
        """The operator as a function of its tensors and of those numbers that change with the size."""
        changed = self._changed_numbers(node)
        if meaning.function is not None:
            return [], _Probed(meaning.function, len(meaning.inputs))
        arguments = {name: value for name, value in node.arguments.items()}
        flags = [value.dtype.is_floating_point or value.dtype.is_complex for value in meaning.inputs]
        names = [name for name, value in arguments.items() if isinstance(value, Value)]
        cells = [kept(shifted(ratio)) for ratio in changed.values()]
        function = _probed_operator(node.op, arguments, tuple(names), tuple(changed), tuple(flags))
        return cells, function

    def _changed_numbers(self, node: Node) -> dict[str, float]:
        """Number arguments whose value differs from the source's, with the ratio."""
        if self.found is None:
            return {}
        changed: dict[str, float] = {}
        for name, value in node.arguments.items():
            old = self.found.arguments.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value == old:
                continue
            if not isinstance(old, (int, float)) or old * value <= 0:
                raise self._fail(
                    f"{node.op} in {node.where} uses the constant {value} where the source uses {old}; "
                    "make it the same in both models."
                )
            changed[name] = value / old
        return changed

    def _constant_cell(self, node: Node, number: int) -> Cell | None:
        """A constant tensor's cell: the source's times one factor, or a refusal."""
        new = node.tensors()[number] if number < len(node.tensors()) else None
        if new is None or new.constant is None or self.found is None:
            return None
        old = self.found.tensors()[number]
        if old.constant is None or any(self.pairing.grows(atom) for axis in new.axes for atom in atoms(axis)):
            self._check_growing_constant(node, old, new)
            return None
        ratio = _ratio(old.constant, new.constant)
        if ratio is None:
            raise self._fail(f"{node.op} in {node.where} uses a constant tensor that changes with the size.")
        return kept(shifted(ratio)) if ratio != 1.0 else None

    def _check_growing_constant(self, node: Node, old: Value, new: Value) -> None:
        if old.constant is None or new.constant is None:
            return
        at_old = new.constant
        for dim, axis in enumerate(new.axes):
            at_old = at_old.index_select(dim, self.pairing.old_positions(axis))
        if at_old.shape != old.constant.shape or _ratio(old.constant, at_old) != 1.0:
            growing = [atom for axis in new.axes for atom in atoms(axis) if self.pairing.grows(atom)]
            name = f"buffer '{new.name}'" if new.name else "a constant"
            raise self._fail(
                f"{name} used by {node.op} in {node.where} has other values at the source's positions once "
                f"{self._describe(growing)} grows. Grow another size (the number of heads instead of the head size).",
                growing,
            )

    def _combine(
        self, node: Node, function: _Probed, inputs: list[Cell], slots: list[Slot], passed: set[int]
    ) -> Cell:
        """One cell of a pointwise operator."""
        if any(cell.kind is Kind.LOST for cell in inputs):
            return LOST
        of_kind = {kind: frozenset(i for i, cell in enumerate(inputs) if cell.kind is kind) for kind in Kind}
        zeros, new = of_kind[Kind.ZERO], of_kind[Kind.NEW]
        rest = [i for i in range(len(inputs)) if i not in zeros | new]
        if zeros and function.vanishes(zeros):
            return ZERO
        wanted = not any(slot.is_new for slot in slots)
        if new:
            return self._combine_new(node, function, inputs, zeros, new, rest, wanted)
        if self.found is None:
            return self._combine_unmatched(node, function, inputs, zeros, rest, wanted, passed)
        scale = self._scale(node, function, inputs, zeros)
        means = of_kind[Kind.MEAN]
        if not means:
            return kept(scale)
        one_axis = len({inputs[i].atom for i in means}) == 1
        if not zeros and one_axis and function.averages(means):  # a 0 among the inputs is no mean
            return Cell(Kind.MEAN, scale, atom=inputs[min(means)].atom)
        return Cell(Kind.NEW, origin=f"{node.op} in {node.where}")

    def _combine_new(
        self,
        node: Node,
        function: _Probed,
        inputs: list[Cell],
        zeros: frozenset[int],
        new: frozenset[int],
        rest: list[int],
        wanted: bool,
    ) -> Cell:
        """A new cell among the inputs: where the source's entries are wanted, it has to go."""
        union = _union(inputs[i].sources for i in sorted(new))
        if wanted and rest and len(rest) == 1 and function.passes(zeros | new, rest[0]):
            if union is not None:
                raise _Commit(zeros=union)
            raise self._part(self._origins(inputs, new))
        alone = [inputs[i].sources for i in sorted(new) if function.vanishes(zeros | {i}) and inputs[i].sources]
        together = union if function.vanishes(zeros | new) else None
        means = frozenset(i for i in rest if inputs[i].kind is Kind.MEAN)
        mean_sources = _union(inputs[i].mean_sources for i in sorted(new))
        born_zero = any(inputs[i].born_zero for i in new) or (
            bool(zeros) and all(inputs[i].direct for i in new) and together is not None
        )
        return Cell(
            Kind.NEW,
            sources=alone[0] if alone else together,
            mean_sources=mean_sources if mean_sources and not zeros and function.averages(new | means) else None,
            born_zero=born_zero,
            origin=self._origins(inputs, new),
        )

    def _parted(self, origin: str) -> str:
        """Say where the two models part, and what to do about it."""
        new_layers = dict.fromkeys(name.rpartition(".")[0] for name in self.target.tensors if name not in self.renamed)
        if not new_layers:
            return f"the two models differ: the target computes {origin}. Keep the architecture and change sizes only."
        layers = ", ".join(f"'{name}'" for name in new_layers)
        return (
            f"new layers {layers} change the function: the target computes {origin}. A new layer keeps the function as a "
            "residual branch, or as an identity between two ReLUs (an activation that changes nothing when applied "
            "again). Use activation relu, widen instead of deepening, or choose a strategy that is not function-preserving."
        )

    def _origins(self, inputs: list[Cell], new: frozenset[int]) -> str:
        return ", ".join(dict.fromkeys(inputs[i].origin for i in sorted(new) if inputs[i].origin)) or "new entries"

    def _combine_unmatched(
        self,
        node: Node,
        function: _Probed,
        inputs: list[Cell],
        zeros: frozenset[int],
        rest: list[int],
        wanted: bool,
        passed: set[int],
    ) -> Cell:
        """The source has no such operator: the cell is new, unless the operator leaves an input as it is."""
        if len(rest) == 1 and zeros and function.passes(zeros, rest[0]):
            if wanted:
                passed.add(rest[0])
            return replace(inputs[rest[0]], direct=False)
        if len(rest) == 1 and not zeros and self._is_repeated(node, function):
            if wanted:
                passed.add(rest[0])
            return inputs[rest[0]]
        if not rest:
            return Cell(Kind.NEW, origin=f"{node.op} in {node.where}")
        return Cell(Kind.NEW, origin=self._why_unmatched(node))

    def _is_repeated(self, node: Node, function: _Probed) -> bool:
        """Whether the input is what this very operator gave, and giving it again changes nothing."""
        twin = self.twins.twin.get(node.tensors()[0])
        made_by = next((item for item in self.source.nodes if twin in item.outputs), None) if twin is not None else None
        return made_by is not None and made_by.name == node.name and function.repeats()

    def _why_unmatched(self, node: Node) -> str:
        others = [item for item in self.twins.alternatives(node) if item.name != node.name]
        instead = f", where the source computes {others[0].op} in {others[0].where}" if others else ""
        reason = f"{node.op} in {node.where}{instead}"
        if any(self.twins.twin.get(value) is not None for value in node.tensors() if value.name is None):
            self.parted.setdefault(self.at, reason)
        return reason

    def _scale(self, node: Node, function: _Probed, inputs: list[Cell], zeros: frozenset[int]) -> Scale:
        """The factor of the output; equations where the operator allows only some."""
        free = [i for i, cell in enumerate(inputs) if i not in zeros and not cell.scale.is_one]
        if not free:
            return ONE
        degrees = {i: function.degree(frozenset([i]), zeros) for i in free}
        if all(power is not None for power in degrees.values()):
            total = ONE
            for i, power in degrees.items():
                total = total + inputs[i].scale * (power or 0.0)
            return total
        everyone = frozenset(i for i in range(len(inputs)) if i not in zeros)
        power = function.degree(everyone, zeros)
        if power is None:
            for i in free:
                self._equal(inputs[i].scale, ONE, node)
            return ONE
        first = inputs[min(everyone)].scale
        for i in sorted(everyone)[1:]:
            self._equal(inputs[i].scale, first, node)
        return first * power

    # ---- sums of products
    def _contract(self, node: Node, output: Value, meaning: Contract) -> Cells:
        left, right = self._labelled(meaning, meaning.left, 0), self._labelled(meaning, meaning.right, 1)
        letters = {**left.sizes, **right.sizes}
        out = [letter for letter in meaning.labels[2] if letter not in "()."]
        summed = [letter for letter in letters if letter not in out]
        result = filled([len(letters[letter]) for letter in out], lambda _: LOST)
        for index in np.ndindex(result.shape):
            place = {letter: number for letter, number in zip(out, index, strict=True)}
            slots = [letters[letter][number] for letter, number in place.items()]
            terms = [
                _Term(left.at({**place, **inner}), right.at({**place, **inner}), [letters[k][n] for k, n in inner.items()])
                for inner in _places({letter: len(letters[letter]) for letter in summed})
            ]
            result[index] = self._sum(node, meaning, terms, slots)
        cells = self._spread(output, meaning, result, letters)
        return cells if meaning.bias is None else self._add_bias(node, output, meaning.bias, cells)

    def _labelled(self, meaning: Contract, value: Value, side: int) -> _Labelled:
        factors = dict(meaning.factors)
        cells, sizes, axes = self.of(value), {}, []
        for dim, label in enumerate(split_labels(meaning.labels[side])):
            if label == ".":
                continue
            parts = [value.axes[dim]] if len(label) == 1 else [factors[letter] for letter in label]
            for letter, axis in zip(label, parts, strict=True):
                sizes[letter] = self.layout.slots(axis)
            axes.append(label)
        window = [dim for dim, label in enumerate(split_labels(meaning.labels[side])) if label == "."]
        for dim in reversed(window):
            cells = cells.take(0, axis=dim)
        order = [letter for label in axes for letter in label]
        return _Labelled(cells.reshape([len(sizes[letter]) for letter in order]), order, sizes)

    def _spread(self, output: Value, meaning: Contract, result: Cells, letters: dict[str, list[Slot]]) -> Cells:
        """Put the window's axes back."""
        shape = [self.layout.count(axis) for axis in output.axes]
        lead: list[int] = []
        for dim, label in enumerate(split_labels(meaning.labels[2])):
            lead.append(1 if label == "." else shape[dim])
        return np.broadcast_to(result.reshape(lead), shape)

    def _sum(self, node: Node, meaning: Contract, terms: list[_Term], slots: list[Slot]) -> Cell:
        """One cell of a contraction."""
        live = [term for term in terms if Kind.ZERO not in (term.left.kind, term.right.kind)]
        if any(Kind.LOST in (term.left.kind, term.right.kind) for term in live):
            return LOST
        if not live:
            return ZERO
        wanted = not any(slot.is_new for slot in slots)
        identity = [term for term in live if Kind.IDENTITY in (term.left.kind, term.right.kind)]
        if self.found is None and not identity:
            return self._new_sum(node, live)
        bad = [term for term in live if not term.is_kept]
        if wanted and bad:
            raise self._silence(node, bad)
        if identity and not bad:
            return replace(identity[0].activation, direct=False)
        if bad:
            return self._new_sum(node, live)
        scales = [term.scale + self._shares(node, meaning, term) for term in live]
        for scale in scales[1:]:
            self._equal(scale, scales[0], node)
        means = [term.mean for term in live if term.mean is not None]
        return Cell(Kind.MEAN, scales[0], atom=means[0]) if means else kept(scales[0])

    def _silence(self, node: Node, bad: list[_Term]) -> Exception:
        """Make every term over new units 0: by its reader where it is a parameter, else by what writes it."""
        entries: set[Entry] = set()
        for term in bad:
            entry = term.silencer()
            if entry is None:
                growing = [atom for slot in term.slots for atom in slot.new_atoms()]
                origins = term.left.origin or term.right.origin or "new units"
                return self._fail(
                    f"{node.op} in {node.where} mixes {origins} into what the source computes"
                    + (f" over {self._describe(growing)}" if growing else "")
                    + "; no parameter can be set to 0 to prevent it.",
                    growing,
                )
            entries |= entry
        return _Commit(zeros=entries)

    def _new_sum(self, node: Node, live: list[_Term]) -> Cell:
        origin = next((cell.origin for term in live for cell in (term.right, term.left) if cell.origin), "")
        return Cell(
            Kind.NEW,
            sources=_union(term.silencer() for term in live),
            mean_sources=_union(term.averager() for term in live if term.mean is None),
            origin=origin or self._why_unmatched(node),
        )

    def _shares(self, node: Node, meaning: Contract, term: _Term) -> Scale:
        """Copied units are read in shares; where no single reader can be divided, the sum is larger by their number."""
        total = ONE
        for atom in [atom for slot in term.slots for atom in slot.copied_atoms()]:
            reader = self._reader(meaning, atom)
            if reader is not None:
                self.decisions.shares.add((reader, atom))
                continue
            total = total + shifted(self._multiplicity(node, atom))
        return total

    def _multiplicity(self, node: Node, atom: Axis) -> float:
        old = self.pairing.old_size(atom)
        if atom.size % old:
            raise self._fail(
                f"{node.op} in {node.where} sums over {self._describe([atom])}, whose copies cannot be read in shares; "
                f"use a multiple of {old}.",
                [atom],
            )
        return atom.size / old

    def _reader(self, meaning: Contract, atom: Axis) -> Dimension | None:
        """The parameter's dimension that reads `atom`, if it is nowhere written."""
        for value, letters in ((meaning.right, meaning.labels[1]), (meaning.left, meaning.labels[0])):
            for dim, label in enumerate(split_labels(letters)):
                origin = self.roles.of(value)[dim]
                summed = not set(label) & set(meaning.labels[2])
                if origin is not None and summed and atom in atoms(value.axes[dim]) and origin not in self.roles.written:
                    return origin
        return None

    def _add_bias(self, node: Node, output: Value, bias: Value, cells: Cells) -> Cells:
        """A bias runs along the last axis of a product, along the channels of a convolution."""
        grid = self.layout.grid(output.axes)
        own = self.of(bias)
        if node.name == "convolution":
            own = own.reshape([1, -1, *[1] * (len(output.axes) - 2)])
        own = np.broadcast_to(own, cells.shape)
        function = _Probed(lambda inputs: inputs[0] + inputs[1], 2, shared="add")
        result, passed = filled(cells.shape, lambda _: LOST), set[int]()
        for index in np.ndindex(result.shape):
            slots = [grid[dim][number] for dim, number in enumerate(index)]
            result[index] = self._combine(node, function, [cells[index], own[index]], slots, passed)
        if passed == {0} and self.found is None:
            self.twins.twin[output] = self._identity_twin(node)
        return result

    def _identity_twin(self, node: Node) -> Value | None:
        """An identity layer's output is its input."""
        for value in node.tensors():
            if value.name is None and self.twins.twin.get(value) is not None:
                return self.twins.twin[value]
        return None

    # ---- tables
    def _lookup(self, node: Node, output: Value, meaning: Lookup) -> Cells:
        table, index = self.of(meaning.table), self.of(meaning.index)
        for cell in index.flat:
            if cell.kind is not Kind.KEPT:
                raise self._fail(f"{node.op} in {node.where} is indexed by new entries.")
        slots = self.layout.slots(meaning.table.axes[meaning.dim])
        row = next((i for i, slot in enumerate(slots) if not slot.is_new), 0)
        rows = table.take(row, axis=meaning.dim)
        cells = np.broadcast_to(rows, [*index.shape, *rows.shape])
        if self.found is None:
            cells = filled(cells.shape, lambda at: self._unknown_if_kept(node, cells[at]))
        return cells

    def _unknown_if_kept(self, node: Node, cell: Cell) -> Cell:
        return Cell(Kind.NEW, origin=self._why_unmatched(node)) if cell.kind is Kind.KEPT else cell

    # ---- statistics
    def _reduce(self, node: Node, output: Value, meaning: Reduce) -> Cells:
        cells, grid = self.of(meaning.input), self.layout.grid(meaning.input.axes)
        dims = meaning.dims
        outer = [dim for dim in range(cells.ndim) if dim not in dims]
        result = filled([cells.shape[dim] for dim in outer], lambda _: LOST)
        for index in np.ndindex(result.shape):
            slots = [grid[dim][number] for dim, number in zip(outer, index, strict=True)]
            inner = [
                (cells[_merge(outer, index, dims, place)], [grid[dim][number] for dim, number in zip(dims, place, strict=True)])
                for place in np.ndindex(*[cells.shape[dim] for dim in dims])
            ]
            result[index] = self._statistic(node, meaning, inner, slots)
        shape = [self.layout.count(axis) for axis in output.axes]
        return result.reshape(shape)

    def _statistic(
        self, node: Node, meaning: Reduce, inner: list[tuple[Cell, list[Slot]]], slots: list[Slot]
    ) -> Cell:
        if any(cell.kind is Kind.LOST for cell, _ in inner):
            return LOST
        old = [cell for cell, at in inner if not any(slot.is_new for slot in at)]
        added = [(cell, at) for cell, at in inner if any(slot.is_new for slot in at)]
        if any(slot.is_new for slot in slots) or self.found is None:
            return self._new_statistic(node, [cell for cell, _ in inner])
        if any(cell.kind is Kind.NEW for cell in old):
            raise self._part(self._origins(old, frozenset(range(len(old)))))
        if all(cell.kind is Kind.ZERO for cell, _ in inner):
            return ZERO
        self._admit(node, meaning.kind, added)
        first = next(cell for cell in old if cell.kind is not Kind.ZERO)
        for cell in old:
            if cell.kind is not Kind.ZERO:
                self._equal(cell.scale, first.scale, node)
        power = {"var": 2.0}.get(meaning.kind, 1.0)
        growth = self._counts(meaning)
        copied = [atom for _, at in inner for slot in at for atom in slot.copied_atoms()]
        return kept(first.scale * power + self._statistic_shift(node, meaning.kind, growth, added, copied))

    def _new_statistic(self, node: Node, cells: list[Cell]) -> Cell:
        union = _union(cell.sources for cell in cells if cell.kind is not Kind.ZERO)
        return Cell(Kind.NEW, sources=union, origin=self._why_unmatched(node))

    def _admit(self, node: Node, kind: str, added: list[tuple[Cell, list[Slot]]]) -> None:
        """New units under a statistic must be 0, or the mean of the others; commit to it or refuse."""
        for cell, at in added:
            growing = [atom for slot in at for atom in slot.new_atoms()]
            self.admitted.update(growing)
            if cell.kind is Kind.ZERO and kind in ("sum", "mean", "norm"):
                continue
            if cell.kind is Kind.MEAN and kind in ("mean", "var") and growing == [cell.atom]:
                continue
            if cell.kind is Kind.NEW and kind in ("mean", "var") and cell.mean_sources and len(growing) == 1:
                raise _Commit(means={entry: growing[0] for entry in cell.mean_sources})
            if cell.kind is Kind.NEW and kind in ("sum", "mean", "norm") and cell.sources:
                raise _Commit(zeros=cell.sources)
            raise self._fail(
                f"{node.op} in {node.where} takes a {kind} over {self._describe(growing)}: new units would change it. "
                f"Use a multiple of {self.pairing.old_size(growing[0])}, so that they can be copies, or keep this size.",
                growing,
            )

    def _counts(self, meaning: Reduce) -> float:
        """How many times more entries the statistic runs over."""
        growth = 1.0
        for dim in meaning.dims:
            axis = meaning.input.axes[dim]
            growth *= axis.size / max(1, len(self.pairing.old_positions(axis)))
        return growth

    def _statistic_shift(
        self, node: Node, kind: str, growth: float, added: list[tuple[Cell, list[Slot]]], copied: list[Axis]
    ) -> Scale:
        for atom in dict.fromkeys(copied):
            if kind != "max":
                self._multiplicity(node, atom)
        silent = bool(added) and all(cell.kind is Kind.ZERO for cell, _ in added)
        if kind == "mean" and silent:
            return shifted(1.0 / growth)
        if kind == "var" and added:
            return shifted(1.0 / growth)
        if kind == "sum" and not added and growth != 1.0:
            return shifted(growth)
        if kind == "norm" and not added and growth != 1.0:
            return shifted(growth**0.5)
        return ONE

    # ---- norms
    def _normalize(self, node: Node, output: Value, meaning: Normalize) -> Cells:
        value = meaning.input
        cells, grid = self.of(value), self.layout.grid(value.axes)
        if self.found is not None:
            self._same_eps(node)
        result = filled(cells.shape, lambda _: LOST)
        gains = self._parameter_along(meaning.scale, meaning, cells)
        shifts = self._parameter_along(meaning.shift, meaning, cells)
        statistic = _norm_statistic(meaning, self.layout, cells)
        for index in np.ndindex(cells.shape):
            group = [at for at in np.ndindex(cells.shape) if statistic(at) == statistic(index)]
            slots = [grid[dim][number] for dim, number in enumerate(index)]
            unit = self._normalized(node, meaning, cells, grid, index, group, slots)
            result[index] = self._affine(node, unit, gains, shifts, index, slots)
        return result

    def _same_eps(self, node: Node) -> None:
        assert self.found is not None
        for name in ("eps", "epsilon"):
            new, old = node.arguments.get(name), self.found.arguments.get(name)
            if new != old:
                raise self._fail(f"{node.op} in {node.where} has {name} {new}, the source {old}; make them the same.")

    def _parameter_along(self, parameter: Value | None, meaning: Normalize, cells: Cells) -> Cells | None:
        if parameter is None:
            return None
        own = self.of(parameter)
        if meaning.kind in ("batch", "group"):
            own = own.reshape([1, -1, *[1] * (cells.ndim - 2)])
        return np.broadcast_to(own, cells.shape)

    def _normalized(
        self,
        node: Node,
        meaning: Normalize,
        cells: Cells,
        grid: list[list[Slot]],
        index: tuple[int, ...],
        group: list[tuple[int, ...]],
        slots: list[Slot],
    ) -> Cell:
        """One cell before gain and bias."""
        cell = cells[index]
        members = [(cells[at], [grid[dim][number] for dim, number in enumerate(at)]) for at in group]
        if any(member.kind is Kind.LOST for member, _ in members):
            return LOST
        if self.found is None:
            return Cell(Kind.NEW, sources=None, origin=self._why_unmatched(node))
        outside = [slot for dim, slot in enumerate(slots) if dim not in meaning.dims]
        if meaning.kind == "batch" or meaning.kind == "group":
            return self._per_unit(node, meaning, cell, members, slots)
        if any(slot.is_new for slot in outside):
            return Cell(Kind.NEW, origin=cell.origin)
        old = [member for member, at in members if not any(slot.is_new for slot in at)]
        added = [(member, at) for member, at in members if any(slot.is_new for slot in at)]
        self._admit(node, "var" if meaning.kind == "layer" else "norm", added)
        growth = 1.0
        for dim in meaning.dims:
            axis = meaning.input.axes[dim]
            growth *= axis.size / max(1, len(self.pairing.old_positions(axis)))
        for atom in {atom for _, at in members for slot in at for atom in slot.copied_atoms()}:
            self._multiplicity(node, atom)
        wanted = shifted(growth**0.5) if added else ONE
        for member in old:
            if member.kind is Kind.NEW:
                raise self._part(member.origin)
            if member.kind is Kind.KEPT:
                self._equal(member.scale, wanted, node)
        return kept(wanted) if cell.kind is Kind.KEPT else ZERO

    def _per_unit(
        self, node: Node, meaning: Normalize, cell: Cell, members: list[tuple[Cell, list[Slot]]], slots: list[Slot]
    ) -> Cell:
        """Statistics per unit (batch) or per group of units."""
        if meaning.kind == "group":
            inner = set(atoms(meaning.group[1])) if meaning.group else set()
            growing = [atom for _, at in members for slot in at for atom in slot.new_atoms() if atom in inner]
            copies = [atom for _, at in members for slot in at for atom in slot.copied_atoms() if atom in inner]
            for atom in copies:
                self._multiplicity(node, atom)
            if growing:
                raise self._fail(
                    f"{node.op} in {node.where} takes its statistics over {self._describe(growing)} inside each group. "
                    f"Grow the number of groups with the width, or use a multiple of {self.pairing.old_size(growing[0])}.",
                    growing,
                )
        if cell.kind is Kind.NEW or any(slot.is_new for slot in slots):
            return Cell(Kind.NEW, origin=cell.origin or "new units")
        self._require(cell, node)
        return kept()

    def _affine(
        self,
        node: Node,
        unit: Cell,
        gains: Cells | None,
        shifts: Cells | None,
        index: tuple[int, ...],
        slots: list[Slot],
    ) -> Cell:
        passed: set[int] = set()
        if gains is not None:
            multiply = _Probed(lambda inputs: inputs[0] * inputs[1], 2, shared="multiply")
            unit = self._combine(node, multiply, [unit, gains[index]], slots, passed)
        if shifts is not None:
            add = _Probed(lambda inputs: inputs[0] + inputs[1], 2, shared="add")
            unit = self._combine(node, add, [unit, shifts[index]], slots, passed)
        return unit

    # ---- the rest
    def _softmax(self, node: Node, output: Value, meaning: Softmax) -> Cells:
        cells, slots = self.of(meaning.input), self.layout.slots(meaning.input.axes[meaning.dim])
        growing = [atom for slot in slots for atom in slot.new_atoms()]
        if growing:
            raise self._fail(
                f"{node.op} in {node.where} is a softmax over {self._describe(growing)}: new units would take "
                f"probability from the others. Use a multiple of {self.pairing.old_size(growing[0])}, or keep this size.",
                growing,
            )
        shift = ONE
        for atom in {atom for slot in slots for atom in slot.copied_atoms()}:
            shift = shift + shifted(1.0 / self._multiplicity(node, atom))

        def make(index: tuple[int, ...]) -> Cell:
            cell: Cell = cells[index]
            if cell.kind in (Kind.NEW, Kind.LOST):
                return replace(cell, sources=None, mean_sources=None, direct=False)
            if self.found is None:
                return Cell(Kind.NEW, origin=self._why_unmatched(node))
            self._require(cell, node)
            return kept(shift)

        return filled(cells.shape, make)

    def _along(self, node: Node, output: Value, meaning: Along) -> Cells:
        cells = self.of(meaning.inputs[0])
        growing = [
            atom
            for dim in meaning.dims
            for atom in atoms(meaning.inputs[0].axes[dim])
            if self.pairing.grows(atom) and self.pairing.old_size(atom)
        ]
        if growing:
            raise self._fail(
                f"{node.op} in {node.where} goes by position along {self._describe(growing)}: new units would move the "
                "others. Keep this size as it is.",
                growing,
            )
        for dim in meaning.dims:
            cells = cells.take([0], axis=dim)
        shape = [self.layout.count(axis) for axis in output.axes]
        if cells.ndim != len(shape):
            cells = cells.reshape([1] * (len(shape) - cells.ndim) + list(cells.shape)) if cells.ndim < len(shape) else cells
            if cells.ndim > len(shape):
                cells = cells.reshape(shape)
        cells = np.broadcast_to(cells, shape)
        if self.found is None:
            cells = filled(shape, lambda at: self._unknown_if_kept(node, cells[at]))
        return filled(shape, lambda at: replace(cells[at], direct=False))

    _handlers: dict[type, Callable[..., Cells]] = {
        Rearrange: _rearrange,
        Pointwise: _pointwise,
        Contract: _contract,
        Lookup: _lookup,
        Reduce: _reduce,
        Normalize: _normalize,
        Softmax: _softmax,
        Along: _along,
        Create: _create,
        Opaque: _opaque,
    }

    # ------------------------------------------------------------------ the outputs
    def _outputs(self) -> None:
        self.at = len(self.target.nodes)
        if len(self.source.outputs) != len(self.target.outputs):
            self._fail(
                f"the source returns {len(self.source.outputs)} tensors, the target {len(self.target.outputs)}; "
                "pass forward= a callable that returns the same from both."
            )
            return
        for number, (old, new) in enumerate(zip(self.source.outputs, self.target.outputs, strict=True)):
            self._output(number, old, new)

    def _output(self, number: int, old: Value, new: Value) -> None:
        if new.constant is not None or any(cell.kind is Kind.LOST for cell in self.of(new).flat):
            return
        grid = self.layout.grid(new.axes)
        for index in np.ndindex(self.of(new).shape):
            if any(grid[dim][position].is_new for dim, position in enumerate(index)):
                continue
            cell = self.of(new)[index]
            if cell.kind is Kind.NEW:
                self._part(cell.origin or "new entries")
                return
            if cell.kind is Kind.KEPT:
                self.equations.append(Equation(cell.scale, f"output {number}", self.at))
        if self.twins.twin.get(new) is not old and not self.failures:
            first = self.parted[min(self.parted)] if self.parted else f"output {number} differently"
            self._part(first)


@dataclass(frozen=True)
class _Term:
    """One product of a contraction, over one choice of slots of the summed axes."""

    left: Cell
    right: Cell
    slots: list[Slot]

    @property
    def is_kept(self) -> bool:
        known = (Kind.KEPT, Kind.MEAN, Kind.IDENTITY)
        return self.left.kind in known and self.right.kind in known and not any(slot.is_new for slot in self.slots)

    @property
    def scale(self) -> Scale:
        return self.left.scale + self.right.scale

    @property
    def mean(self) -> Axis | None:
        return self.left.atom or self.right.atom

    @property
    def activation(self) -> Cell:
        return self.left if self.right.kind is Kind.IDENTITY else self.right

    def averager(self) -> frozenset[Entry] | None:
        """The parameter cells whose mean over units makes this product one."""
        for cell in (self.right, self.left):
            if cell.kind is Kind.NEW and cell.direct:
                return cell.mean_sources
        return next((cell.mean_sources for cell in (self.left, self.right) if cell.kind is Kind.NEW), None)

    def silencer(self) -> frozenset[Entry] | None:
        """The parameter cells whose zero makes this product 0."""
        for cell, other in ((self.left, self.right), (self.right, self.left)):
            if cell.born_zero and cell.sources and other.direct:
                return cell.sources
        for cell in (self.right, self.left):
            if cell.kind is Kind.NEW and cell.direct:
                return cell.sources
        return self.left.sources if self.left.sources is not None else self.right.sources


@dataclass(frozen=True)
class _Labelled:
    """Cells of one factor of a contraction, by label."""

    cells: Cells
    order: list[str]
    sizes: dict[str, list[Slot]]

    def at(self, place: dict[str, int]) -> Cell:
        cell: Cell = self.cells[tuple(place[letter] for letter in self.order)]
        return cell


class _Probed:
    """A function's measured algebra, each question asked once."""

    _shared: dict[Any, dict[Any, Any]] = {}

    def __init__(self, function: probe.Function, count: int, shared: Any = None) -> None:
        self.function, self.count = function, count
        self.answers: dict[Any, Any] = {} if shared is None else self._shared.setdefault(shared, {})

    def _ask(self, question: Any, answer: Callable[[], Any]) -> Any:
        if question not in self.answers:
            try:
                self.answers[question] = answer()
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                self.answers[question] = None  # the operator takes no such inputs: no law holds
        return self.answers[question]

    def vanishes(self, zeros: frozenset[int]) -> bool:
        return bool(self._ask(("vanishes", zeros), lambda: probe.vanishes(self.function, self.count, zeros)))

    def passes(self, zeros: frozenset[int], which: int) -> bool:
        return bool(self._ask(("passes", zeros, which), lambda: probe.passes(self.function, self.count, zeros, which)))

    def degree(self, scaled: frozenset[int], zeros: frozenset[int]) -> float | None:
        power: float | None = self._ask(
            ("degree", scaled, zeros), lambda: probe.degree(self.function, self.count, scaled, zeros)
        )
        return power

    def averages(self, mean: frozenset[int]) -> bool:
        return bool(self._ask(("averages", mean), lambda: probe.averages(self.function, self.count, mean)))

    def repeats(self) -> bool:
        return bool(self._ask("repeats", lambda: probe.repeats(self.function)))


def _probed_operator(
    op: Any, arguments: dict[str, Any], names: tuple[str, ...], changed: tuple[str, ...], floating: tuple[bool, ...]
) -> _Probed:
    """The operator on 1-D float64 samples; boolean and integer inputs are fixed patterns."""
    inputs = [*names, *changed]
    fixed = {name: value for name, value in arguments.items() if name not in inputs}
    mask = torch.arange(64) % 2 == 0

    def function(samples: Sequence[Tensor]) -> Tensor:
        values = dict(arguments)
        for number, (name, sample) in enumerate(zip(inputs, samples, strict=True)):
            if name in changed:
                values[name] = float(sample[0]) if not isinstance(arguments[name], int) else arguments[name]
                continue
            values[name] = sample.clone() if floating[number] else (mask if arguments[name].dtype is torch.bool else mask.long())
        result = _call(op, values)
        return result[0] if isinstance(result, (tuple, list)) else result

    if changed:
        return _Probed(_number_function(function, names, changed, arguments, op), len(inputs))
    key = (op, names, floating, repr(sorted(fixed.items(), key=lambda item: item[0])))
    return _Probed(function, len(inputs), shared=key)


def _number_function(function: Any, names: tuple[str, ...], changed: tuple[str, ...], arguments: Any, op: Any) -> Any:
    """With a number that changes: ask the operator at one value of the number per call."""

    def with_number(samples: Sequence[Tensor]) -> Tensor:
        values = dict(arguments)
        for name, sample in zip(names, samples, strict=False):
            values[name] = sample.clone()
        for name, sample in zip(changed, samples[len(names) :], strict=True):
            values[name] = float(sample.abs()[0])
        result = _call(op, values)
        return result[0] if isinstance(result, (tuple, list)) else result

    return with_number


def _call(op: Any, values: dict[str, Any]) -> Any:
    args, kwargs = [], {}
    for argument in op._schema.arguments:
        if argument.name in ("dtype", "layout", "device", "pin_memory", "memory_format", "generator", "out"):
            continue
        if argument.kwarg_only:
            kwargs[argument.name] = values[argument.name]
        else:
            args.append(values[argument.name])
    return op(*args, **kwargs)


def _union(sources: Iterable[frozenset[Entry] | None]) -> frozenset[Entry] | None:
    """All of them together; None if one is missing or there are none."""
    every = list(sources)
    if not every or None in every:
        return None
    return frozenset().union(*[item for item in every if item is not None])


def _first_uses(trace: Trace) -> dict[str, int]:
    uses: dict[str, int] = {}
    for number, node in enumerate(trace.nodes):
        for value in node.tensors():
            if value.name is not None:
                uses.setdefault(value.name, number)
    return uses


def _broadcast(cells: Cells, shape: list[int], value: Value, output: Value) -> Cells:
    return np.broadcast_to(cells, shape)


def _places(sizes: dict[str, int]) -> Iterable[dict[str, int]]:
    for index in np.ndindex(*sizes.values()):
        yield dict(zip(sizes, index, strict=True))


def _merge(outer: list[int], index: tuple[int, ...], dims: tuple[int, ...], place: tuple[int, ...]) -> tuple[int, ...]:
    at = dict(zip(outer, index, strict=True)) | dict(zip(dims, place, strict=True))
    return tuple(at[dim] for dim in range(len(at)))


def _ratio(old: Tensor, new: Tensor) -> float | None:
    """The one factor between two constants, 1.0 where they are equal, None where there is no single positive one."""
    if old.shape != new.shape:
        return None
    if torch.equal(torch.nan_to_num(old.double()), torch.nan_to_num(new.double())):
        return 1.0
    if not old.is_floating_point():
        return None
    finite = old.double().abs() > 0
    if not finite.any() or not torch.equal(finite, new.double().abs() > 0):
        return None
    ratios = new.double()[finite] / old.double()[finite]
    first = float(ratios[0])
    return first if first > 0 and torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-6) else None


def _norm_statistic(meaning: Normalize, layout: Layout, cells: Cells) -> Callable[[tuple[int, ...]], Any]:
    """The key of the entries that share a statistic."""
    if meaning.kind == "batch":
        return lambda at: at
    if meaning.kind == "group":
        inner = layout.count(meaning.group[1])
        return lambda at: (*at[:1], at[1] // inner)
    return lambda at: tuple(number for dim, number in enumerate(at) if dim not in meaning.dims)
