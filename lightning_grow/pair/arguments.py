"""Whether two calls of one operator agree on every argument that is no tensor.

A number that is a size may differ where an axis explains it: it is the source's size there and the target's here. A
number that a pointwise operator computes with may differ, as a factor; the plan asks which one. Nothing else may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from lightning_grow.private import schema
from lightning_grow.trace.axes import Axis, resolve
from lightning_grow.trace.meanings import Along, Contract, Create, Pointwise, Rearrange
from lightning_grow.trace.tape import VIEWS, Node, Value

OldLength = Callable[[Axis], int]
PLACEMENT = ("dtype", "layout", "device", "pin_memory", "memory_format", "generator", "out", "non_blocking", "implicit")
_IN_TRAINING_ONLY = ("momentum", "padding_idx", "scale_grad_by_freq", "sparse")
_DIMENSIONS = ("dim", "dims", "dim0", "dim1")


def find_difference(old: Node, new: Node, old_length: OldLength) -> str:
    """Say which arguments differ, with both values; "" where all agree.

    Args:
        old: The source's call.
        new: The target's.
        old_length: How many positions of a target axis the source has.
    """
    differing = [item for item in _differences(old, new, old_length) if item]
    return f"{new.place}, where {'; '.join(differing)}" if differing else ""


def _differences(old: Node, new: Node, old_length: OldLength) -> Iterator[str]:
    if new.whole is not None and old.whole is not None:
        for name, value in _fixed(new.whole).items():
            before = old.whole.arguments.get(name)
            if not is_same(_at_home(new.whole, name, value), _at_home(old.whole, name, before)):
                yield _say(name, before, value)
    mine, theirs = new.meaning[0], old.meaning[0]
    if isinstance(mine, Contract) and isinstance(theirs, Contract) and mine.labels != theirs.labels:
        kernels = [_kernel(node, product) for node, product in ((old, theirs), (new, mine))]
        if not (_is_first_group(old, mine, old_length) and kernels[0][1] == kernels[1][1]):
            yield _say("the kernel of groups and size", *kernels)
    for name, value in new.arguments.items():
        before = old.arguments.get(name)
        if name in (*PLACEMENT, *_IN_TRAINING_ONLY) or is_same(_at_home(new, name, value), _at_home(old, name, before)):
            continue
        if not _is_explained(new, name, value, before, old_length):
            yield _say(name, before, value)


def _kernel(node: Node, product: Contract) -> list[Any]:
    return [node.arguments.get("groups"), [axis.size for axis in product.right.axes[2:]]]


def _is_first_group(old: Node, new: Contract, old_length: OldLength) -> bool:
    """Whether a convolution without groups is the first one of several."""
    group = dict(new.factors).get("g")
    return group is not None and old.arguments.get("groups") == 1 and old_length(group) == 1


def _type(node: Node, name: str) -> str:
    """The type that an operator's schema declares."""
    return next(str(item.type) for item in schema(node.op).arguments if item.name == name)


def _say(name: str, before: Any, value: Any) -> str:
    return f"{name} is {_plain(before)} in the source and {_plain(value)} in the target"


def _fixed(whole: Node) -> dict[str, Any]:
    """The arguments of a composite operator that are no sizes; what its parts do with these is compared there."""
    return {
        name: value
        for name, value in whole.arguments.items()
        if name not in _IN_TRAINING_ONLY
        and ("int" not in _type(whole, name) or name in _DIMENSIONS)
        and not isinstance(value, (Value, Tensor))
    }


def is_same(first: Any, second: Any) -> bool:
    """Whether two arguments are equal, tensors aside.

    >>> is_same([1, 2], (1, 2)), is_same(1, True), is_same(None, 0)
    (True, False, False)
    """
    return bool(_plain(first) == _plain(second)) and type(_plain(first)) is type(_plain(second))


def _plain(value: Any) -> Any:
    if isinstance(value, (Value, Tensor)):
        return "a tensor"
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _at_home(node: Node, name: str, value: Any) -> Any:
    """Dimensions counted from the front."""
    rank = len(node.tensors()[0].axes) if node.tensors() else 0
    if name not in _DIMENSIONS or not rank:
        return value
    return (
        [item % rank for item in value]
        if isinstance(value, (list, tuple))
        else value % rank
        if isinstance(value, int)
        else value
    )


def _is_explained(node: Node, name: str, value: Any, before: Any, old_length: OldLength) -> bool:
    kind = _type(node, name)
    meaning = node.meaning[0]
    if isinstance(meaning, Contract) and name == "alpha":
        return True  # a factor
    if isinstance(meaning, Pointwise):
        return ("number" in kind or "Tensor" in kind or "float" in kind) and None not in (value, before)
    if "int" not in kind or name in _DIMENSIONS:
        return False
    if isinstance(meaning, Along) and meaning.kept is not None and node.name in VIEWS:
        return before is not None and all(
            one == other for dim, one, other in zip(meaning.kept, value, before, strict=False) if dim is None
        )
    if isinstance(meaning, (Rearrange, Create)):
        return name not in ("start", "end", "index", "step") or _is_position(node, name, value, before, old_length)
    if isinstance(meaning, Contract):
        return name == "groups" and old_length(dict(meaning.factors)["g"]) == before
    return node.op.namespace != "aten" and _is_size(node, value, before, old_length)


def _is_position(node: Node, name: str, value: Any, before: Any, old_length: OldLength) -> bool:
    """Whether a position of the target's axis stands where the other one stands on the source's."""
    if name == "step":
        return False
    axis = resolve(node.tensors()[0].axes[node.arguments["dim"]])
    target, size = _from_front(value, axis.size, name), old_length(axis)
    return position_before(axis, target, old_length) == _from_front(before, size, name)


def _from_front(position: int | None, size: int, name: str) -> int:
    if position is None:
        return 0 if name == "start" else size
    return min(position + size if position < 0 else position, size)


def position_before(axis: Axis, position: int, old_length: OldLength) -> int | None:
    """How many of the source's positions stand before a position; None where the axis has no boundary there.

    >>> position_before(Axis(6, "sum", (Axis(4), Axis(2))), 4, lambda axis: axis.size // 2)
    2
    """
    axis = resolve(axis)
    if position in (0, axis.size):
        return 0 if position == 0 else old_length(axis)
    if axis.kind is None:
        return None
    if axis.kind == "product":
        inner = axis.size // axis.parts[0].size
        outer = None if position % inner else position_before(axis.parts[0], position // inner, old_length)
        return None if outer is None else outer * (old_length(axis) // max(1, old_length(axis.parts[0])))
    before = 0
    for part in axis.parts:
        if position <= part.size:
            within = position_before(part, position, old_length)
            return None if within is None else before + within
        position, before = position - part.size, before + old_length(part)
    return None


def _is_size(node: Node, value: Any, before: Any, old_length: OldLength) -> bool:
    """Whether some axis has the one size in the target and the other in the source."""
    axes = [axis for item in (*node.tensors(), *node.outputs) for axis in item.axes]
    parts = [part for axis in axes for part in (resolve(axis), *resolve(axis).parts)]
    return any(part.size == value and old_length(part) == before for part in parts)
