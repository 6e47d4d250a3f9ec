"""A learning-rate schedule that goes on in the grown run: parameter groups are matched by what is in them."""

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from torch.optim import Optimizer

from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.record import find_record, scheduler_kind
from lightning_grow.private import LAST_RATES, SCHEDULERS

SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum")
"""The entries of a parameter group that a scheduler writes."""

IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
"""How torch computes a step: the config's business, and the machine's."""

PER_GROUP = ("base_lrs", LAST_RATES, "lr_lambdas", "min_lrs", "max_lrs", "base_momentums", "max_momentums")
"""The entries of a scheduler's state that have one item for every parameter group."""

DERIVED = ("total_size", "step_ratio")
"""What CyclicLR makes of its settings, which it does not keep."""

PLAIN = (bool, int, float, str, list, tuple, dict)

WAY_OUT = "Pass scheduler='reset' (and optimizer='reset') to start the config's schedule."

Groups = Sequence[Sequence[str]]
"""The parameters' names, group by group."""


def keep_schedules(
    checkpoint: Mapping[str, Any],
    templates: Sequence[dict[str, Any]],
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any] | None,
    saved: Sequence[Groups],
    built: Sequence[Groups],
    *,
    only_rates: Sequence[bool],
) -> list[dict[str, Any]]:
    """Let the groups of the config go on with the checkpoint's rates, and its schedulers with their state.

    Args:
        checkpoint: Where both are read from.
        templates: The optimizers' state dicts; their groups are changed in place.
        optimizers: As the config builds them.
        schedulers: Likewise; None where they are not built, and nothing is known of them.
        saved: For every optimizer, the parameters in the checkpoint's groups; "" where their names are unknown.
        built: For every optimizer, the source names of the parameters in the config's groups; "" for new ones.
        only_rates: For every optimizer, whether it starts fresh and takes nothing but its rates from the checkpoint.

    Returns:
        The state of every scheduler.

    Raises:
        RefusedGrowth: The schedule can only go on in another way than before.
    """
    states, schedules = checkpoint["optimizer_states"], list(checkpoint.get("lr_schedulers") or [])
    _check_counts("optimizers", states, optimizers)
    _check_owners(saved, built)
    if schedulers is not None:
        _check_counts("schedulers", schedules, schedulers)
        _check_kinds(schedules, find_record(checkpoint).get("schedulers", ()), schedulers)
    numbers = [match_groups(*pair) for pair in zip(saved, built, strict=True)]
    for index, (state, template) in enumerate(zip(states, templates, strict=True)):
        groups = state.get("param_groups", ()), template.get("param_groups", ())
        _check_joined(groups[0], saved[index], built[index])
        if only_rates[index]:
            _check_rates(*groups, numbers[index], bool(schedules))
        _keep_groups(*groups, numbers[index], schedules, only_rates=only_rates[index])
    if all(found == list(range(len(groups))) for found, groups in zip(numbers, saved, strict=True)):
        return schedules
    if schedulers is None:
        raise _cannot_keep("its parameter groups are others in the config, and no scheduler is built here to compare")
    moved = []
    for state, scheduler in zip(schedules, schedulers, strict=True):
        index = next((at for at, item in enumerate(optimizers) if item is scheduler.optimizer), 0)
        rates = [group["lr"] for group in templates[index]["param_groups"]]
        moved.append(_move_schedule(state, scheduler.state_dict(), numbers[index], rates))
    return moved


def cover_groups(scheduler: Any) -> None:
    """Lengthen the lists of a scheduler that starts anew by the groups a callback has brought back since it was built.

    One that unfreezes parameters group by group leaves the rest to the scheduler's state, which a fresh start drops.
    """
    for key in PER_GROUP:
        if isinstance(own := getattr(scheduler, key, None), list) and own:
            rate = {"base_lrs": "initial_lr", LAST_RATES: "lr"}.get(key)
            more = scheduler.optimizer.param_groups[len(own) :]
            own.extend(group.get(rate, group["lr"]) if rate else own[-1] for group in more)
    for part in getattr(scheduler, SCHEDULERS, ()):
        cover_groups(part)


def match_groups(saved: Sequence[Sequence[str]], built: Sequence[Sequence[str]]) -> list[int | None]:
    """Find the saved group that each group of the config goes on with: the one most of its parameters come from.

    Args:
        saved: The parameters of every group in the checkpoint; "" where their names are unknown.
        built: The source names of the parameters of every group of the config; "" for new ones.

    Returns:
        For every group of the config its number in the checkpoint; None where all its parameters are new.

    Raises:
        RefusedGrowth: The checkpoint does not name its parameters and has another number of groups.

    >>> match_groups([["0.weight"], ["0.bias"]], [["0.bias", ""], ["0.weight"], [""]])
    [1, 0, None]
    """
    homes = {name: number for number, names in enumerate(saved) for name in names if name}
    if not homes:
        if len(saved) != len(built):
            raise _cannot_keep(
                f"the checkpoint has {len(saved)} parameter groups and does not say which parameters are in them, "
                f"the config builds {len(built)}"
            )
        return list(range(len(saved)))
    counts = [Counter(homes[name] for name in names if name in homes) for names in built]
    return [count.most_common(1)[0][0] if count else None for count in counts]


def _keep_groups(
    saved: Sequence[Mapping[str, Any]],
    built: Sequence[dict[str, Any]],
    numbers: Sequence[int | None],
    schedules: Sequence[Mapping[str, Any]],
    *,
    only_rates: bool,
) -> None:
    share = _common_share(saved) if schedules and None in numbers else 1.0
    cycled = {"momentum", "betas"} if _cycle_momentum(schedules) else set()
    for group, number in zip(built, numbers, strict=True):
        # where the config has split a group, it has done so for the sake of a setting
        rates = only_rates or numbers.count(number) > 1
        kept = {*(SCHEDULED if rates else saved[number or 0]), *cycled} - {"params", "param_names", "name"}
        if number is None:
            group["lr"] = group.get("initial_lr", group["lr"]) * share
            kept = cycled
        group.update({key: value for key, value in saved[number or 0].items() if key in kept - IMPLEMENTATION})


def _common_share(saved: Sequence[Mapping[str, Any]]) -> float:
    """How far a schedule has taken every group from its first rate, as a factor."""
    shares = [float(group["lr"]) / float(group["initial_lr"]) for group in saved if group.get("initial_lr")]
    if len(shares) < len(saved) or max(shares) - min(shares) > 1e-6 * max(shares):  # rates may be float32 tensors
        raise _cannot_keep(
            "a parameter group is new, and those of the checkpoint do not say how far its learning rate should have "
            "come, for they have not all moved by one factor"
        )
    return max(shares)


def _cycle_momentum(schedules: Iterable[Mapping[str, Any]]) -> bool:
    return any(state.get("cycle_momentum") or _cycle_momentum(state.get(SCHEDULERS, ())) for state in schedules)


def _move_schedule(
    saved: Mapping[str, Any], built: Mapping[str, Any], numbers: Sequence[int | None], rates: Sequence[Any]
) -> dict[str, Any]:
    """A scheduler's state with its lists in the order of the config's groups; `built` has the items of new ones."""
    moved = dict(saved)
    for key in PER_GROUP:
        if isinstance(saved.get(key), (list, tuple)):
            own = rates if key == LAST_RATES else built[key]
            moved[key] = [own[at] if number is None else saved[key][number] for at, number in enumerate(numbers)]
    if SCHEDULERS in saved:
        pairs = zip(saved[SCHEDULERS], built[SCHEDULERS], strict=True)
        moved[SCHEDULERS] = [_move_schedule(*pair, numbers, rates) for pair in pairs]
    return moved


def _check_counts(what: str, saved: Sequence[Any], built: Sequence[Any]) -> None:
    if len(saved) != len(built):
        raise _cannot_keep(f"the checkpoint has {len(saved)} {what}, the config builds {len(built)}")


def _check_joined(groups: Sequence[Mapping[str, Any]], saved: Groups, built: Groups) -> None:
    """A group of the config may only join groups that have one rate."""
    rates = {
        name: (float(group["lr"]), float(group.get("initial_lr", group["lr"])))
        for group, names in zip(groups, saved, strict=True)
        for name in names
        if name and group.get("lr") is not None
    }
    for number, names in enumerate(built):
        if len(joined := {rates[name] for name in names if name in rates}) > 1:
            shown = " and ".join(f"{rate:g}" for rate, _ in sorted(joined))
            raise _cannot_keep(f"parameter group {number} of the config joins parameters with the rates {shown}")


def _check_owners(saved: Sequence[Groups], built: Sequence[Groups]) -> None:
    """Every optimizer must have taken its parameters from the one in its place."""
    homes = {name: at for at, groups in enumerate(saved) for name in chain.from_iterable(groups) if name}
    for at, groups in enumerate(built):
        if others := {homes[name] for name in chain.from_iterable(groups) if name in homes} - {at}:
            raise _cannot_keep(
                f"optimizer {at} of the config has parameters that optimizer {min(others)} of the checkpoint had"
            )


def _check_kinds(saved: Sequence[Mapping[str, Any]], kinds: Sequence[str], schedulers: Sequence[Any]) -> None:
    for number, (state, scheduler) in enumerate(zip(saved, schedulers, strict=True)):
        had, has = kinds[number] if number < len(kinds) else "", scheduler_kind(scheduler)
        if (had and had != has) or _keys(state) != _keys(scheduler.state_dict()):
            known = f" ({had})" if had else ""
            raise _cannot_keep(f"the checkpoint's scheduler{known} is not the {has} that the config builds")
        if differing := _differing(state, scheduler):
            raise _cannot_keep(
                f"{'; '.join(differing)}. Give the config the checkpoint's, if the schedule is to end as it would have"
            )


def _differing(state: Mapping[str, Any], scheduler: Any) -> list[str]:
    """Settings that the checkpoint and the config disagree on: lengths above all, which go by the number of epochs."""
    kind, built = type(scheduler), scheduler.state_dict()
    settings = {*inspect.signature(kind).parameters, *DERIVED} - {"last_epoch", "schedulers", *PER_GROUP}
    own = [
        f"{kind.__name__} has {name.lstrip('_')}={value} in the checkpoint, {built[name]} in the config"
        for name, value in state.items()
        if name.lstrip("_") in settings and name in built and isinstance(value, PLAIN) and value != built[name]
    ]
    within = zip(state.get(SCHEDULERS, ()), getattr(scheduler, SCHEDULERS, ()), strict=False)
    return own + [line for pair in within for line in _differing(*pair)]


def _keys(state: Mapping[str, Any]) -> set[str]:
    """The entries of a scheduler's state, those of schedulers within it included."""
    within = (f"{at}.{key}" for at, part in enumerate(state.get(SCHEDULERS, ())) for key in _keys(part))
    return {*state, *within}


def _check_rates(
    saved: Sequence[Mapping[str, Any]],
    built: Sequence[Mapping[str, Any]],
    numbers: Sequence[int | None],
    scheduled: bool,
) -> None:
    """A fresh optimizer's base rate must be the one that the schedule started from."""
    for number, group in zip(numbers, built, strict=True):
        if number is None or (scheduled and "initial_lr" not in saved[number]):
            continue  # a new group, or ReduceLROnPlateau, which forgets where it began
        had, has = (float(item.get("initial_lr", item["lr"])) for item in (saved[number], group))
        if had != has:
            raise _cannot_keep(f"it runs from the learning rate {had:g}, the config's fresh optimizer from {has:g}")


def _cannot_keep(reason: str) -> RefusedGrowth:
    """The refusal of a schedule, with the way out."""
    return RefusedGrowth(f"the schedule cannot be kept: {reason}. {WAY_OUT}")
