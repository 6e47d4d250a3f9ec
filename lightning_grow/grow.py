"""The three public calls of the core: plan a growth, grow a module, or build the grown state without touching it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_grow.apply.apply import Allocate, empty_state, in_memory, write_state
from lightning_grow.apply.count import report_tensor
from lightning_grow.apply.meta_target import (
    initial_state,
    is_meta,
    take_buffers,
    take_memory,
    with_known_buffers,
    with_memory,
)
from lightning_grow.apply.new_outputs import start_new_outputs
from lightning_grow.errors import BrokenInvariant, GrowError, RefusedGrowth
from lightning_grow.options import GrowthOptions, Options, check_options
from lightning_grow.pair.copies import substitute, substitutions
from lightning_grow.pair.examples import find_examples
from lightning_grow.plan.draft import make_plan
from lightning_grow.plan.growth_plan import GrowthPlan, refuse
from lightning_grow.plan.modules import Modules
from lightning_grow.report import TransferReport
from lightning_grow.strategies import Strategy
from lightning_grow.trace.names import strip_compiled
from lightning_grow.trace.outputs import Forward, without
from lightning_grow.verify.compare import compare, worst
from lightning_grow.verify.liveness import count_dead_and_twins
from lightning_grow.verify.rounding import Moved
from lightning_grow.verify.run import outputs, set_attributes, shared_inputs, with_attributes
from lightning_grow.waiting import waiting


@dataclass(frozen=True, eq=False)
class Transfer:
    """A growth that is worked out and checked, and not yet loaded.

    Args:
        plan: What was decided.
        state_dict: The target's complete new state.
        report: What was done, with the measured output error.
    """

    plan: GrowthPlan
    state_dict: dict[str, Tensor]
    report: TransferReport


@dataclass(frozen=True)
class _Request:
    """What a user asked for; the three public calls differ in what they do with its plan."""

    source: nn.Module
    target: nn.Module
    options: Options
    modules: Modules

    @cached_property
    def inputs(self) -> tuple[Any, Any]:
        """The arguments for the source, and for the target."""
        return find_examples(self.source, self.target, self.options.example_inputs, self.options.forward)

    def plan(self) -> GrowthPlan:
        """Work out the growth."""
        inputs = self.inputs
        try:
            return replace(make_plan(self.source, self.target, *inputs, self.options), modules=self.modules)
        except GrowError:
            raise
        except Exception as error:  # no foreign code runs here but rules and strategies
            where = f"planning the growth of a {type(self.source).__name__} to a {type(self.target).__name__}"
            raise BrokenInvariant(where, f"{type(error).__name__}: {error}") from error


def _make_request(source: nn.Module, target: nn.Module, options: Options) -> _Request:
    return _Request(with_known_buffers(source), with_known_buffers(target), options, Modules(source, target))


def plan_growth(source: nn.Module, target: nn.Module, **options: Unpack[GrowthOptions]) -> GrowthPlan:
    """Work out a growth and change nothing; print the plan to see it.

    Args:
        source: The trained module.
        target: The bigger module, on any device, the meta device included.
        **options: See `GrowthOptions`; those of the check and of new outputs' values have no meaning before there are
            any.

    Returns:
        The plan; `plan.refused` says why it cannot be done, if it cannot.

    Raises:
        RefusedGrowth: A module cannot be traced.
        UnknownStrategy: No strategy has that name.
        WrongSetting: An option has a value that nothing can be made of.
        TypeError: There is no such option.

    >>> import torch
    >>> small = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> large = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> plan = plan_growth(small, large, example_inputs=(torch.ones(5, 3),))
    >>> [(group.old, group.new, group.mode) for group in plan.groups], plan.refused
    ([(4, 6, 'fresh')], ())
    """
    return make_growth_plan(source, target, check_options(options, "plan_growth"))


def make_growth_plan(source: nn.Module, target: nn.Module, options: Options) -> GrowthPlan:
    """As `plan_growth`, with options that are checked."""
    return _make_request(source, target, options).plan()


def transfer(source: nn.Module, target: nn.Module, **options: Unpack[GrowthOptions]) -> Transfer:
    """Build and check the grown state; neither module is changed. Arguments and errors as `grow`."""
    return make_transfer(source, target, check_options(options, "transfer"))


def make_transfer(source: nn.Module, target: nn.Module, options: Options, allocate: Allocate = in_memory) -> Transfer:
    """As `transfer`, with options that are checked, and new tensors that `allocate` makes."""
    return _build(_make_request(source, target, options), allocate)


def grow(source: nn.Module, target: nn.Module, **options: Unpack[GrowthOptions]) -> TransferReport:
    """Grow `target` in place so that it computes what `source` computes, or refuse and change nothing.

    Args:
        source: The trained module.
        target: The bigger module; one on the meta device is materialised on the source's device.
        **options: See `GrowthOptions`.

    Returns:
        What was done to every tensor, and the measured output error.

    Raises:
        RefusedGrowth: The function cannot be kept, or a module cannot be traced; every reason is named.
        UnknownStrategy: No strategy has that name.
        WrongSetting: An option has a value that nothing can be made of.
        TypeError: There is no such option.

    >>> import torch
    >>> small = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> large = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 2))
    >>> x = torch.ones(5, 3)
    >>> report = grow(small, large, example_inputs=(x,))
    >>> report.function_preserving, torch.allclose(small(x), large(x))
    (True, True)
    """
    return grow_in_place(source, target, check_options(options, "grow"))


def grow_in_place(source: nn.Module, target: nn.Module, options: Options) -> TransferReport:
    """As `grow`, with options that are checked."""
    request = _make_request(source, target, options)
    keeps_values = type(options.strategy).fill is Strategy.fill and not options.starts_outputs
    if keeps_values and not options.verify and request.target is target and not is_meta(target):
        return _write_in_place(request)
    done = _build(request)
    take_memory(target, done.state_dict)
    target.load_state_dict(done.state_dict)
    take_buffers(target, request.target)
    set_attributes(target, done.plan.attributes)
    return done.report


def _build(request: _Request, allocate: Allocate = in_memory) -> Transfer:
    plan = request.plan()
    refuse(plan)
    source, target, seed = request.source, request.target, request.options.seed
    initial = initial_state(target, plan, seed, allocate)
    grown = initial if is_meta(target) else empty_state(initial, allocate)  # what was made for meta is ours to fill
    write_state(plan, source.state_dict(), initial, grown, seed)
    notes = _start_new_outputs(request, plan, grown)
    if not request.options.verify:
        return Transfer(plan, grown, _report(plan, grown, seed, None, None, notes))
    with waiting("comparing the outputs"):
        error, limit = _measure(request, plan, grown)
    if _promises(plan) and not error <= limit:
        raise RefusedGrowth(
            f"the grown model differs from the source by {error:.1e} of its output scale, expected at most {limit:.1e} "
            "(ten times what rounding alone does to the source). Nothing was changed. Report this model: the plan "
            "expected it to be exact; or pass tolerance= if the difference is acceptable."
        )
    return Transfer(plan, grown, _report(plan, grown, seed, error, limit, notes))


def _start_new_outputs(request: _Request, plan: GrowthPlan, grown: dict[str, Tensor]) -> list[str]:
    inputs, forward = request.inputs[1], compared_forward(plan, request.options)

    def run() -> list[Tensor]:
        return outputs(with_memory(request.target, grown), inputs, forward, grown)

    state = {strip_compiled(name): tensor for name, tensor in grown.items()}
    return start_new_outputs(plan, state, run, request.options)


def _write_in_place(request: _Request) -> TransferReport:
    """Grow without a check and without a second copy: once the plan stands only our own code runs, so none can fail."""
    plan = request.plan()
    refuse(plan)
    state = dict(request.target.state_dict())
    write_state(plan, request.source.state_dict(), state, state, request.options.seed)
    set_attributes(request.target, plan.attributes)
    return _report(plan, state, request.options.seed, None, None)


def paired_inputs(plan: GrowthPlan, source_inputs: Any, target_inputs: Any) -> tuple[Any, Any]:
    """The arguments that make both modules of a plan comparable: the source's, and the target's."""
    return shared_inputs(target_inputs, source_inputs, plan.input_positions, plan.source_positions), target_inputs


def compared_forward(plan: GrowthPlan, options: Options) -> Forward | None:
    """The forward whose outputs both modules of a plan have; their own when None."""
    return without(options.forward, plan.left_out)


def compare_models(source: nn.Module, target: nn.Module, options: Options) -> tuple[float, float]:
    """The error of a grown model's outputs against its source's, and the limit for it; neither is changed.

    Raises:
        RefusedGrowth: The target is no growth of the source.
    """
    request = _make_request(source, target, options)
    plan = request.plan()
    refuse(plan)
    return _measure(request, plan, target.state_dict(keep_vars=True))  # tied names: one tensor


def _measure(request: _Request, plan: GrowthPlan, grown: dict[str, Tensor]) -> tuple[float, float]:
    """The output error and the limit for it."""
    with with_attributes(request.target, plan.attributes):
        copies = substitutions({name: item.like for name, item in plan.tensors.items() if item.like is not None})
        compared = [_compare(request, plan, grown, stand_in) for stand_in in ({}, *copies)]
    return worst([pair for run in compared for pair in run])


def _compare(
    request: _Request, plan: GrowthPlan, grown: dict[str, Tensor], stand_in: Mapping[str, str]
) -> list[tuple[float, float]]:
    """The error and the limit of every output, when copies run in place of what they copy, in both modules."""
    source, target, forward = request.source, request.target, compared_forward(plan, request.options)
    source_inputs, target_inputs = paired_inputs(plan, *request.inputs)
    old_names = {
        str(plan.tensors[original].source_name): str(plan.tensors[copy].source_name)
        for original, copy in stand_in.items()
    }
    old = substitute(source.state_dict(keep_vars=True), old_names) if stand_in else None  # tied names: one tensor
    new = substitute(grown, stand_in)
    with _naming_forward(source, "source"):
        expected = outputs(source, source_inputs, forward, old)
    real = with_memory(target, new)
    with _naming_forward(target, "target"):
        made = outputs(real, target_inputs, forward, new)
    got = shared_outputs(made, expected, plan)
    state = {strip_compiled(name): item for name, item in new.items()}
    became = {str(item.source_name): state[name] for name, item in plan.tensors.items()}
    return compare(expected, got, Moved(source, source_inputs, forward, old, became), request.options.tolerance)


@contextmanager
def _naming_forward(module: nn.Module, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # any code may run in a forward
        raise RefusedGrowth(
            f"the outputs cannot be compared, for the {what}'s own forward fails on the example inputs "
            f"({type(module).__name__}: {type(error).__name__}: {error}). Pass example_inputs= that it accepts, of the "
            "type that the module computes in; or verify=False to grow without comparing."
        ) from error


def shared_outputs(got: Sequence[Tensor], expected: Sequence[Tensor], plan: GrowthPlan) -> list[Tensor]:
    """The source's positions of the target's outputs: the first ones, but by their layout where they have one."""
    if len(plan.output_positions) != len(got):
        return list(got)
    return [
        _take(item, places) if tuple(map(len, places)) == old.shape and item.shape != old.shape else item
        for item, old, places in zip(got, expected, plan.output_positions, strict=True)
    ]


def _take(item: Tensor, places: Sequence[Tensor]) -> Tensor:
    for dim, positions in enumerate(places):
        item = item.index_select(dim, positions.to(item.device))
    return item


def _promises(plan: GrowthPlan) -> bool:
    return plan.strategy.function_preserving and not plan.lost


def _report(
    plan: GrowthPlan,
    grown: dict[str, Tensor],
    seed: int,
    error: float | None,
    limit: float | None,
    notes: Sequence[str] = (),
) -> TransferReport:
    state = {strip_compiled(name): item for name, item in grown.items()}
    dead, twins = count_dead_and_twins(plan, state)
    return TransferReport(
        tensors=tuple(report_tensor(item, state[name], plan.explain(name)) for name, item in plan.tensors.items()),
        strategy=plan.strategy.name,
        seed=seed,
        max_output_error=error,
        tolerance=limit,
        function_preserving=_promises(plan) if error is None else error <= (limit or 0.0),
        dead_units=dead,
        twin_units=twins,
        refused=list(plan.lost),
        attributes=dict(plan.attributes),
        notes=(*plan.notes, *notes),
        plan=plan,
    )
