"""Trees of axes become positions, held against index arrays."""

import numpy as np
import pytest
import torch

from lightning_grow.pair.maps import UnitMap, axis_map, prefix_map, unit_index
from lightning_grow.trace.axes import Axis, product_of, sum_of


def positions(make, sizes):
    """Where source position i of a layout stands in the target, by numbering units in both layouts."""
    old = make({name: [(name, unit) for unit in range(size[0])] for name, size in sizes.items()})
    new = make({name: [(name, unit) for unit in range(size[1])] for name, size in sizes.items()})
    return [old.index(item) if item in old else -1 for item in new]


def cross(*parts):
    rows = [()]
    for part in parts:
        rows = [(*row, item) for row in rows for item in part]
    return rows


H, D, X = (4, 6), (2, 3), (5, 5)
LAYOUTS = {
    "gates": (
        lambda u: [(gate, item) for gate in range(4) for item in u["h"]],
        lambda a: sum_of([a["h"]] * 4),
        {"h": H},
    ),
    "concatenation": (lambda u: u["h"] + u["d"], lambda a: sum_of([a["h"], a["d"]]), {"h": H, "d": D}),
    "heads": (lambda u: cross(u["h"], u["d"]), lambda a: product_of([a["h"], a["d"]]), {"h": H, "d": D}),
    "channels by pixels": (lambda u: cross(u["h"], u["x"]), lambda a: product_of([a["h"], a["x"]]), {"h": H, "x": X}),
    "pixels by channels": (lambda u: cross(u["x"], u["h"]), lambda a: product_of([a["x"], a["h"]]), {"h": H, "x": X}),
    "inside each group": (lambda u: cross(u["x"], u["d"]), lambda a: product_of([a["x"], a["d"]]), {"x": X, "d": D}),
    "q, k, v by heads": (
        lambda u: [(part, item) for part in range(3) for item in cross(u["h"], u["d"])],
        lambda a: sum_of([product_of([a["h"], a["d"]])] * 3),
        {"h": H, "d": D},
    ),
}


@pytest.mark.parametrize(("units", "axis", "sizes"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_keeps_its_units(units, axis, sizes):
    atoms = {name: Axis(size[1]) for name, size in sizes.items()}
    old = {atoms[name]: size[0] for name, size in sizes.items()}
    mapped = axis_map(axis(atoms), lambda atom: prefix_map(old[atom], atom.size), lambda _: 1)
    assert mapped.low.tolist() == positions(units, sizes)
    kept = mapped.low[mapped.low >= 0]
    assert sorted(kept.tolist()) == list(range(mapped.old))  # injective, and nothing of the source is lost


def test_shares_and_neighbours_follow_the_units():
    head, size = Axis(3), Axis(2)
    copies = UnitMap(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), 2, torch.tensor([0.25, 1.0, 0.75]).double())
    mapped = axis_map(product_of([head, size]), {head: copies, size: prefix_map(2, 2)}.get, lambda _: 1)
    assert mapped.low.tolist() == [0, 1, 2, 3, 0, 1]
    assert mapped.share.tolist() == [0.25, 0.25, 1.0, 1.0, 0.75, 0.75]
    between = UnitMap(torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64), 2)
    mapped = axis_map(product_of([head, size]), {head: between, size: prefix_map(2, 2)}.get, lambda _: 1)
    source = np.arange(4.0)
    values = source[mapped.low] * (1 - mapped.weight.numpy()) + source[mapped.high] * mapped.weight.numpy()
    np.testing.assert_allclose(values, [0, 1, 2, 3, 1, 2])


def test_blocks_are_numbered_row_by_row():
    head, size = Axis(3), Axis(3)
    maps = {head: prefix_map(2, 3), size: prefix_map(1, 3)}
    mapped = axis_map(product_of([head, size]), maps.get, lambda axis: 2 if axis in maps else 4)
    assert mapped.slot.tolist() == [0, 1, 1, 0, 1, 1, 2, 3, 3]


def test_unit_index_finds_an_atom_inside_a_tree():
    head, size = Axis(2), Axis(3)
    axis = sum_of([product_of([head, size]), Axis(1), size])
    assert unit_index(axis, size).tolist() == [0, 1, 2, 0, 1, 2, -1, 0, 1, 2]
    assert unit_index(axis, head).tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1]
