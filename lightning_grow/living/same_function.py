"""Hold a living module to its function through a change: what holds for a newly built one need not hold for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.errors import RefusedGrowth
from lightning_grow.private import tree_map
from lightning_grow.trace.outputs import Forward
from lightning_grow.trace.untouched import untouched_rng
from lightning_grow.verify.compare import output_error
from lightning_grow.verify.run import outputs


@contextmanager
def same_function(
    modules: Sequence[nn.Module],
    before: Any,
    after: Any,
    forward: Forward | None,
    limit: float,
    shared: Callable[[list[Tensor], list[Tensor]], list[Tensor]] = lambda got, expected: got,
) -> Iterator[list[str]]:
    """Refuse what the block does to modules if they then compute something else; the modules are not put back.

    Args:
        modules: The modules that the block changes.
        before: The example inputs that they take before.
        after: The same, as they take them afterwards.
        forward: Instead of their own forward.
        limit: The largest relative output error.
        shared: Takes the outputs afterwards and those before; returns the part of the former that the latter have.

    Yields:
        An empty list, for the block to name what may be the cause.

    Raises:
        RefusedGrowth: A module computes something else, or cannot be run any more.

    >>> layer = nn.Linear(2, 3)
    >>> with same_function([layer], torch.ones(1, 2), torch.ones(1, 2), None, 1e-6):
    ...     layer.weight.data += 1
    Traceback (most recent call last):
    lightning_grow.errors.RefusedGrowth: Linear computes something else after the growth: ...
    """
    types = [float_type(module) for module in modules]
    expected = [_run(module, before, forward, dtype) for module, dtype in zip(modules, types, strict=True)]
    suspects: list[str] = []
    yield suspects
    first = limit / torch.finfo(types[0]).eps if modules else 0.0
    for module, old, dtype in zip(modules, expected, types, strict=True):
        limit = first * torch.finfo(dtype).eps  # an average may have another type than what it averages
        try:
            error = output_error(old, shared(_run(module, after, forward, dtype), old))
        except Exception as failure:  # any code may run in a forward
            raise RefusedGrowth(
                _explain(module, suspects, f"its forward fails, {type(failure).__name__}: {failure}")
            ) from failure
        if not error <= limit:
            raise RefusedGrowth(
                _explain(module, suspects, f"by {error:.1e} of its output scale, expected at most {limit:.1e}")
            )


def float_type(module: nn.Module) -> torch.dtype:
    """The float type of a module's first parameter."""
    return next((item.dtype for item in module.parameters() if item.is_floating_point()), torch.get_default_dtype())


def _run(module: nn.Module, inputs: Any, forward: Forward | None, dtype: torch.dtype) -> list[Tensor]:
    """One pass that leaves no trace."""
    device = next((item.device for item in module.parameters()), torch.device("cpu"))

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype)

    inputs = tree_map(place, inputs)
    with untouched_rng(), torch.compiler.set_stance("force_eager"):
        return outputs(module, inputs, forward)


def _explain(module: nn.Module, suspects: Sequence[str], what: str) -> str:
    named = f" (it may be {', '.join(suspects)})" if suspects else ""
    return (
        f"{type(module).__name__} computes something else after the growth: {what}. A newly built module of this "
        f"architecture kept the function, so the cause is an attribute of this one{named} that goes with the "
        "architecture and that the run has changed, or that cannot be compared. Keep such values in registered "
        "buffers, or compute them in forward; or grow between two runs, with ArchTransfer."
    )
