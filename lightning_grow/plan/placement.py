"""Units whose constants tell them apart (rotary frequencies, slopes of heads) go where theirs reappear.

Llama's pair i at head size 4 turns as pair 2i at head size 8 does; the slopes of 4 heads are every second one of 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_grow.pair.maps import unit_index
from lightning_grow.plan.run import Run
from lightning_grow.trace.axes import Axis, atoms, resolve
from lightning_grow.trace.tape import Value, atoms_of

_SAME = 1e-6  # constants are computed in single precision, by other operations at another size


def find_placement(run: Run, value: Value, source: Value, atom: Axis) -> Tensor | None:
    """Where the source's units go so that this constant, and those asked about before, are the source's own.

    Args:
        run: The run; it keeps which units are alike.
        value: The target's constant.
        source: The source's.
        atom: Units that both have along one dimension.

    Returns:
        The source unit of every target unit, float64 (target units,), -1: none; None where a unit reappears nowhere,
        or where the units are copied, or an input's or an output's, which have their places.
    """
    if atom in run.choice.copied or atom in run.match.named or atom in _ends(run):
        return None
    ours, theirs = _by_unit(value, atom), _by_unit(source, resolve(run.match.atoms[atom][0]))
    if ours is None or theirs is None or ours.shape[1:] != theirs.shape[1:]:
        return None
    alike = torch.isclose(theirs[:, None], ours[None], rtol=_SAME, atol=0.0, equal_nan=True).all(-1)
    run.placed_for = run.at
    run.alike[atom] = alike & run.alike.get(atom, torch.tensor(True))
    return _in_order(run.alike[atom])


def _by_unit(value: Value, atom: Axis) -> Tensor | None:
    """The entries of a constant unit by unit, float64 (units, entries)."""
    dims = [dim for dim, axis in enumerate(value.axes) if atom in set(atoms(axis))]
    if len(dims) != 1 or value.constant is None:
        return None
    units = unit_index(value.axes[dims[0]], atom)
    content = value.constant.movedim(dims[0], 0)
    content = content.to(torch.promote_types(content.dtype, torch.float64))
    rows = [content[units == unit].flatten() for unit in range(atom.size)]
    return torch.stack(rows) if len({len(row) for row in rows}) == 1 else None


def _in_order(alike: Tensor) -> Tensor | None:
    """The first target unit for each source unit, behind that of the one before.

    >>> _in_order(torch.tensor([[False, True, True], [False, True, True]])).tolist()
    [-1.0, 0.0, 1.0]
    """
    placed, after = torch.full((alike.shape[1],), -1.0, dtype=torch.float64), 0
    for unit, row in enumerate(alike):
        found = torch.nonzero(row[after:]).flatten()
        if not len(found):
            return None
        after += int(found[0]) + 1
        placed[after - 1] = unit
    return placed


def _ends(run: Run) -> set[Axis]:
    return atoms_of([*run.match.target.inputs, *run.match.target.outputs.values()])
