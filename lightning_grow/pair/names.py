"""Which tensor of the target is which of the source: by name, and by order where a list of layers got longer."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache

from lightning_grow.folding import some

Shapes = Mapping[str, tuple[int, ...]]
Layer = dict[str, tuple[int, ...]]


def match_names(source: Shapes, target: Shapes, rename: Mapping[str, str] | None = None) -> dict[str, str]:
    """Match tensors; numbered layers of one container are matched in order, never shrinking.

    Of all such matches the one that widens least is taken, and of those the one that uses the earliest layers; the
    first and the last layer of a plain stack are thereby kept where they are wherever their sizes say so.

    Args:
        source: Name -> shape.
        target: Name -> shape.
        rename: Target prefix -> source prefix, which win over everything else.

    Returns:
        Target name -> source name.

    >>> source = {"0.weight": (128, 4), "2.weight": (64, 128), "4.weight": (2, 64)}
    >>> target = {"0.weight": (128, 4), "2.weight": (128, 128), "4.weight": (64, 128), "6.weight": (2, 64)}
    >>> match_names(source, target)
    {'0.weight': '0.weight', '4.weight': '2.weight', '6.weight': '4.weight'}
    """
    renamed = _renamed(source, target, rename or {})
    rest_source = {name: shape for name, shape in source.items() if name not in renamed.values()}
    rest_target = {name: shape for name, shape in target.items() if name not in renamed}
    return renamed | _match_level(rest_source, rest_target, "", "")


def _renamed(source: Shapes, target: Shapes, rename: Mapping[str, str]) -> dict[str, str]:
    matched: dict[str, str] = {}
    for new, old in rename.items():
        for name in target:
            if name == new or name.startswith(new + "."):
                candidate = old + name[len(new) :]
                if candidate in source:
                    matched[name] = candidate
    return matched


def _match_level(source: Shapes, target: Shapes, old_prefix: str, new_prefix: str) -> dict[str, str]:
    """Match the children below two prefixes: numbered ones in order, the others by name."""
    old_children, new_children = _children(source, old_prefix), _children(target, new_prefix)
    matched: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    old_numbered = [child for child in old_children if child.isdigit()]
    new_numbered = [child for child in new_children if child.isdigit()]
    if len(old_numbered) == len(new_numbered):
        pairs += list(zip(sorted(old_numbered, key=int), sorted(new_numbered, key=int), strict=True))
    elif old_numbered and new_numbered:
        pairs += _in_order(
            source, target, old_prefix, new_prefix, sorted(old_numbered, key=int), sorted(new_numbered, key=int)
        )
    pairs += [(child, child) for child in new_children if child in old_children and not child.isdigit()]
    for old, new in pairs:
        old_name, new_name = old_prefix + old, new_prefix + new
        if old_name in source and new_name in target:
            matched[new_name] = old_name
        else:
            matched |= _match_level(source, target, old_name + ".", new_name + ".")
    return matched


def _children(names: Shapes, prefix: str) -> list[str]:
    seen = dict.fromkeys(re.split(r"\.", name[len(prefix) :])[0] for name in names if name.startswith(prefix))
    return list(seen)


def _in_order(
    source: Shapes, target: Shapes, old_prefix: str, new_prefix: str, old: list[str], new: list[str]
) -> list[tuple[str, str]]:
    """The cheapest match in order of two lists of layers of different length."""
    old_layers = [_layer(source, f"{old_prefix}{child}.") for child in old]
    new_layers = [_layer(target, f"{new_prefix}{child}.") for child in new]

    @cache
    def best(i: int, j: int) -> tuple[int, int, tuple[tuple[int, int], ...]]:
        """Least (unmatched source layers, growth) of layers from i and j on, with the pairs."""
        if i == len(old_layers):
            return 0, 0, ()
        if j == len(new_layers):
            return len(old_layers) - i, 0, ()
        options = []
        growth = _growth(old_layers[i], new_layers[j])
        if growth is not None:
            missing, later, pairs = best(i + 1, j + 1)
            options.append((missing, growth + later, ((i, j), *pairs)))
        options.append(best(i, j + 1))
        if len(old_layers) - i > len(new_layers) - j or growth is None:
            missing, later, pairs = best(i + 1, j)
            options.append((missing + 1, later, pairs))
        return min(options, key=lambda option: option[:2])

    return [(old[i], new[j]) for i, j in best(0, 0)[2]]


def _layer(names: Shapes, prefix: str) -> Layer:
    return {name[len(prefix) :]: shape for name, shape in names.items() if name.startswith(prefix)}


def _growth(source: Layer, target: Layer) -> int | None:
    """How much wider the target's layer is; None where it is another kind of layer or narrower somewhere."""
    if source.keys() != target.keys():
        return None
    total = 0
    for name, shape in source.items():
        wide = target[name]
        if len(wide) != len(shape) or any(new < old for old, new in zip(shape, wide, strict=True)):
            return None
        total += sum(new - old for old, new in zip(shape, wide, strict=True))
    return total


def new_modules(tensors: Collection[str], known: Collection[str]) -> list[str]:
    """The outermost modules all of whose tensors are new.

    >>> new_modules(["a.0.weight", "a.1.up.weight", "a.1.down.bias", "b"], {"a.0.weight"})
    ['a.1', 'b']
    """
    old = {name[:end] for name in known for end, letter in enumerate(name + ".") if letter == "."}
    found = dict.fromkeys(_outermost(name, old) for name in tensors if name not in known)
    return list(found)


def _outermost(name: str, old: Collection[str]) -> str:
    """The shortest beginning of a tensor's name that no old tensor has: its module, or its own name."""
    parts = name.split(".")
    beginnings = (".".join(parts[:end]) for end in range(1, max(2, len(parts))))
    return next((item for item in beginnings if item not in old), name)


def name_some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are besides, for a refusal.

    >>> name_some(["a", "b"]), name_some(["a", "b", "c", "d", "e", "f"])
    ("'a', 'b'", "'a', 'b', 'c', 'd' and 2 more")
    """
    return some(list(map(repr, names)))
