"""Which parameters the optimizers of a run train, before and after it has grown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from lightning_grow.errors import RefusedGrowth
from lightning_grow.trace.names import parameters_of


@dataclass(frozen=True, eq=False)
class Trainable:
    """What the optimizers train at one moment.

    Args:
        parameters: The module's parameters by name.
        idle: The names of those that require gradients and that no optimizer has.
        groups: The number of parameter groups of every optimizer.
    """

    parameters: dict[str, nn.Parameter]
    idle: frozenset[str]
    groups: tuple[int, ...]

    @classmethod
    def of(cls, module: nn.Module, optimizers: Sequence[Optimizer]) -> Trainable:
        """Look at a module and its optimizers."""
        held = {id(item) for optimizer in optimizers for group in optimizer.param_groups for item in group["params"]}
        parameters = parameters_of(module)
        idle = {name for name, item in parameters.items() if item.requires_grad and id(item) not in held}
        return cls(parameters, frozenset(idle), tuple(len(optimizer.param_groups) for optimizer in optimizers))

    def check(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Refuse optimizers built anew that train less of the grown module than those before did.

        Args:
            module: The grown module.
            optimizers: Its optimizers.

        Raises:
            RefusedGrowth: An optimizer holds a parameter that the growth has replaced, or has none for one that is
                trained, or has lost a parameter group.
        """
        now = Trainable.of(module, optimizers)
        old = {id(item): name for name, item in self.parameters.items()}
        current = {id(item) for item in now.parameters.values()}
        refused = []
        for index, optimizer in enumerate(optimizers):
            held = [item for group in optimizer.param_groups for item in group["params"]]
            dead = [old[id(item)] for item in held if id(item) in old and id(item) not in current]
            if dead:
                refused.append(
                    f"optimizer {index} ({type(optimizer).__name__}) holds parameters that the module no longer has "
                    f"({', '.join(dead[:3])}): configure_optimizers takes them from something that was filled before. "
                    "Let it take them from the module (self.parameters(), self.net.parameters())."
                )
        idle = {name for name in now.idle - self.idle if name in self.parameters or not self.idle}
        if idle and self.groups and not refused:
            refused.append(
                f"no optimizer trains {', '.join(sorted(idle)[:3])} of the grown module. Let configure_optimizers give "
                "every parameter that requires gradients to an optimizer."
            )
        for index, (had, has) in enumerate(zip(self.groups, now.groups, strict=False)):
            if has < had:
                refused.append(
                    f"optimizer {index} has {had} parameter groups, but {has} as configure_optimizers builds it for "
                    "the grown module: what was added during the run (by BackboneFinetuning, say) would be lost. Build "
                    "all groups in configure_optimizers, or grow before any is added."
                )
        if refused:
            raise RefusedGrowth(refused)
