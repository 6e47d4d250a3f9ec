"""Sums of products on cells: matrix products, convolutions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_grow.pair.roles import Dimension, split_labels
from lightning_grow.plan.cells import ZERO, Cell, Kind, kept, union
from lightning_grow.plan.content import known_content
from lightning_grow.plan.laws import ADD
from lightning_grow.plan.mixing import keep_index
from lightning_grow.plan.pointwise import changed_number, combine
from lightning_grow.plan.run import Run
from lightning_grow.plan.scale import ONE, Scale, shifted
from lightning_grow.plan.step import Decision, NotKept
from lightning_grow.plan.terms import Term, each_term
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.meanings import Cells, Contract
from lightning_grow.trace.tape import Node, Value


def contract(run: Run, node: Node, output: Value, meaning: Contract) -> Cells:
    """Sum over the labels that the output does not have, cell by cell."""
    if run.step.source is not None:
        run.keep_positions(node, _windows(meaning))
        for index in meaning.routes:
            keep_index(run, node, index)
    cells = _spread(run, output, meaning, [_sum(run, node, meaning, *item) for item in each_term(run, node, meaning)])
    return cells if meaning.bias is None else _add_bias(run, node, output, meaning.bias, cells)


def _windows(meaning: Contract) -> list[Axis]:
    """The axes that a convolution slides over, of the image and of the kernel."""
    sides = ((meaning.left, meaning.labels[0]), (meaning.right, meaning.labels[1]))
    return [
        axis
        for value, letters in sides
        for axis, label in zip(value.axes, split_labels(letters), strict=True)
        if label == "."
    ]


def _spread(run: Run, output: Value, meaning: Contract, sums: list[Cell]) -> Cells:
    """Unfold products of axes, and put the window's axes back."""
    shape = run.layout.shape(output.axes)
    labels = split_labels(meaning.labels[2])
    narrow = [1 if label == "." else size for label, size in zip(labels, shape, strict=True)]
    return np.broadcast_to(np.array(sums, dtype=object).reshape(narrow), shape)


def _add_bias(run: Run, node: Node, output: Value, bias: Value, cells: Cells) -> Cells:
    """A bias runs along the last axis of a product, along the channels of a convolution."""
    own = known_content(run, node, bias)
    if node.name == "convolution":
        own = own.reshape([1, -1, *[1] * (len(output.axes) - 2)])
    factors = [value for value in node.tensors() if value is not bias]
    given = next((value for value in factors if value.name is None and value in run.match.values), factors[0])
    result, same = combine(run, node, output, ADD, [(given, cells), (bias, own)], frozenset([0]))
    run.match.pass_on(same if same is given else None, output)
    return result


def _sum(run: Run, node: Node, meaning: Contract, terms: list[Term], wanted: bool) -> Cell:
    """One cell of the output; an identity layer's is its input's, whether the source has the layer or not."""
    live = [term for term in terms if Kind.ZERO not in (term.left.kind, term.right.kind)]
    if not live:
        return ZERO
    plain = all(node.arguments.get(name, 1) == 1 for name in ("alpha", "beta"))
    identity = [term for term in live if term.is_identity and plain]
    is_known = run.step.source is not None or bool(identity)
    bad = [term for term in live if not term.is_kept]
    if bad and wanted and is_known:
        raise _silence(run, node, bad)
    if bad or not is_known:
        return _new_sum(run, live)
    if identity:
        return replace(identity[0].activation, direct=False)
    alpha = changed_number(run, node, "alpha")
    scales = [term.left.scale + term.right.scale + _shares(run, node, meaning, term) + alpha for term in live]
    for scale in scales[1:]:
        run.equal(scale, scales[0], node)
    mean = next((cell.atom for term in live for cell in (term.left, term.right) if cell.kind is Kind.MEAN), None)
    return kept(scales[0]) if mean is None else Cell(Kind.MEAN, scales[0], atom=mean)


def _silence(run: Run, node: Node, bad: list[Term]) -> Exception:
    """Make every term over new units 0: by its reader where it is a parameter, else by what writes it."""
    entries = union(term.zeroed_by() for term in bad)
    if entries is not None:
        return Decision(zeros=entries)
    growing = [atom for term in bad for slot in term.slots for atom in slot.new_atoms()]
    origin = next((cell.origin for term in bad for cell in (term.left, term.right) if cell.origin), "new units")
    if not growing:
        return run.parting(origin)
    return NotKept(
        f"{node.place} mixes {origin} into what the source computes over {run.describe(growing)}; no "
        f"parameter can be set to 0 to prevent it. Keep this size, or use a multiple of it.",
        growing,
    )


def _new_sum(run: Run, live: list[Term]) -> Cell:
    """A cell with new units, or of an operator that the source does not have."""
    origin = next((cell.origin for term in live for cell in (term.right, term.left) if cell.origin), None)
    return Cell(
        Kind.NEW,
        zeroed_by=union(term.zeroed_by() for term in live),
        averaged_by=union(term.averaged_by() for term in live) or None,
        origin=origin or run.new_here().origin,
    )


def _shares(run: Run, node: Node, meaning: Contract, term: Term) -> Scale:
    """Copied units are read in shares; where no single reader can be divided, the sum is larger by their number."""
    total = ONE
    for atom in [atom for slot in term.slots for atom in slot.copied_atoms()]:
        if (meaning, atom) not in run.readers:
            run.readers[meaning, atom] = _reader(run, meaning, atom)
        reader = run.readers[meaning, atom]
        if reader is None:
            total = total + shifted(multiplicity(run, node, atom))
        else:
            run.step.shares.add((reader, atom))
    return total


def multiplicity(run: Run, node: Node, atom: Axis) -> float:
    """How many copies each unit has, where all must have as many."""
    old = run.match.old_size(atom)
    if atom.size % old:
        raise NotKept(
            f"{node.place} sums over {run.describe([atom])}, whose copies cannot be read in shares; use "
            f"a multiple of {old}.",
            [atom],
        )
    return atom.size / old


def _reader(run: Run, meaning: Contract, atom: Axis) -> Dimension | None:
    """The parameter's dimension that reads `atom`, if it is nowhere written."""
    for value, letters in ((meaning.right, meaning.labels[1]), (meaning.left, meaning.labels[0])):
        for dim, label in enumerate(split_labels(letters)):
            if set(label) & set(meaning.labels[2]) or atom not in atoms(value.axes[dim]):
                continue
            for name, its_dim in run.roles.of(value)[dim]:
                reads_it = atom in atoms(run.match.target.tensors[name].axes[its_dim])
                if reads_it and (name, its_dim) not in run.roles.written:
                    return name, its_dim
    return None
