"""Record every operator of a pass as it runs: its arguments, its tensors, and the axes of each of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_grow.private import TorchDispatchMode, decompositions, no_dispatch, schema
from lightning_grow.trace.aliases import Aliases, View, shares_memory, written
from lightning_grow.trace.axes import Axis
from lightning_grow.trace.meta_results import MetaResults
from lightning_grow.trace.nested import leaves, mapped
from lightning_grow.trace.routing import MASKED, filled_by_mask, has_mask, routed_positions
from lightning_grow.trace.rules import contractions, indexing, rearranging, reductions  # noqa: F401 - fill the table
from lightning_grow.trace.table import has_rule
from lightning_grow.trace.tape import TRANSPARENT, VIEWS, Node, Trace, Value, bind_arguments, is_empty, operator_name
from lightning_grow.trace.unfold import UNFOLDED

_CONTENT_FREE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero", "fill")
_NUMBERS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)  # give one, no tensor
_MOST_GUARDS = 1_000  # of one module, which may ask for each of its experts; a loop that waits has no end here
_LARGEST_CONSTANT = 2**22  # entries; a larger constant is not followed


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Records each operator.

    Args:
        device: "meta", or None to run on the tensors as they are.
        answer: What a forward is told that asks whether there is anything to do; see routing.py.
        flipped: The questions, by their number, that are answered the other way.
    """

    def __init__(self, device: str | None, answer: bool = True, flipped: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.answer, self.flipped = answer, flipped
        self.trace, self.device, self.results = Trace(), device, MetaResults()
        self.values: dict[int, Value] = {}
        self.aliases = Aliases()
        self.columns: dict[Value, Sequence[Tensor]] = {}
        self.alive: list[Tensor] = []  # an id stays unique only while its tensor lives
        self.path: list[str] = []
        self.whole: Node | None = None

    @property
    def where(self) -> str:
        """The module that is running."""
        return self.path[-1] if self.path else ""

    def track(self, tensor: Tensor, value: Value) -> Value:
        """State which value a tensor is."""
        self.values[id(tensor)] = value
        self.alive.append(tensor)
        return value

    def value_of(self, tensor: Tensor) -> Value:
        """The value that a tensor is; a constant where nothing has made it.

        Raises:
            NeedsData: It is on the meta device, so that its content is not there.
        """
        if id(tensor) in self.values:
            view = self.aliases.stale(tensor)
            return self.values[id(tensor)] if view is None else self._again(tensor, view)
        if tensor.is_meta and tensor.numel():  # torch.tensor(x, device=meta), a list as index
            raise NeedsData(self.where)
        constant = torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()
        return self.track(tensor, _made(tensor.shape, tensor.dtype, constant, []))

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator_name(op) in MASKED and has_mask(args[1]):
            with self:
                mask = filled_by_mask(operator_name(op), args)
                if mask is not None:
                    fill = torch.Tensor.masked_fill_ if schema(op).is_mutable else torch.Tensor.masked_fill
                    return fill(args[0], mask, args[2])
            args = (args[0], [column for item in args[1] for column in self._columns(item)], *args[2:])
        arguments = bind_arguments(op, args, kwargs or {})
        values = mapped(lambda leaf: self.value_of(leaf) if isinstance(leaf, Tensor) else leaf, arguments)
        tensors = [leaf for leaf in leaves(values) if isinstance(leaf, Value)]
        if op in _NUMBERS:
            return self._scalar(op, args, tensors)
        if operator_name(op) in UNFOLDED:
            return self._unfold(op, values, args, kwargs or {})
        if not has_rule(op):
            with self:
                simpler = _decompositions().get(op, op.decompose)(*args, **(kwargs or {}))
            if simpler is not NotImplemented:
                return simpler
        if _is_relayout(op, args):
            return op(*args, **(kwargs or {}))
        positions = routed_positions(tensors[0]) if op is torch.ops.aten.nonzero.default else None
        if positions is not None:
            result = positions.to(self.device or args[0].device)
            self._record(Node(op, values, self.where, self.whole), result, [positions])
            return result
        result = self.results(op, self._placed(args), self._placed(kwargs or {}))
        if _changes_nothing(op, tensors, result):
            self.track(result, tensors[0])
            if shares_memory(op):
                self.aliases.enter(result, View(_first(args)))
            return result
        node = Node(op, values, self.where, self.whole)
        contents = self._constant_results(op, args, kwargs or {}, tensors)
        if schema(op).is_mutable and torch.Tag.inplace_view not in op.tags:
            return self._write(node, result, contents, written(op, args, kwargs or {}))
        made = self._record(node, result, contents)
        for number, tensor in enumerate(made) if shares_memory(op) else ():
            self.aliases.enter(tensor, View(_first(args), node, number, args, kwargs or {}))
        return result

    def _columns(self, index: Any) -> Sequence[Any]:
        """The indices that a mask stands for, one per dimension of it, the same ones each time."""
        if not has_mask([index]):
            return [index]
        mask = self.value_of(index)
        if mask not in self.columns:
            with self:
                self.columns[mask] = index.nonzero().unbind(1)
        return self.columns[mask]

    def _unfold(self, op: Any, values: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """Record a composite operator as the simple ones that it is made of."""
        outer, self.whole = self.whole, self.whole or Node(op, values, self.where)
        try:
            with self:
                return UNFOLDED[operator_name(op)](*args, **kwargs)
        finally:
            self.whole = outer

    def _scalar(self, op: Any, args: Any, tensors: list[Value]) -> Any:
        if all(value.constant is not None for value in tensors):
            with no_dispatch():
                return op(*[value.constant for value in tensors])
        if any(value.learned for value in tensors):
            is_question = all(value.dtype is torch.bool and math.prod(value.shape) == 1 for value in tensors)
            if not is_question or self.trace.guards.count(self.where) >= _MOST_GUARDS:
                raise Branches(self.where)
            self.trace.guards.append(self.where)
            return self.answer != (len(self.trace.guards) - 1 in self.flipped)
        if self.device == "meta":
            raise NeedsData(self.where)
        self.trace.branches.append(self.where)
        return op(*args)

    def _placed(self, arguments: Any) -> Any:
        if self.device is None or all(leaf.is_meta for leaf in leaves(arguments) if isinstance(leaf, Tensor)):
            return arguments
        move = lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) and leaf.device.type != "meta" else leaf  # noqa: E731
        with no_dispatch():
            return mapped(move, arguments)

    def _constant_results(self, op: Any, args: Any, kwargs: Any, tensors: list[Value]) -> list[Tensor | None]:
        """Run the operator on the real contents where all of them are known, or do not matter."""
        if operator_name(op) in _CONTENT_FREE:
            args = mapped(
                lambda leaf: torch.zeros(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, args
            )
            tensors = []
        if any(value.constant is None for value in tensors) or torch.Tag.nondeterministic_seeded in op.tags:
            return []
        contents = iter([value.constant for value in tensors])

        def real(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return _laid_out(next(contents, leaf), leaf, schema(op).is_mutable)
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        with no_dispatch():
            results = leaves(op(*mapped(real, args), **mapped(real, kwargs)))
        most = 0 if is_empty(op) else _LARGEST_CONSTANT
        return [item if item.numel() <= most else None for item in results if isinstance(item, Tensor)]

    def _record(self, node: Node, result: Any, contents: list[Tensor | None]) -> list[Tensor]:
        """Put an operator on the tape; its results are what it computes."""
        tensors = [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
        for tensor, content in zip(tensors, contents or [None] * len(tensors), strict=True):
            node.outputs.append(_made(tensor.shape, tensor.dtype, content, node.tensors()))
            self.track(tensor, node.outputs[-1])
        self.trace.nodes.append(node)
        return tensors

    def _write(self, node: Node, result: Any, contents: list[Tensor | None], targets: list[Tensor]) -> Any:
        """Record an operator that writes in place: the tensors written to hold its results, and all below them do."""
        before = [self.values.get(id(tensor)) for tensor in targets]
        made = self._record(node, result, contents)
        for tensor, old, value in zip(targets, before, node.outputs, strict=False):
            self.track(tensor, value)
            for view in self.aliases.write(tensor):
                if view.node is not None and old is not None:
                    value, old = self._write_below(node, view, value, old)
                self.track(view.below, value)
        return result if len(targets) != 1 or len(made) != 1 else targets[0]

    def _write_below(self, writer: Node, view: View, value: Value, old: Value) -> tuple[Value, Value]:
        """What the tensor below a view holds after a write through it, and what it held."""
        below = self.values[id(view.below)]
        arguments = {"self": below, "src": value, "before": old}
        content = self._written_content(view, below, value)
        made = _made(below.shape, below.dtype, content, [below, value])
        node = Node(writer.op, arguments, writer.path, writer.whole, [made], through=(view.node or writer, view.number))
        self.trace.nodes.append(node)
        return made, below

    def _written_content(self, view: View, below: Value, value: Value) -> Tensor | None:
        if below.constant is None or value.constant is None or view.node is None:
            return None
        whole = _laid_out(below.constant, view.below, True)
        with no_dispatch():
            shown = [
                mapped(lambda leaf: whole if leaf is view.below else leaf, item) for item in (view.args, view.kwargs)
            ]
            leaves(view.node.op(*shown[0], **shown[1]))[view.number].copy_(value.constant)
        return whole

    def _again(self, tensor: Tensor, view: View) -> Value:
        """What a view shows of memory that was written to since."""
        below = self.value_of(view.below)
        self.aliases.look(tensor)
        if view.node is None:
            return self.track(tensor, below)
        first = view.node.tensors()[0]
        arguments = mapped(lambda leaf: below if leaf is first else leaf, view.node.arguments)
        node = Node(view.node.op, arguments, view.node.path, view.node.whole)
        contents = self._constant_results(node.op, view.args, view.kwargs, [below])
        contents = contents or [None] * len(view.node.outputs)
        pairs = zip(view.node.outputs, contents, strict=True)
        node.outputs = [_made(value.shape, value.dtype, content, [below]) for value, content in pairs]
        self.trace.nodes.append(node)
        self.aliases.enter(tensor, replace(view, node=node))
        return self.track(tensor, node.outputs[view.number])


def _made(shape: Sequence[int], dtype: torch.dtype, content: Tensor | None, of: Iterable[Value]) -> Value:
    """What an operator makes: a constant where its content is known, else learned where something it is made of is."""
    learned = content is None and any(item.learned for item in of)
    return Value([Axis(size) for size in shape], dtype, constant=content, learned=learned)


def _first(args: Any) -> Tensor:
    return next(leaf for leaf in leaves(args) if isinstance(leaf, Tensor))


def _laid_out(content: Any, like: Tensor, is_written: bool) -> Tensor:
    """A content in the layout that its tensor has in the pass: whether a view can be taken depends on it."""
    if like.numel() and 0 not in like.stride() and content.stride() != like.stride():
        return torch.empty_strided(like.shape, like.stride(), dtype=content.dtype).copy_(content)
    return content.clone() if is_written else content  # type: ignore[no-any-return]


def _is_relayout(op: Any, args: Any) -> bool:
    """Whether as_strided_ gives other strides to dimensions of size 1 only."""
    if operator_name(op) != "as_strided" or not schema(op).is_mutable or len(args) != 3:
        return False
    tensor, size, stride = args
    return list(size) == list(tensor.shape) and all(
        one == other or length == 1 for one, other, length in zip(stride, tensor.stride(), size, strict=True)
    )


_decompositions = lru_cache(maxsize=1)(decompositions)


def _changes_nothing(op: Any, tensors: list[Value], result: Any) -> bool:
    """Whether the result is the first argument under another name: whether torch copies depends on strides."""
    name = operator_name(op)
    if name in TRANSPARENT:
        return True
    if name not in (*VIEWS, "expand", "slice"):
        return False
    return list(result.shape) == [axis.size for axis in tensors[0].axes]  # unsqueeze_ has reshaped its own argument


class NeedsData(Exception):
    """The forward pass asks for the content of an input, which a meta tensor does not have."""


class Branches(Exception):
    """The forward pass asks for the content of a tensor that depends on weights: what it does may change with them."""
