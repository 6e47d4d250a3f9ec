"""Targets that differ from their source in one non-tensor argument of one operator call, and what growth says of them.

The change is made below the module, at the operators that torch dispatches, so that every argument of every operator
can be changed without a line about any of them.
"""

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lightning_grow import GrowError, grow
from lightning_grow.trace.outputs import named_outputs

NOT_ALTERED = 1e-6  # of the output's scale: ten times what Llama's norms, in float32 anywhere, leave
NO_FUNCTION = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")  # how, and not what
CRASHING = ("aten._weight_norm_interface.default",)  # writes out of bounds where its dim is another than layers use
OTHER_WORD = {"none": "tanh", "tanh": "none", "sum": "mean", "mean": "sum", "floor": "trunc", "trunc": "floor"}


@dataclass(frozen=True)
class Variation:
    """One argument of one call: the `call`-th of the operator."""

    operator: str
    call: int
    argument: str
    before: Any
    after: Any
    results: int

    def __str__(self) -> str:
        return f"{self.operator} #{self.call}: {self.argument} {self.before} -> {self.after}"


class _Calls(TorchDispatchMode):
    """Sees every operator call with its arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = self.counts[str(op)] = self.counts.get(str(op), -1) + 1
        given = (kwargs or {}) | {item.name: value for item, value in zip(op._schema.arguments, args, strict=False)}
        bound = {item.name: given.get(item.name, item.default_value) for item in op._schema.arguments}
        return self.meet(op, call, bound)

    def meet(self, op: Any, call: int, arguments: dict[str, Any]) -> Any:
        by_name = {item.name for item in op._schema.arguments if item.kwarg_only}
        return op(
            *(value for name, value in arguments.items() if name not in by_name),
            **{name: value for name, value in arguments.items() if name in by_name},
        )


class _Listing(_Calls):
    """Lists every change that could be made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Variation] = []

    def meet(self, op: Any, call: int, arguments: dict[str, Any]) -> Any:
        result = super().meet(op, call, arguments)
        for name, value in arguments.items():
            if name not in NO_FUNCTION and str(op) not in CRASHING:
                made = [Variation(str(op), call, name, value, after, _count(result)) for after in others(value)]
                self.found += made
        return result


class _Changing(_Calls):
    """Makes one change, and counts that it did."""

    made = 0

    def __init__(self, variation: Variation) -> None:
        super().__init__()
        self.variation = variation

    def meet(self, op: Any, call: int, arguments: dict[str, Any]) -> Any:
        wanted = self.variation
        if (str(op), call) != (wanted.operator, wanted.call) or arguments[wanted.argument] != wanted.before:
            return super().meet(op, call, arguments)
        _Changing.made += 1
        result = super().meet(op, call, arguments | {wanted.argument: wanted.after})
        if _count(result) != wanted.results:
            raise ValueError("torch's own loops read as many results as there were, and crash without them")
        return result


def _count(result: Any) -> int:
    return len(result) if isinstance(result, (list, tuple)) else 1


def others(value: Any) -> list[Any]:
    """What could stand in the place of an argument."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return list(dict.fromkeys(item for item in (value + 1, value - 1, 2 * value) if item != value))
    if isinstance(value, float):
        return [1.5 * value] if math.isfinite(value) and value else []
    if isinstance(value, str):
        return [OTHER_WORD[value]] if value in OTHER_WORD else []
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, (bool, int, float)) for item in value):
        return []
    singles = [[*value[:i], item, *value[i + 1 :]] for i, old in enumerate(value) for item in others(old)]
    swaps = [[*value[:i], value[i + 1], value[i], *value[i + 2 :]] for i in range(len(value) - 1)]
    return singles + [item for item in swaps if item != list(value)]


@contextmanager
def plain_kernels() -> Iterator[None]:
    """The operators that the library traces: torch's fast paths are other calls with other numbers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def varied(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward under the change that the module carries, if it carries one."""

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(module, "variation"):
            return forward(module, *args, **kwargs)
        with _Changing(module.variation):
            return forward(module, *args, **kwargs)

    return call


class Growth:
    """A source, a target, and the arguments of `grow`."""

    def __init__(self, source: nn.Module, target: nn.Module, options: dict[str, Any]) -> None:
        self.source, self.target = source.eval(), target.eval()
        self.options = options | {"forward": varied(options.get("forward", nn.Module.__call__))}

    def run(self, module: nn.Module, inputs: Any, mode: Any = None) -> list[Tensor]:
        """The outputs of one pass, which leaves the module as it was."""
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        args, kwargs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        module = copy.deepcopy(module)
        with plain_kernels(), torch.random.fork_rng(devices=[]), mode or torch.no_grad():
            outputs = self.options["forward"](module, *args, **kwargs)
        return [leaf.detach() for leaf in named_outputs(outputs).values()]

    def variations(self, rng: random.Random) -> Iterator[Variation]:
        """Endless changes with which the target still runs: first an operator's argument is drawn, then a call."""
        listing = _Listing()
        self.run(self.target, self.options["example_inputs"], listing)
        groups: dict[tuple[str, str], list[Variation]] = {}
        for item in listing.found:
            groups.setdefault((item.operator, item.argument), []).append(item)
        while groups:
            key = rng.choice(list(groups))
            variation = groups[key].pop(rng.randrange(len(groups[key])))
            if not groups[key]:
                del groups[key]
            if self.runs(variation):
                yield variation

    def marked(self, variation: Variation) -> nn.Module:
        """A copy of the target that carries the change."""
        target = copy.deepcopy(self.target)
        target.variation = variation
        return target

    def runs(self, variation: Variation) -> bool:
        """Whether the target can run with it."""
        try:
            self.run(self.marked(variation), self.options["example_inputs"])
        except Exception:  # whatever a forward says to what it did not expect
            return False
        return True

    def error(self, target: nn.Module) -> float:
        """The largest output difference on inputs that the library never saw, of the source's scale."""
        inputs = other_inputs(self.options["example_inputs"])
        expected = self.run(self.source, inputs)
        try:
            got = self.run(target, inputs)
        except (RuntimeError, IndexError, ValueError) as failure:
            raise NoOutput(str(failure)) from failure
        if self.options.get("allow_output_growth"):
            got = [new[..., : old.shape[-1]] for new, old in zip(got, expected, strict=True)]
        return max((_difference(*pair) for pair in zip(got, expected, strict=True)), default=math.inf)


class NoOutput(Exception):
    """A target that ran on the examples does not run on other inputs."""


def _difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return math.inf
    got, expected = got.to(torch.complex128), expected.to(torch.complex128)
    if not torch.equal(got.isfinite(), expected.isfinite()):
        return math.inf
    return float((got - expected).nan_to_num().abs().max() / expected.nan_to_num().abs().max().clamp(min=1e-300))


def other_inputs(inputs: Any) -> Any:
    """Inputs of the same shapes and ranges."""
    generator = torch.Generator().manual_seed(99)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype)
        return leaf.flatten()[torch.randperm(leaf.numel(), generator=generator)].view_as(leaf)

    return tree_map(other, inputs)


@dataclass(frozen=True)
class Verdict:
    """What the plan said, and what is true."""

    said: str  # "exact", "refused", "not exact", or the exception that came
    error: float  # measured; of a refused target with the weights that the unvaried growth gives
    reason: str = ""

    @property
    def contradicts(self) -> bool:
        return (self.said == "exact" and not self.error <= NOT_ALTERED) or self.said.startswith("raised")

    @property
    def refuses_too_much(self) -> bool:
        return self.said == "refused" and self.error <= NOT_ALTERED


def judge(growth: Growth, variation: Variation | None = None, strategy: str = "preserve") -> Verdict:
    """Grow without the numeric check, then measure."""
    target = copy.deepcopy(growth.target) if variation is None else growth.marked(variation)
    options = growth.options | {"strategy": strategy}
    made = _Changing.made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes to a user
        try:
            report = grow(growth.source, target, verify=False, **options)
            said, reason = "exact" if report.function_preserving else "not exact", ""
        except GrowError as refusal:
            said, reason = "refused", str(refusal)
            target = _unvaried(growth, options, variation) or target
        except Exception as failure:  # what a user must never meet
            said, reason = f"raised {type(failure).__name__}", str(failure)
        assert variation is None or _Changing.made > made, f"the tracer did not meet {variation}"
        return Verdict(said, growth.error(target), reason)


def _unvaried(growth: Growth, options: dict[str, Any], variation: Variation | None) -> nn.Module | None:
    """The target as it grows without the change, to see whether the change alone alters anything."""
    target = copy.deepcopy(growth.target)
    try:
        grow(growth.source, target, verify=False, **options)
    except GrowError:
        return None
    if variation is not None:
        target.variation = variation
    return target
