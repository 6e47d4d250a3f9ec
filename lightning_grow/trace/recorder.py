"""Record every operator of a pass as it runs: its arguments, its tensors, and the axes of each of them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_grow.private import TorchDispatchMode, base, decompositions, no_dispatch, schema, tree_leaves, tree_map
from lightning_grow.trace.axes import Axis
from lightning_grow.trace.meanings import Opaque
from lightning_grow.trace.meta_results import MetaResults
from lightning_grow.trace.rules import contractions, indexing, rearranging, reductions  # noqa: F401 - fill the table
from lightning_grow.trace.table import apply_rule, has_rule
from lightning_grow.trace.tape import TRANSPARENT, VIEWS, Node, Trace, Value, bind_arguments, operator_name
from lightning_grow.trace.unfold import UNFOLDED

_CONTENT_FREE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero", "fill")
_LARGEST_CONSTANT = 2**22  # entries; a larger constant is not followed


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Records each operator; `device` is "meta", or None to run on the tensors as they are."""

    def __init__(self, device: str | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.device, self.results = Trace(), device, MetaResults()
        self.values: dict[int, Value] = {}
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
            return self.values[id(tensor)]
        if tensor.is_meta and tensor.numel() and self.device == "meta":  # torch.tensor(x, device=meta), a list as index
            raise NeedsData(self.where)
        constant = torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()
        return self.track(tensor, Value([Axis(size) for size in tensor.shape], tensor.dtype, constant=constant))

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = bind_arguments(op, args, kwargs or {})
        values = tree_map(lambda leaf: self.value_of(leaf) if isinstance(leaf, Tensor) else leaf, arguments)
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Value)]
        if op is torch.ops.aten._local_scalar_dense.default:
            return self._scalar(op, args, tensors)
        if operator_name(op) in UNFOLDED:
            return self._unfold(op, values, args, kwargs or {})
        if not has_rule(op):
            with self:
                simpler = _decompositions().get(op, op.decompose)(*args, **(kwargs or {}))
            if simpler is not NotImplemented:
                return simpler
        result = self.results(op, self._placed(args), self._placed(kwargs or {}))
        if _changes_nothing(op, tensors, result):
            self.track(result, tensors[0])
            return result
        node = Node(op, values, self.where, self.whole)
        constant = self._constant_results(op, args, kwargs or {}, tensors)
        self._record(node, result, args, constant)
        return result

    def _unfold(self, op: Any, values: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """Record a composite operator as the simple ones that it is made of."""
        outer, self.whole = self.whole, self.whole or Node(op, values, self.where)
        try:
            with self:
                return UNFOLDED[operator_name(op)](*args, **kwargs)
        finally:
            self.whole = outer

    def _scalar(self, op: Any, args: Any, tensors: list[Value]) -> Any:
        if tensors[0].constant is not None:
            return tensors[0].constant.item()
        if tensors[0].learned:
            raise Branches(self.where)
        if self.device == "meta":
            raise NeedsData(self.where)
        self.trace.branches.append(self.where)
        return op(*args)

    def _placed(self, arguments: Any) -> Any:
        if self.device is None or all(leaf.is_meta for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)):
            return arguments
        move = lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) and leaf.device.type != "meta" else leaf  # noqa: E731
        with no_dispatch():
            return tree_map(move, arguments)

    def _constant_results(self, op: Any, args: Any, kwargs: Any, tensors: list[Value]) -> list[Tensor | None]:
        """Run the operator on the real contents where all of them are known, or do not matter."""
        if operator_name(op) in _CONTENT_FREE:
            args = tree_map(
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
            results = tree_leaves(op(*tree_map(real, args), **tree_map(real, kwargs)))
        return [item if isinstance(item, Tensor) and item.numel() <= _LARGEST_CONSTANT else None for item in results]

    def _record(self, node: Node, result: Any, args: Any, constants: list[Tensor | None]) -> None:
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        axes, node.meaning = apply_rule(node, [tuple(tensor.shape) for tensor in tensors])
        constants = constants or [None] * len(tensors)
        for tensor, its_axes, constant in zip(tensors, axes, constants, strict=True):
            learned = constant is None and any(item.learned for item in node.tensors())
            value = Value(its_axes, tensor.dtype, constant=constant, learned=learned)
            node.outputs.append(value)
            if schema(node.op).is_mutable and (lost := base(tensor)) is not None:
                self._forget_base(node, lost)
            self.track(tensor, value)
        self.trace.nodes.append(node)

    def _forget_base(self, node: Node, base: Tensor) -> None:
        """A write through a view changes the tensor below it: what that holds is no longer known."""
        reason = f"{node.op} writes in place through a view; write it without assignment to a slice"
        lost = Value([Axis(size) for size in base.shape], base.dtype)
        self.trace.nodes.append(replace(node, outputs=[lost], meaning=[Opaque(reason)]))
        self.track(base, lost)


def _laid_out(content: Any, like: Tensor, is_written: bool) -> Tensor:
    """A content in the layout that its tensor has in the pass: whether a view can be taken depends on it."""
    if like.numel() and 0 not in like.stride() and content.stride() != like.stride():
        return torch.empty_strided(like.shape, like.stride(), dtype=content.dtype).copy_(content)
    return content.clone() if is_written else content  # type: ignore[no-any-return]


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
