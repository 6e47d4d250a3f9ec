"""The plain attributes of a module under another architecture: what it decides, and what points at its parts.

A module holds more than parameters and submodules: a configuration, a function that knows the width, a list of its own
layers. Two newly built modules, before and after a growth, tell what of that the architecture decides.
"""

from __future__ import annotations

import copy
import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

Opened = tuple[Any, list[Any], Callable[[list[Any]], Any]]


def named_parts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every submodule, parameter and buffer by its dotted name; a tied one under each of its names."""
    tensors = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return chain(module.named_modules(), *tensors)


def is_alike(one: Any, other: Any, names: Mapping[int, str]) -> bool:
    """Whether two values say the same, as deep as they can be opened; parts of modules are alike by their names.

    What cannot be opened nor compared (a generator, a lock) counts as alike if it is of one type, and so does what is
    too deep to look through.

    Args:
        one: A value.
        other: Another.
        names: The dotted names of all parts of the modules that the values may point at, by ``id``.

    >>> is_alike(lambda x, width=4: x / width, lambda x: x, {}), is_alike([1, (2, {"a": 3})], [1, (2, {"a": 3})], {})
    (False, True)
    """
    try:
        return _is_alike(one, other, names, set())
    except RecursionError:
        return True


def _is_alike(one: Any, other: Any, names: Mapping[int, str], seen: set[tuple[int, int]]) -> bool:
    """See `is_alike`; pairs that were seen are alike, for the first that are not end it all."""
    if one is other or (id(one), id(other)) in seen:
        return True
    seen.add((id(one), id(other)))
    if id(one) in names or id(other) in names:
        return names.get(id(one)) == names.get(id(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return has_same_values(one, other)
    opened, theirs = _open(one), _open(other)
    if opened is None or theirs is None:
        return _is_equal(one, other)
    pairs = zip(opened[1], theirs[1], strict=False)
    return opened[0] == theirs[0] and all(_is_alike(*pair, names, seen) for pair in pairs)


def has_same_values(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are equal, on whatever devices; or both None."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one.detach().cpu().to(other.dtype), other.detach().cpu())


def redirect(value: Any, parts: Mapping[int, Any]) -> Any:
    """The same value with other parts of modules in place of those that it points at; itself where it points at none.

    Args:
        value: Anything.
        parts: For the ``id`` of a part, what takes its place.

    >>> old, new = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> redirect({"layers": [old, 1]}, {id(old): new})["layers"][0] is new
    True
    """
    try:
        return _redirect(value, dict(parts))
    except RecursionError:
        return value


def _redirect(value: Any, known: dict[int, Any]) -> Any:
    """See `redirect`; what was met is known, and stands for itself inside of itself."""
    opened = None if id(value) in known else _open(value)
    if opened is None:
        return known.get(id(value), value)
    known[id(value)] = value
    items = [_redirect(item, known) for item in opened[1]]
    if not all(map(operator.is_, items, opened[1])):
        known[id(value)] = opened[2](items)
    return known[id(value)]


def _open(value: Any) -> Opened | None:
    """What a value is, what is in it, and how to make one with other things in it; None if it is of one piece."""
    kind = type(value)
    if kind in (list, tuple):
        return (kind, len(value)), list(value), kind
    if isinstance(value, dict):
        return (kind, tuple(value)), list(value.values()), lambda items: _fill_dict(value, items)
    if kind is MethodType:
        return (kind, value.__func__), [value.__self__], lambda items: MethodType(value.__func__, *items)
    if kind is FunctionType:
        return _open_function(value)
    if kind is partial:
        content = [value.func, value.args, value.keywords]
        return (kind,), content, lambda items: partial(items[0], *items[1], **items[2])
    if kind is weakref.ref:
        return (kind,), [value()], lambda items: weakref.ref(*items)
    if isinstance(value, (type, nn.Module)) or not hasattr(value, "__dict__"):
        return None
    return (kind, tuple(vars(value))), list(vars(value).values()), lambda items: _fill_object(value, items)


def _open_function(value: FunctionType) -> Opened:
    """Code, and what it captured: its closure, its defaults."""
    cells = [cell for cell in value.__closure__ or () if cell != CellType()]  # an empty one has no content to read
    whole = len(cells) == len(value.__closure__ or ())

    def rebuild(items: list[Any]) -> Any:
        closure = tuple(map(CellType, items[2:])) if whole else value.__closure__
        made = FunctionType(value.__code__, value.__globals__, value.__name__, items[0], closure)
        made.__kwdefaults__ = items[1]
        return made

    return (
        (value.__code__, len(cells)),
        [value.__defaults__, value.__kwdefaults__, *(c.cell_contents for c in cells)],
        rebuild,
    )


def _fill_dict(value: dict[Any, Any], items: list[Any]) -> Any:
    made = copy.copy(value)
    made.update(zip(value, items, strict=True))
    return made


def _fill_object(value: Any, items: list[Any]) -> Any:
    made = copy.copy(value)
    vars(made).update(zip(vars(value), items, strict=True))
    return made


def _is_equal(one: Any, other: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(one, numpy.ndarray):
        return bool(numpy.array_equal(one, other))
    if isinstance(one, type):
        return False  # they are not the same
    if type(one).__eq__ is object.__eq__:  # type: ignore[comparison-overlap]
        return True
    try:
        return bool(one == other)
    except Exception:  # a foreign __eq__ may do anything; what cannot be compared is left alone
        return True
