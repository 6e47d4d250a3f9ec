"""Optimizer and scheduler state for a grown module: fresh, or moved along with the weights, name by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.record import find_param_names
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.plan.tensor_plan import TensorPlan
from lightning_grow.private import STEPPED_STATE
from lightning_grow.trace.names import strip_compiled
from lightning_grow.training_state.moments import NotMoved, fits, move_moments
from lightning_grow.training_state.saved import SavedOptimizer, find_saved
from lightning_grow.training_state.schedules import Groups, keep_schedules
from lightning_grow.training_state.settings import check_settings

OptimizerChoice = Literal["reset", "transfer", "asymmetric"]
Schedule = Literal["reset", "keep"]
Keep = Callable[[str, Tensor], Tensor]

LINEAR = ("SGD", "ASGD")
"""Optimizers whose step is proportional to the gradient; the others' does not depend on its scale."""

ENTRYWISE = (*LINEAR, "Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "Lion", "NAdam", "RAdam", "RMSprop", "Rprop")
"""Optimizers whose step of one entry depends on no other: under these alone old entries do not feel new ones."""


@dataclass(frozen=True)
class CarriedState:
    """What the optimizers and schedulers of the grown module are to load.

    Args:
        optimizer_states: One state dict an optimizer; empty when all of them start fresh.
        lr_schedulers: One state dict a scheduler; empty when all of them start fresh.
        kept: Parameters that keep their moments.
        fresh: What had state in the checkpoint and starts without, each with the reason.
        approximate: What only nearly learns as in an ungrown run, each with the reason.
        paced: Parameters that learn at another pace than in an ungrown run, each with the factor.
    """

    optimizer_states: list[dict[str, Any]] = field(default_factory=list)
    lr_schedulers: list[dict[str, Any]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    approximate: list[str] = field(default_factory=list)
    paced: list[str] = field(default_factory=list)

    @property
    def moved(self) -> int:
        """How many parameters keep their moments."""
        return len(self.kept)

    def to_dict(self) -> dict[str, Any]:
        """What became of the moments, for the report: counts and names, no tensors."""
        return {name: getattr(self, name) for name in ("moved", "fresh", "approximate", "paced")}


def carry_optimizers(
    checkpoint: Mapping[str, Any],
    module: nn.Module,
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any] | None,
    plan: GrowthPlan,
    *,
    optimizer: OptimizerChoice = "reset",
    scheduler: Schedule = "reset",
    keep: Keep = lambda name, tensor: tensor,
) -> CarriedState:
    """Rewrite the checkpoint's optimizer and scheduler states for the optimizers of the grown module.

    Args:
        checkpoint: Where the old states are read from, with the new weights; not changed.
        module: The grown module.
        optimizers: Its optimizers, as the current config builds them.
        schedulers: Its schedulers, likewise; None where they are not built, and kept ones are not compared.
        plan: The growth that moved the weights.
        optimizer: "transfer" moves the moments where that is exact, "asymmetric" those of all entries that go on,
            "reset" drops them.
        scheduler: "keep" goes on with the checkpoint's schedule and its learning rates, "reset" starts the config's.
        keep: What to make of each tensor that was moved, of the parameter of that name: put it into a file, for one.

    Returns:
        What to load, every tensor of it of its parameter's shape.

    Raises:
        RefusedGrowth: A schedule cannot be kept with the optimizers that the config builds.
    """
    if (optimizer, scheduler) == ("reset", "reset") or not (optimizers or checkpoint.get("optimizer_states")):
        return CarriedState()
    if not checkpoint.get("optimizer_states"):
        raise RefusedGrowth(_nothing_there("the checkpoint holds no optimizer states", optimizer, scheduler))
    check_settings(checkpoint["optimizer_states"], optimizers)
    names = [find_param_names(module, item) for item in optimizers]
    sources = [[[_source_name(plan, name) for name in group] for group in groups] for groups in names]
    saved = find_saved(checkpoint, [_without_new(*pair) for pair in zip(names, sources, strict=True)], plan)
    carried = CarriedState([item.state_dict() for item in optimizers])
    goes_on = [False] * len(optimizers)
    if optimizer != "reset":
        weights = _find_weights(checkpoint)
        for index, item in enumerate(optimizers):
            entries = _find_entries(item, names[index], sources[index], saved, scheduler)
            known = index >= len(saved) or saved[index].is_known
            goes_on[index] = known and _move_optimizer(index, item, entries, plan, weights, optimizer, carried, keep)
        carried.fresh.extend(_left_behind(saved, sources))
    if scheduler == "keep":
        kept = keep_schedules(
            checkpoint,
            carried.optimizer_states,
            optimizers,
            schedulers,
            [item.names for item in saved],
            sources,
            only_rates=[not item for item in goes_on],
        )
        carried.lr_schedulers.extend(kept)
    check_shapes(carried.optimizer_states, optimizers, module)
    return carried


def check_has_states(checkpoint: Mapping[str, Any], optimizer: OptimizerChoice, scheduler: Schedule) -> None:
    """Refuse to go on with what a checkpoint of weights alone does not have.

    Raises:
        RefusedGrowth: Moments or schedules are asked for, and the checkpoint holds no optimizer states.
    """
    if "optimizer_states" not in checkpoint and (optimizer, scheduler) != ("reset", "reset"):
        what = "the checkpoint holds weights alone (ModelCheckpoint's save_weights_only)"
        raise RefusedGrowth(_nothing_there(what, optimizer, scheduler))


def _nothing_there(what: str, optimizer: OptimizerChoice, scheduler: Schedule) -> str:
    return (
        f"{what}, so nothing is there for optimizer={optimizer!r} and scheduler={scheduler!r} to go on with. Resume "
        "with a full checkpoint, or start fresh: optimizer='reset', scheduler='reset'."
    )


def check_shapes(states: Iterable[Mapping[str, Any]], optimizers: Iterable[Optimizer], module: nn.Module) -> None:
    """Refuse state whose tensors do not have their parameter's shape.

    ``Optimizer.load_state_dict`` compares counts only; a fused optimizer then writes outside the tensor's memory.
    Kinds of state that we do not know (quantised), and other people's optimizers, may have shapes of their own.

    Args:
        states: The state dicts about to be loaded, one an optimizer.
        optimizers: The optimizers, in the same order.
        module: Gives the names in the error.

    Raises:
        RefusedGrowth: A tensor has another shape than its parameter.
    """
    refused = []
    for state, optimizer in zip(states, optimizers, strict=False):
        if not _is_torchs(optimizer):
            continue
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = chain.from_iterable(find_param_names(module, optimizer))
        ids = [key for group in state.get("param_groups", ()) for key in group["params"]]
        for key, parameter, name in zip(ids, parameters, names, strict=False):
            for kind, value in state.get("state", {}).get(key, {}).items():
                if isinstance(value, Tensor) and value.dim() and not fits(kind, value, tuple(parameter.shape)):
                    refused.append(
                        f"{type(optimizer).__name__} state {kind!r} of {name!r} has the shape {tuple(value.shape)}, "
                        f"its parameter {tuple(parameter.shape)}. The checkpoint's optimizer belongs to another "
                        "architecture: remove 'optimizer_states' from it, or resume with the original file."
                    )
    if refused:
        raise RefusedGrowth(refused)


def learning_rates(states: Iterable[Mapping[str, Any]]) -> list[float]:
    """The learning rate of every parameter group in some optimizer state dicts, in order, where it has one."""
    rates = (group.get("lr") for state in states for group in state.get("param_groups", ()))
    return [float(rate) for rate in rates if rate is not None]


def _is_torchs(optimizer: Optimizer) -> bool:
    """Whether it is one of torch's own optimizers, or derived from one."""
    return any(cls.__module__.startswith("torch.optim") and cls is not Optimizer for cls in type(optimizer).__mro__)


def _find_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that the optimizers step: not an average that the checkpoint has in their place."""
    weights = checkpoint.get(STEPPED_STATE) or checkpoint["state_dict"]
    return {strip_compiled(name): tensor for name, tensor in weights.items()}


def _source_name(plan: GrowthPlan, name: str) -> str:
    item = plan.tensors.get(name)
    return (item and item.source_name) or ""


def _without_new(names: Groups, sources: Groups) -> list[list[str]]:
    """The source's parameters in the order of the config's groups; "" for tensors that are not in the module."""
    return [
        [source for name, source in zip(*pair, strict=True) if source or not name]
        for pair in zip(names, sources, strict=True)
    ]


@dataclass(frozen=True)
class _Entry:
    """One parameter of an optimizer of the config, and where its state comes from.

    Args:
        name: The parameter's; "" for a tensor that is not in the module.
        source: The source parameter's name; "" for a new one.
        settings: The parameter group that it will be in.
        saved: The checkpoint's optimizer that has its state, None where none has.
        is_trained: Whether it takes a gradient.
    """

    name: str
    source: str
    settings: Mapping[str, Any]
    saved: SavedOptimizer | None
    is_trained: bool


def _find_entries(
    optimizer: Optimizer, names: Groups, sources: Groups, saved: Sequence[SavedOptimizer], schedule: Schedule
) -> list[_Entry]:
    entries = []
    for group, *pair in zip(optimizer.param_groups, names, sources, strict=True):
        for parameter, name, source in zip(group["params"], *pair, strict=True):
            owner = next((item for item in saved if source in item.states), None)
            settings = owner.find_group(source) if owner is not None and schedule == "keep" else group
            entries.append(_Entry(name, source, settings, owner, parameter.requires_grad))
    return entries


def _move_optimizer(
    index: int,
    optimizer: Optimizer,
    entries: Sequence[_Entry],
    plan: GrowthPlan,
    weights: Mapping[str, Tensor],
    choice: OptimizerChoice,
    carried: CarriedState,
    keep: Keep,
) -> bool:
    """Move the states of one optimizer into `carried`; say whether it goes on where one of the checkpoint's was."""
    kind, owners = type(optimizer).__name__, list({id(entry.saved): entry.saved for entry in entries}.values())
    for owner in owners:
        if owner is not None and (reason := owner.differs_from(optimizer)):
            carried.fresh.append(f"all of optimizer {index}: {reason}")
            return False
    moved, fresh, missing = {}, list[str](), list[str]()
    for position, entry in enumerate(entries):
        try:
            if entry.saved is not None:
                state = _move_parameter(entry, entry.saved, plan, weights, kind, choice)
                moved[position] = {
                    name: keep(entry.name, item) if isinstance(item, Tensor) else item for name, item in state.items()
                }
            elif entry.source and entry.is_trained and any(owners):
                missing.append(f"{entry.name}: the checkpoint's optimizer has no state of it")
        except NotMoved as reason:
            fresh.append(f"{entry.name}: {reason}")
    template = carried.optimizer_states[index]
    if lost := _keep_progress(template["param_groups"], optimizer, entries, fresh):
        carried.fresh.append(f"all of optimizer {index}: {lost}")
        return False
    template["state"].update(moved)
    carried.kept.extend(entries[position].name for position in moved)
    carried.fresh.extend([*fresh, *missing])
    _say_what_differs(index, kind, [plan.tensors[entries[position].name] for position in moved], carried)
    return True


def _move_parameter(
    entry: _Entry,
    saved: SavedOptimizer,
    plan: GrowthPlan,
    weights: Mapping[str, Tensor],
    kind: str,
    choice: OptimizerChoice,
) -> dict[str, Any]:
    if choice == "transfer" and not plan.tensors[entry.name].is_one_to_one:
        raise NotMoved("its units are not one-to-one with the source's")
    old = saved.states[entry.source]
    return move_moments(entry.name, old, weights[entry.name], plan, kind, entry.settings)


def _keep_progress(
    groups: Sequence[dict[str, Any]], optimizer: Optimizer, entries: Sequence[_Entry], fresh: Sequence[str]
) -> str:
    """Let groups go on counting where they were; say why not, where only a part of their parameters goes on.

    Moments of 0 under an old count would take steps several times too long, old moments under a new one too short ones.
    """
    owners = {id(entry.saved): entry.saved for entry in entries if entry.saved is not None}
    counts = {key for owner in owners.values() for key in owner.find_progress(optimizer)}
    gaps = [*fresh, *(f"{entry.name}: it is new" for entry in entries if entry.name and not entry.source)]
    if counts and (gaps or len(owners) > 1):
        which = gaps[0] if gaps else "it had several optimizers' parameters"
        kept = ", ".join(sorted(counts))
        return f"{type(optimizer).__name__} keeps {kept} for a whole group, and not all of it can go on ({which})"
    for group in groups if counts else ():
        own = next((entries[key] for key in group["params"] if entries[key].saved is not None), None)
        if own is not None and own.saved is not None:
            old = own.saved.find_group(own.source)
            group.update({key: old[key] for key in counts if key in old})
    return ""


def _say_what_differs(index: int, kind: str, moved: Sequence[TensorPlan], carried: CarriedState) -> None:
    """Name what will not learn exactly as in an ungrown run."""
    for item in moved:
        if not item.is_one_to_one:
            carried.approximate.append(f"{item.name}: its units are not one-to-one with the source's")
        for factor in item.factors:
            pace = factor ** (-2 if kind in LINEAR else -1)
            carried.paced.append(
                f"{item.name}: its weights are {factor:.3g} times as large, so steps count {pace:.3g} times"
            )
    if kind not in ENTRYWISE and not all(item.is_plain for item in moved):
        carried.approximate.append(
            f"all of optimizer {index}: {kind} may step an entry by others of its tensor, so new ones bear on old ones"
        )


def _left_behind(saved: Sequence[SavedOptimizer], sources: Sequence[Groups]) -> list[str]:
    """States that no optimizer of the config has a parameter for."""
    there = set(chain.from_iterable(chain.from_iterable(sources)))
    unknown = [
        f"all of optimizer {index}: the checkpoint does not name its parameters, and they have not the shapes of the "
        "config's"
        for index, item in enumerate(saved)
        if not item.is_known
    ]
    names = [name for item in saved for name in item.states if name not in there]
    return [*unknown, *(f"{name}: no optimizer of the config has it" for name in names)]
