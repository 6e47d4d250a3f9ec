"""What to run two modules on, whose inputs may differ in size, in order, or in how they are passed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.errors import RefusedGrowth
from lightning_grow.private import tree_leaves, tree_map
from lightning_grow.trace.outputs import Forward
from lightning_grow.trace.tracer import call_arguments, trace

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def find_examples(source: nn.Module, target: nn.Module, given: Any, forward: Forward | None) -> tuple[Any, Any]:
    """Find the arguments for each module, both in one form.

    Args:
        source: Gets what the target gets if it takes that; else its own `example_input_array`, with as many samples.
        target: Gets what is given; its own `example_input_array` when None.
        given: A tuple of positional arguments, a dict of keyword arguments, or a callable that returns these for a
            target without its own.
        forward: A callable `(module, *inputs)` instead of the modules' own forward.

    Returns:
        The source's arguments and the target's.

    Raises:
        RefusedGrowth: There are none.
    """
    own_source, own_target = (getattr(item, "example_input_array", None) for item in (source, target))
    if callable(given):
        given = given() if own_target is None else None
    if given is None and own_target is None:
        raise RefusedGrowth(
            f"no example inputs: expected example_inputs= (the arguments of {type(target).__name__}.forward, a tuple, "
            "or a dict of keyword arguments), or a module with an example_input_array."
        )
    theirs = _in_order(own_target if given is None else given, target, forward)
    if own_source is None:
        return theirs, theirs
    own = _in_form(own_source, theirs, source, forward)
    if given is not None and (_samples(own) == _samples(theirs) or runs_on(source, theirs, forward)):
        return theirs, theirs
    as_many = _as_many(own, theirs)
    return (as_many if as_many is own or runs_on(source, as_many, forward) else own), theirs


def find_own_examples(module: nn.Module, given: Any) -> Any:
    """The arguments of one module: those given, else its own `example_input_array`; None where it has none either."""
    return given if given is not None and not callable(given) else getattr(module, "example_input_array", None)


def _in_order(inputs: Any, module: nn.Module, forward: Forward | None) -> Any:
    """Keyword arguments in the order of forward's parameters, so that both modules' are compared one by one."""
    if not isinstance(inputs, Mapping):
        return inputs
    names = _parameters(module, forward)
    return {name: inputs[name] for name in [*(name for name in names if name in inputs), *inputs]}


def _in_form(inputs: Any, like: Any, module: nn.Module, forward: Forward | None) -> Any:
    """Positional arguments as keyword arguments, or the other way round, as `like` has them."""
    args, kwargs = call_arguments(inputs)
    if isinstance(like, Mapping):
        named = kwargs or dict(zip(_parameters(module, forward), args, strict=False))
        return _in_order(named, module, forward)
    return args or tuple(_in_order(kwargs, module, forward).values())


def _parameters(module: nn.Module, forward: Forward | None) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(module.forward if forward is None else forward).parameters)
    if forward is not None:
        del parameters[next(iter(parameters))]  # the module
    return parameters


def call_forms(batch: Any, module: nn.Module, forward: Forward | None) -> Iterator[Any]:
    """What a forward may take of a batch, the likeliest first: what it names, as many as it needs, or all of it.

    >>> list(call_forms(("x", "y"), nn.Linear(3, 4), None))
    [('x',), (('x', 'y'),)]
    >>> list(call_forms({"input": "x", "label": "y"}, nn.Linear(3, 4), None))
    [{'input': 'x'}, ({'input': 'x', 'label': 'y'},)]
    """
    parameters = _parameters(module, forward)
    if isinstance(batch, Mapping) and not parameters.keys().isdisjoint(batch):
        yield {name: batch[name] for name in parameters if name in batch}
    if isinstance(batch, (tuple, list)):
        needed = [item for item in parameters.values() if item.default is item.empty and item.kind in _POSITIONAL]
        yield tuple(batch[: max(len(needed), 1)])
    yield (batch,)


def _samples(inputs: Any) -> list[torch.Size]:
    """The shape of one sample of every input."""
    return [leaf.shape[1:] for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def runs_on(module: nn.Module, inputs: Any, forward: Forward | None) -> bool:
    """Whether a forward can be traced on these arguments."""
    try:
        trace(module, inputs, forward)
    except RefusedGrowth:
        return False
    return True


def _as_many(own: Any, like: Any) -> Any:
    """As many samples of every input as `like` has: the first ones, or repeated."""
    sizes = [
        next((len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 1), 0)
        for inputs in (own, like)
    ]
    if sizes[0] == sizes[1] or not all(sizes):
        return own
    rows = torch.arange(sizes[1]) % sizes[0]

    def take(leaf: Any) -> Any:
        is_batch = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == sizes[0]
        return leaf[rows.to(leaf.device)] if is_batch else leaf

    return tree_map(take, own)
