"""Trace one forward pass into a tape: every operator, its tensors, and the axes of each of them.

The pass runs on meta tensors, so that it costs the same at any width. Tensors that depend on neither parameters nor
inputs (positions, masks, frequencies, scales) are computed for real beside it: a constant that changes with the size
has to be seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_grow.errors import RefusedGrowth
from lightning_grow.private import no_onednn, tables, tree_map
from lightning_grow.trace.axes import Axis
from lightning_grow.trace.live import give_axes
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.outputs import Forward, find_carried, named_outputs
from lightning_grow.trace.reads import ContentReads
from lightning_grow.trace.recorder import Branches, NeedsData, Recorder
from lightning_grow.trace.routing import shows_all
from lightning_grow.trace.tape import Trace, Value
from lightning_grow.trace.untouched import untouched_attributes, untouched_caches, untouched_contents
from lightning_grow.waiting import waiting

_MOST_CHECKS = 100  # of a pass that raise an error: each takes a pass of its own


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
def _paths(module: nn.Module, tracer: Recorder) -> Iterator[None]:
    """Tell the tracer which module is running."""
    names = {id(part): name for name, part in module.named_modules()}

    def enter(part: nn.Module, _: Any) -> None:
        tracer.path.append(strip_compiled(names.get(id(part), tracer.where)))

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
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            no_onednn(),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under every name they have, without torch.compile's prefixes."""
    pairs = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {strip_compiled(name): tensor for name, tensor in pairs}


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
    with waiting(f"tracing the {type(module).__name__}"):
        tape = _trace(module, example_inputs, forward)
    if unknown := _unknown_buffers(module, tape):
        raise RefusedGrowth(
            f"the buffers {', '.join(map(repr, unknown[:3]))} are on the meta device and no part of the state dict: "
            f"only the constructor of {type(module).__name__} knows what they hold. Give the modules that own them a "
            "reset_parameters() that computes them, or one around them an _init_weights(module), or build the module "
            "on a real device, or its buffers there and its parameters on meta (as accelerate's init_empty_weights "
            "does)."
        )
    if not tape.outputs:
        raise RefusedGrowth(
            f"the forward of {type(module).__name__} returns no tensor that could be compared. Return tensors, or "
            "containers, dataclasses or objects with tensors in their attributes; or pass forward= a callable "
            "(module, *inputs) that returns the outputs."
        )
    return tape


def _unknown_buffers(module: nn.Module, tape: Trace) -> list[str]:
    """What a forward reads, and neither a file nor the tape has."""
    meta = {name for name, tensor in named_tensors(module).items() if tensor.is_meta}
    used = tape.used() if meta else set()
    return [
        name
        for name, value in tape.tensors.items()
        if name in meta and value in used and value.constant is None and not value.learned
    ]


def _trace(module: nn.Module, example_inputs: Any, forward: Forward | None) -> Trace:
    try:
        return _run(module, example_inputs, forward, "meta")
    except Branches as error:
        raise RefusedGrowth(_branching(module, error)) from None
    except Exception:  # any code may run in a forward, and may read contents: on real tensors it works or says why
        pass
    try:
        return _run(module, example_inputs, forward, None)
    except Branches as error:
        raise RefusedGrowth(_branching(module, error)) from None
    except NeedsData as error:
        where = f"'{error}'" if str(error) else "its forward"
        raise RefusedGrowth(
            f"cannot trace {type(module).__name__}: {where} reads a tensor on the meta device that is no parameter and "
            "no buffer, so nothing has its content. Register it as a buffer, or build the module on a real device."
        ) from None
    except Exception as error:
        raise RefusedGrowth(
            f"cannot trace {type(module).__name__}: {type(error).__name__}: {error}. Expected example_inputs that its "
            "forward accepts (a tuple of positional or a dict of keyword arguments); for a module without a usable "
            "forward pass forward= a callable (module, *inputs)."
        ) from error


def _branching(module: nn.Module, error: Branches) -> str:
    where = f"'{error}'" if str(error) else "its forward"
    return (
        f"cannot trace {type(module).__name__}: {where} reads the content of a tensor that depends on weights "
        "(.item(), an if or a loop on a tensor), so one pass does not show all it can do. Use torch.where instead, or "
        "pass forward= a callable (module, *inputs) without that choice."
    )


def _run(module: nn.Module, example_inputs: Any, forward: Forward | None, device: str | None) -> Trace:
    """One pass; a second one, with the other answer, where the forward asks whether there is anything to do."""
    tape = _told(module, example_inputs, forward, device, True)
    if tape.guards:
        other = _told(module, example_inputs, forward, device, False)
        shown, other = sorted((tape, other), key=_length, reverse=True)
        if not shows_all(shown, other):
            raise Branches(tape.guards[0])
        tape = shown
    give_axes(tape)
    return tape


def _told(module: nn.Module, example_inputs: Any, forward: Forward | None, device: str | None, answer: bool) -> Trace:
    """The pass that gets one answer to what it asks; what raises an error then is a check, and gets the other one."""
    flipped: list[int] = []
    while True:
        tracer = Recorder(device, answer, flipped)
        try:
            return _pass(module, example_inputs, forward, tracer)
        except Branches:
            raise
        except Exception:
            last = len(tracer.trace.guards) - 1
            if last < 0 or last in flipped or len(flipped) > _MOST_CHECKS:
                raise
            flipped.append(last)


def _length(tape: Trace) -> int:
    return len(tape.nodes)


def _pass(module: nn.Module, example_inputs: Any, forward: Forward | None, tracer: Recorder) -> Trace:
    stand_ins = _register(module, tracer)
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = tree_map(lambda leaf: _input(leaf, tracer), (args, kwargs))
    call = forward if forward is not None else type(module).__call__
    with (
        untouched_attributes(module),
        # a meta pass writes into stand-ins
        untouched_contents(module) if tracer.device is None else contextlib.nullcontext(),
        untouched_caches(),
        evaluating(module),
        torch.random.fork_rng(devices=[]),
        _plain_kernels(),
        _paths(module, tracer),
    ):
        _swap(module, stand_ins)
        with tracer, ContentReads(tracer):
            result = call(module, *args, **kwargs)
    tracer.trace.outputs = {name: tracer.value_of(leaf) for name, leaf in named_outputs(result).items()}
    tracer.trace.carried = find_carried(result, module)
    return tracer.trace


def _register(module: nn.Module, tracer: Recorder) -> dict[int, Tensor]:
    """Give every parameter and buffer a value; return the meta stand-in of each tensor by its id."""
    stand_ins: dict[int, Tensor] = {}
    saved = {strip_compiled(name) for name in module.state_dict(keep_vars=True)}
    for name, tensor in named_tensors(module).items():
        if id(tensor) not in stand_ins:
            stand_ins[id(tensor)] = _stand_in(tensor, tracer.device)
            learned = name in saved and (tensor.is_floating_point() or tensor.is_complex())
            constant = None if learned or tensor.is_meta else tensor.detach().cpu()
            axes = [Axis(size) for size in tensor.shape]
            trained = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            tracer.track(stand_ins[id(tensor)], Value(axes, tensor.dtype, name, trained, None, constant, learned))
        tracer.trace.tensors[name] = tracer.values[id(stand_ins[id(tensor)])]
    return stand_ins


def _stand_in(tensor: Tensor, device: str | None) -> Tensor:
    """On meta; else a copy, and of what is on meta itself zeros, which take no memory until one is written."""
    if device is None and tensor.is_meta:
        pages = np.zeros(max(tensor.numel(), 1) * tensor.element_size(), np.uint8)  # calloc; torch.zeros writes them
        copy = torch.from_numpy(pages).view(tensor.dtype)[: tensor.numel()].view(tensor.shape)
    else:
        copy = tensor.detach().to("meta") if device == "meta" else tensor.detach().clone()
    copy = copy.detach() if copy is tensor else copy
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def _input(leaf: Any, tracer: Recorder) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    tensor = leaf.detach().to("meta") if tracer.device == "meta" else leaf.detach().clone()
    value = Value([Axis(size) for size in leaf.shape], leaf.dtype, input_index=len(tracer.trace.inputs))
    tracer.trace.inputs.append(tracer.track(tensor, value))
    return tensor


def _swap(module: nn.Module, stand_ins: dict[int, Tensor]) -> None:
    """Put the stand-ins in the place of the module's tensors."""
    for part in module.modules():
        for table in tables(part)[:2]:
            for key, tensor in table.items():
                if tensor is not None:
                    table[key] = stand_ins[id(tensor)]  # type: ignore[assignment]
