"""Trace one forward pass into a tape: every operator, its tensors, and the axes of each of them.

The pass runs on meta tensors, so that it costs the same at any width. Tensors that depend on neither parameters nor
inputs (positions, masks, frequencies, scales) are computed for real beside it: a constant that changes with the size
has to be seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

import lightning_grow.trace.rules  # noqa: F401 - fills the table
from lightning_grow.errors import RefusedGrowth
from lightning_grow.trace.axes import Axis
from lightning_grow.trace.meanings import Opaque
from lightning_grow.trace.outputs import Forward, find_carried, named_outputs
from lightning_grow.trace.table import apply_rule, has_rule
from lightning_grow.trace.tape import TRANSPARENT, VIEWS, Node, Trace, Value, bind_arguments, operator_name
from lightning_grow.trace.unfold import UNFOLDED
from lightning_grow.trace.untouched import same_attributes, same_contents

_CONTENT_FREE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero", "fill")
_LARGEST_CONSTANT = 2**22  # entries; a larger constant is not followed


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Records each operator; `device` is "meta", or None to run on the tensors as they are."""

    def __init__(self, device: str | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.device = Trace(), device
        self.values: dict[int, Value] = {}
        self.alive: list[Tensor] = []  # an id stays unique only while its tensor lives
        self.path: list[str] = []
        self.whole: Node | None = None

    def track(self, tensor: Tensor, value: Value) -> Value:
        self.values[id(tensor)] = value
        self.alive.append(tensor)
        return value

    def value_of(self, tensor: Tensor) -> Value:
        if id(tensor) in self.values:
            return self.values[id(tensor)]
        if tensor.is_meta and tensor.numel() and self.device == "meta":  # torch.tensor(x, device=meta), a list as index
            raise _NeedsData(self.path[-1] if self.path else "")
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
        result = op(*self._placed(args), **self._placed(kwargs or {}))
        if _changes_nothing(op, tensors, result):
            self.track(result, tensors[0])
            return result
        node = Node(op, values, self.path[-1] if self.path else "", self.whole)
        constant = self._constant_results(op, args, kwargs or {}, tensors)
        self._record(node, result, args, constant)
        return result

    def _unfold(self, op: Any, values: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """Record a composite operator as the simple ones that it is made of."""
        outer, self.whole = self.whole, self.whole or Node(op, values, self.path[-1] if self.path else "")
        try:
            with self:
                return UNFOLDED[operator_name(op)](*args, **kwargs)
        finally:
            self.whole = outer

    def _scalar(self, op: Any, args: Any, tensors: list[Value]) -> Any:
        if tensors[0].constant is not None:
            return tensors[0].constant.item()
        if tensors[0].learned:
            raise _Branches(self.path[-1] if self.path else "")
        if self.device == "meta":
            raise _NeedsData(self.path[-1] if self.path else "")
        self.trace.choices.append(self.path[-1] if self.path else "")
        return op(*args)

    def _placed(self, arguments: Any) -> Any:
        if self.device is None or all(leaf.is_meta for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)):
            return arguments
        move = lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) and leaf.device.type != "meta" else leaf  # noqa: E731
        with _no_dispatch():
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
                return _laid_out(next(contents, leaf), leaf, op._schema.is_mutable)
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        with _no_dispatch():
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
            if node.op._schema.is_mutable and tensor._base is not None:
                self._forget_base(node, tensor._base)
            self.track(tensor, value)
        self.trace.nodes.append(node)

    def _forget_base(self, node: Node, base: Tensor) -> None:
        """A write through a view changes the tensor below it: what that holds is no longer known."""
        reason = f"{node.op} writes in place through a view; write it without assignment to a slice"
        lost = Value([Axis(size) for size in base.shape], base.dtype)
        self.trace.nodes.append(Node(node.op, node.arguments, node.path, node.whole, [lost], [Opaque(reason)]))
        self.track(base, lost)


def _laid_out(content: Any, like: Tensor, is_written: bool) -> Tensor:
    """A content in the layout that its tensor has in the pass: whether a view can be taken depends on it."""
    if like.numel() and 0 not in like.stride() and content.stride() != like.stride():
        return torch.empty_strided(like.shape, like.stride(), dtype=content.dtype).copy_(content)
    return content.clone() if is_written else content  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's own table of operators written in simpler ones."""
    return dict(torch._decomp.core_aten_decompositions())


def _changes_nothing(op: Any, tensors: list[Value], result: Any) -> bool:
    """Whether the result is the first argument under another name: whether torch copies depends on strides."""
    name = operator_name(op)
    if name in TRANSPARENT:
        return True
    if name not in (*VIEWS, "expand", "slice"):
        return False
    return list(result.shape) == [axis.size for axis in tensors[0].axes]  # unsqueeze_ has reshaped its own argument


class _NeedsData(Exception):
    """The forward pass asks for the content of an input, which a meta tensor does not have."""


class _Branches(Exception):
    """The forward pass asks for the content of a tensor that depends on weights: what it does may change with them."""


@contextlib.contextmanager
def _no_dispatch() -> Iterator[None]:
    with torch.utils._python_dispatch._disable_current_modes():
        yield


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and every submodule back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def _paths(module: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Tell the tracer which module is running."""
    names = {id(part): name for name, part in module.named_modules()}

    def enter(part: nn.Module, _: Any) -> None:
        tracer.path.append(names.get(id(part), tracer.path[-1] if tracer.path else "").replace("_orig_mod.", ""))

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        tracer.path.pop()

    hooks = [hook for part in module.modules() for hook in _watch(part, enter, leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watch(part: nn.Module, enter: Callable[..., None], leave: Callable[..., None]) -> list[RemovableHandle]:
    return [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True)]


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Keep torch from fusing what the rules want to see apart."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)  # backends.mkldnn.flags() warns about TF32 on machines without it
    try:
        with (
            torch.no_grad(),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under every name they have, without torch.compile's prefixes."""
    pairs = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in pairs}


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments: a dict is keyword arguments, a tuple positional."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def trace(module: nn.Module, example_inputs: Any, forward: Forward | None = None) -> Trace:
    """Trace one forward pass in eval mode; the module is left as it was.

    Args:
        module: The module, on any device, the meta device included.
        example_inputs: A tuple of positional arguments, or a dict of keyword arguments.
        forward: A callable `(module, *inputs)` to trace instead of the module's own forward.

    Returns:
        The tape.

    Raises:
        RefusedGrowth: The pass cannot be run or followed.

    >>> [node.name for node in trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.ones(2, 3),)).nodes]
    ['t', 'addmm', 'relu']
    """
    tape = _trace(module, example_inputs, forward)
    if not tape.outputs:
        raise RefusedGrowth(
            f"the forward of {type(module).__name__} returns no tensor that could be compared. Return tensors, or "
            "containers, dataclasses or objects with tensors in their attributes; or pass forward= a callable "
            "(module, *inputs) that returns the outputs."
        )
    return tape


def _trace(module: nn.Module, example_inputs: Any, forward: Forward | None) -> Trace:
    try:
        return _run(module, example_inputs, forward, "meta")
    except _Branches as error:
        raise RefusedGrowth(_branching(module, error)) from None
    except _NeedsData as error:
        reason = f"the forward of '{error}' reads the content of a tensor (.item(), an if on a tensor)"
    except Exception as error:  # any code may run in a forward; the pass on real tensors below gives the true error
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if any(tensor.is_meta for tensor in named_tensors(module).values()):
        raise RefusedGrowth(
            f"cannot trace {type(module).__name__} on the meta device: {reason}. Build the module on a real device, "
            "or pass forward= a callable that can be traced."
        )
    try:
        return _run(module, example_inputs, forward, None)
    except _Branches as error:
        raise RefusedGrowth(_branching(module, error)) from None
    except Exception as error:
        raise RefusedGrowth(
            f"cannot trace {type(module).__name__}: {type(error).__name__}: {error}. Expected example_inputs that its "
            "forward accepts (a tuple of positional or a dict of keyword arguments); for a module without a usable "
            "forward pass forward= a callable (module, *inputs)."
        ) from error


def _branching(module: nn.Module, error: _Branches) -> str:
    where = f"'{error}'" if str(error) else "its forward"
    return (
        f"cannot trace {type(module).__name__}: {where} reads the content of a tensor that depends on weights "
        "(.item(), an if or a loop on a tensor), so one pass does not show all it can do. Use torch.where instead, or "
        "pass forward= a callable (module, *inputs) without that choice."
    )


def _run(module: nn.Module, example_inputs: Any, forward: Forward | None, device: str | None) -> Trace:
    tracer = _Tracer(device)
    stand_ins = _register(module, tracer, device)
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = tree_map(lambda leaf: _input(leaf, tracer, device), (args, kwargs))
    call = forward if forward is not None else type(module).__call__
    with (
        same_attributes(module),
        same_contents(module) if device is None else contextlib.nullcontext(),  # a meta pass writes into stand-ins
        evaluating(module),
        torch.random.fork_rng(devices=[]),
        _plain_kernels(),
        _paths(module, tracer),
    ):
        _swap(module, stand_ins)
        with tracer:
            result = call(module, *args, **kwargs)
    tracer.trace.outputs = {name: tracer.value_of(leaf) for name, leaf in named_outputs(result).items()}
    tracer.trace.carried = find_carried(result, module)
    return tracer.trace


def _register(module: nn.Module, tracer: _Tracer, device: str | None) -> dict[int, Tensor]:
    """Give every parameter and buffer a value; return the meta stand-in of each tensor by its id."""
    stand_ins: dict[int, Tensor] = {}
    saved = {name.replace("_orig_mod.", "") for name in module.state_dict(keep_vars=True)}
    for name, tensor in named_tensors(module).items():
        if id(tensor) not in stand_ins:
            stand_ins[id(tensor)] = _stand_in(tensor, device)
            learned = name in saved and (tensor.is_floating_point() or tensor.is_complex())
            constant = None if learned or tensor.is_meta else tensor.detach().cpu()
            axes = [Axis(size) for size in tensor.shape]
            trained = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            tracer.track(stand_ins[id(tensor)], Value(axes, tensor.dtype, name, trained, None, constant, learned))
        tracer.trace.tensors[name] = tracer.values[id(stand_ins[id(tensor)])]
    return stand_ins


def _stand_in(tensor: Tensor, device: str | None) -> Tensor:
    copy = tensor.detach().to("meta") if device == "meta" else tensor.detach().clone()
    copy = copy.detach() if copy is tensor else copy
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def _input(leaf: Any, tracer: _Tracer, device: str | None) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    tensor = leaf.detach().to("meta") if device == "meta" else leaf.detach().clone()
    value = Value([Axis(size) for size in leaf.shape], leaf.dtype, input_index=len(tracer.trace.inputs))
    tracer.trace.inputs.append(tracer.track(tensor, value))
    return tensor


def _swap(module: nn.Module, stand_ins: dict[int, Tensor]) -> None:
    """Put the stand-ins in the place of the module's tensors."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    table[key] = stand_ins[id(tensor)]  # type: ignore[assignment]
