"""Constants: whether a tensor that both models are given is the source's own at the source's positions."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_grow.pair.find import begins_alike
from lightning_grow.plan.cells import kept
from lightning_grow.plan.placement import find_placement
from lightning_grow.plan.run import Run
from lightning_grow.plan.scale import shifted
from lightning_grow.plan.step import Decision, NotKept
from lightning_grow.trace.axes import Axis, atoms
from lightning_grow.trace.meanings import Cells
from lightning_grow.trace.tape import Node, Value, atoms_of


def known_content(run: Run, node: Node, value: Value) -> Cells:
    """The cells of a tensor; a constant's are the source's times one factor.

    Raises:
        NotKept: A constant has other values at the source's positions.
    """
    ratio = known_factor(run, node, value)
    return run.of(value) if ratio == 1.0 else run.layout.each_cell(value.axes, lambda *_: kept(shifted(ratio)))


def known_factor(run: Run, node: Node, value: Value) -> float:
    """The factor between a constant and the source's; 1 for what is no constant, or not known to the source.

    Raises:
        NotKept: A constant has other values at the source's positions.
    """
    source = run.step.source
    if value.constant is None or source is None:
        return 1.0
    before = source.tensors()[node.tensors().index(value)]
    old = before.constant
    if old is None:
        return 1.0
    growing = [atom for axis in value.axes for atom in atoms(axis) if run.match.grows(atom)]
    content = value.constant
    for dim, axis in enumerate(value.axes):
        content = content.index_select(dim, run.match.old_positions(axis)) if growing else content
    ratio = constant_ratio(old, content)
    if ratio is None or (growing and ratio != 1.0):
        _place(run, value, before, growing)
        name = f"buffer '{value.name}'" if value.name else "a constant"
        raise NotKept(
            f"{name} used by {node.place} has other values at the source's positions once {run.describe(growing)} "
            f"grows, and the source's values do not all reappear in order. {_sizes_that_may(run, growing)}",
            growing,
        )
    return ratio


def _sizes_that_may(run: Run, growing: list[Axis]) -> str:
    """What to try where a constant's values are missing: twice as many rotary frequencies hold the old ones."""
    others = "another size (the number of heads or layers, the feed-forward width)"
    if any(atom.size % (run.match.old_size(atom) or atom.size) for atom in growing):
        return f"Take a multiple of the source's size (twice as many frequencies may hold the old ones), or {others}."
    return f"Keep this size and grow {others}."


def _place(run: Run, value: Value, old: Value, growing: list[Axis]) -> None:
    """Begin again with the source's units where their constants are.

    Raises:
        Decision: They have such places, and are elsewhere.
    """
    if len(set(growing)) != 1 or not run.match.old_size(growing[0]):
        return
    placed = find_placement(run, value, old, growing[0])
    if placed is not None and not torch.equal(placed, run.match.units(growing[0]).source):
        raise Decision(placed={growing[0]: placed})


def keep_contents(run: Run, node: Node) -> None:
    """Refuse other constants where a factor would not do.

    Raises:
        NotKept: A constant is not the source's.
    """
    for value in node.tensors():
        if not _begins_alike(run, node, value) and known_factor(run, node, value) != 1.0:
            raise NotKept(f"a constant used by {node.place} has other values than in the source.", parts=True)


def _begins_alike(run: Run, node: Node, value: Value) -> bool:
    """Whether a constant along an axis that nothing names begins with the source's content."""
    if run.step.source is None or value.constant is None:
        return True
    old = run.step.source.tensors()[node.tensors().index(value)].constant
    return not all(map(run.match.old_size, atoms_of([value]))) and begins_alike(old, value.constant)


def constant_ratio(old: Tensor, new: Tensor) -> float | None:
    """The one factor between two constants, 1.0 where they are equal, None where there is no single positive one.

    >>> constant_ratio(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    2.0
    """
    if old.shape != new.shape:
        return None
    is_exact = not (old.is_floating_point() or old.is_complex())
    old, new = (item.to(torch.promote_types(item.dtype, torch.float64)) for item in (old, new))
    if torch.equal(torch.nan_to_num(old), torch.nan_to_num(new)):
        return 1.0
    nonzero = old != 0
    if is_exact or not nonzero.any() or not torch.equal(nonzero, new != 0):
        return None
    ratios = new[nonzero] / old[nonzero]
    first = float(ratios[0].real)
    return first if first > 0 and torch.allclose(ratios, torch.full_like(ratios, first), rtol=1e-6) else None
