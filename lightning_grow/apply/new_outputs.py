"""How outputs that only the target has begin: actions with a chosen probability, deviations of a chosen size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_grow.errors import RefusedGrowth
from lightning_grow.options import Options
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.plan.unit_group import UnitGroup


def start_new_outputs(
    plan: GrowthPlan, grown: Mapping[str, Tensor], run: Callable[[], list[Tensor]], options: Options
) -> list[str]:
    """Set the new outputs' own entries as the options ask; those that the source has are not touched.

    Args:
        plan: The plan that made `grown`.
        grown: The target's state, by the plan's names; changed in place.
        run: The target's outputs on the example inputs, with `grown` as it is.
        options: Have the probability of new actions and the log_std of new dimensions.

    Returns:
        What was measured, for the report.

    Raises:
        RefusedGrowth: It cannot be done; where no output grows, there is nothing to do.
    """
    growing = [group for group in plan.groups if group.output >= 0]
    bare = [group for group in growing if all(_rank(plan, name) == 1 for name, _ in group.members)]
    heads = [group for group in growing if group not in bare]
    if options.new_log_std is not None and growing:
        _set_deviations(plan, grown, bare, options.new_log_std)
    if options.new_action_prob is None or not growing:
        return []
    if bare or len(heads) != 1:
        raise RefusedGrowth(
            f"new_action_prob={options.new_action_prob:g} is for one output of logits that grows, but "
            f"{len(growing)} outputs grow ({', '.join(group.name for group in growing)}). For a Gaussian policy "
            "choose new_log_std instead."
        )
    return [_set_probability(plan, grown, heads[0], options.new_action_prob, run)]


def _rank(plan: GrowthPlan, name: str) -> int:
    return len(plan.tensors[name].target_shape)


def _new(plan: GrowthPlan, name: str, dim: int) -> Tensor:
    return torch.nonzero(plan.tensors[name].maps[dim].low < 0).flatten()


def _set_deviations(plan: GrowthPlan, grown: Mapping[str, Tensor], groups: list[UnitGroup], value: float) -> None:
    if not groups:
        raise RefusedGrowth(
            f"new_log_std={value:g} needs an output that is a parameter itself, and none that grows is one. Return the "
            "policy's log_std from forward beside its mean."
        )
    for name, dim in (member for group in groups for member in group.members):
        grown[name].index_fill_(dim, _new(plan, name, dim).to(grown[name].device), value)


def _set_probability(
    plan: GrowthPlan, grown: Mapping[str, Tensor], group: UnitGroup, wanted: float, run: Callable[[], list[Tensor]]
) -> str:
    """Zero what new actions read, and shift their bias until they have the wanted mean probability."""
    biases = [member for member in group.members if _rank(plan, member[0]) == 1]
    if not biases:
        raise RefusedGrowth(f"new_action_prob needs a bias at {group.name} to set. Give the policy's last layer one.")
    for name, dim in group.members:
        grown[name].index_fill_(dim, _new(plan, name, dim).to(grown[name].device), 0.0)
    shift = _solve(run()[group.output], group.old, wanted)
    name, dim = biases[0]
    grown[name].index_fill_(dim, _new(plan, name, dim).to(grown[name].device), shift)
    found = _share(run()[group.output], group.old, 0.0)
    if not abs(float(found.mean()) - wanted) < 1e-3 * wanted:
        raise RefusedGrowth(
            f"new_action_prob={wanted:g}: with a bias of {shift:.3g} the new actions have the probability "
            f"{float(found.mean()):.3g} on the example inputs. Output {group.output} is not the logits of a softmax: "
            "return these from forward."
        )
    divergence = float(-(1 - found).log().mean())  # every old action loses the same share of its probability
    count = group.new - group.old
    return (
        f"{count} new actions begin with the total probability {float(found.mean()):.3g} on the example inputs; "
        f"KL(old policy || new) = {divergence:.3g}."
    )


def _share(logits: Tensor, old: int, shift: float) -> Tensor:
    """The probability of all actions from number `old` on, once their logits are shifted, float64 (...)."""
    logits = logits.double()
    new = logits[..., old:].logsumexp(-1) + shift
    return torch.sigmoid(new - logits[..., :old].logsumexp(-1))


def _solve(logits: Tensor, old: int, wanted: float) -> float:
    """The shift at which new actions have the wanted mean probability; by bisection, as that only rises with it."""
    low, high = -1e4, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(_share(logits, old, middle).mean()) < wanted else (low, middle)
    return (low + high) / 2
