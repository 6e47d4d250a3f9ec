"""Outside a Trainer: one optimizer's state moved to the optimizer of the grown module."""

from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from lightning_grow.errors import RefusedGrowth, WrongSetting
from lightning_grow.files.record import find_param_names, record_architecture
from lightning_grow.plan.growth_plan import GrowthPlan, refuse
from lightning_grow.report import TransferReport
from lightning_grow.training_state.optimizers import CarriedState, carry_optimizers


def grow_optimizer(
    growth: GrowthPlan | TransferReport,
    source_optimizer: Optimizer,
    target_optimizer: Optimizer,
    how: Literal["transfer", "asymmetric"] = "transfer",
) -> CarriedState:
    """Give the grown module's optimizer the state of the source's, for a loop of one's own (accelerate, SB3).

    Call it after `grow`, while both modules are there. Settings (learning rate, weight decay) stay the target
    optimizer's; a learning-rate schedule goes on by its own `load_state_dict`.

    Args:
        growth: What `grow` or `plan_growth` returned.
        source_optimizer: The source's optimizer; not changed.
        target_optimizer: One of the same class over the target's parameters; changed in place, or not at all.
        how: "transfer" moves the moments of units that are one-to-one with the source's, "asymmetric" those of all
            entries that go on, copies' too.

    Returns:
        Whose state goes on (`kept`), what starts fresh and why (`fresh`), and what only nearly learns as before.

    Raises:
        RefusedGrowth: A module is gone, or an optimizer is of another one.
        WrongSetting: There is no such `how`.

    >>> import torch, lightning_grow
    >>> small, large = nn.Linear(3, 4), nn.Linear(3, 6)
    >>> old = torch.optim.Adam(small.parameters())
    >>> small(torch.ones(1, 3)).sum().backward(); old.step()
    >>> report = lightning_grow.grow(small, large, example_inputs=(torch.ones(1, 3),), allow_output_growth=True)
    >>> new = torch.optim.Adam(large.parameters())
    >>> grow_optimizer(report, old, new).kept
    ['weight', 'bias']
    >>> moments = new.state[large.weight]
    >>> moments["exp_avg"].shape
    torch.Size([6, 3])
    """
    if how not in ("transfer", "asymmetric"):
        raise WrongSetting(f"Expected how to be 'transfer' or 'asymmetric', but got {how!r}.")
    plan = growth.plan if isinstance(growth, TransferReport) else growth
    if not isinstance(plan, GrowthPlan):
        raise RefusedGrowth(
            "the report has no plan any more (it was read back from a file). Pass what grow or plan_growth returned."
        )
    refuse(plan)
    source, target = _alive(plan.modules.source, "source"), _alive(plan.modules.target, "target")
    _check_owner(source, source_optimizer, "source")
    _check_owner(target, target_optimizer, "target")
    checkpoint: dict[str, Any] = {"state_dict": target.state_dict()}
    checkpoint["optimizer_states"] = [source_optimizer.state_dict()]
    record_architecture(checkpoint, source, [source_optimizer])
    carried = carry_optimizers(checkpoint, target, [target_optimizer], None, plan, optimizer=how, scheduler="reset")
    target_optimizer.load_state_dict(carried.optimizer_states[0])
    return carried


def _alive(module: nn.Module | None, which: str) -> nn.Module:
    if module is None:
        raise RefusedGrowth(
            f"the {which} module is gone, and only it knows the names of its optimizer's parameters. Keep it until its "
            "optimizer has grown."
        )
    return module


def _check_owner(module: nn.Module, optimizer: Optimizer, which: str) -> None:
    names = [name for group in find_param_names(module, optimizer) for name in group]
    if not any(names):
        raise RefusedGrowth(
            f"the {which} optimizer steps no parameter of the {which} module ({type(module).__name__}). Build it over "
            f"that module's parameters{' after the growth, if the module was on meta' if which == 'target' else ''}."
        )
