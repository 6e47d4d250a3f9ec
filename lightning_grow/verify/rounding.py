"""What rounding alone makes of a model's outputs: the measure of the check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_grow.private import TorchDispatchMode, tree_leaves
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.outputs import Forward
from lightning_grow.verify.run import outputs

_CASTS = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def is_rounded(item: Tensor) -> bool:
    """Whether a tensor's type rounds: floats and complex numbers do, integers and bools do not."""
    return item.is_floating_point() or item.is_complex()


def wide(item: Tensor) -> Tensor:
    """The same numbers in double precision."""
    return item.to(torch.complex128 if item.is_complex() else torch.float64)


def eps(*items: Tensor) -> float:
    """One rounding of the coarsest type among them; 0 for types that do not round."""
    return max(torch.finfo(item.dtype).eps if is_rounded(item) else 0.0 for item in items)


@dataclass(frozen=True)
class Moved:
    """A source whose parameters move a little.

    Args:
        source: The source.
        example_inputs: What to run it on.
        forward: Instead of its own forward.
        state: Another state in place of its own.
        became: Source parameter -> the target's: where that has the coarser type, its rounding counts.
    """

    source: nn.Module
    example_inputs: Any
    forward: Forward | None = None
    state: Mapping[str, Tensor] | None = None
    became: Mapping[str, Tensor] = field(default_factory=dict)

    def outputs(self, step: Callable[[float], float], seed: int) -> list[Tensor]:
        """Run it with every parameter moved by `step(eps of its type)` of itself, up or down.

        What depends on parameters moves likewise wherever it is rounded to a narrower type: float32 parameters that
        compute in bfloat16 are no more accurate than that, and one cast on the side does not touch the rest.
        """
        generator, moved = torch.Generator().manual_seed(seed), dict[int, Tensor]()  # a tied tensor moves once
        parameters = dict(self.source.named_parameters(remove_duplicate=False))
        state = dict(self.state or parameters)
        for name in parameters:
            item = state[name]
            if id(item) not in moved:
                moved[id(item)] = _move(item, step(eps(item, self.became.get(strip_compiled(name), item))), generator)
            state[name] = moved[id(item)]
        with torch.compiler.set_stance("force_eager"), _Narrowing(moved.values(), step, generator):
            return outputs(self.source, self.example_inputs, self.forward, state)


def _move(item: Tensor, size: float, generator: torch.Generator) -> Tensor:
    if not is_rounded(item):
        return item.detach()
    sign = torch.randint(0, 2, item.shape, generator=generator).to(item.device, torch.float64) * 2 - 1
    return (wide(item.detach()) * (1 + size * sign)).to(item.dtype)


class _Narrowing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Moves what depends on the `learned` tensors wherever it is cast to a narrower type.

    Other tensors (positions, masks) are the same in both models, to the last bit.
    """

    def __init__(self, learned: Iterable[Tensor], step: Callable[[float], float], generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.learned, self.step, self.generator = WeakTensorKeyDictionary(), step, generator
        self.learned.update(dict.fromkeys(learned, True))

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(leaf in self.learned for leaf in tensors):
            return result
        if op in _CASTS and 0 < eps(tensors[-1]) < eps(result):
            result.copy_(_move(result, self.step(eps(result)), self.generator))
        self.learned.update({leaf: True for leaf in tree_leaves(result) if isinstance(leaf, Tensor)})
        return result
