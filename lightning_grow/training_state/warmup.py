"""A temporary learning-rate warm-up that lives inside `Optimizer.step`, where no scheduler ever sees it."""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_grow.files.record import find_record
from lightning_grow.private import STATE_DICT_HOOKS
from lightning_grow.training_state.own_moments import OwnMoments, settle_moments

Scope = Literal["all", "new", "source"]
Shape = Literal["linear", "cosine"]
SETTINGS = ("num_steps", "start_factor", "scope", "shape", "fresh")
STATE_KEY = "ArchTransfer"
"""Under which name a checkpoint's callbacks keep the warm-up."""


class Warmup:
    """Scale what an optimizer step changes, from `start_factor` to 1 over `num_steps` steps.

    Scope "all" multiplies ``group["lr"]`` just before each step and puts the very same value back just after it, so
    schedulers, monitors and checkpoints only ever see the base rate. The other scopes shorten the step of some
    entries afterwards (scaling their gradients would do nothing under Adam), as does "all" where a group has no rate
    (Adafactor's relative steps). Each optimizer counts its own steps.

    Args:
        num_steps: Length in optimizer steps; 0 is no warm-up.
        start_factor: Factor of the first step, in (0, 1].
        scope: "all" entries, only the "new" ones that growth added, or only those of the "source".
        shape: "linear", or half a "cosine", which starts and ends gently.
        fresh: Whether new entries forget the moments they have and gather their own, as in an optimizer that starts
            with them: for scope "new", under Adam and AdamW.

    Raises:
        ValueError: An argument is out of range.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(()))
    >>> sgd, warmup = torch.optim.SGD([weight], lr=1.0), Warmup(num_steps=2, start_factor=0.5)
    >>> warmup.attach([sgd])
    >>> for _ in range(3):
    ...     weight.grad = torch.tensor(-1.0)
    ...     sgd.step()
    ...     print(weight.item(), sgd.param_groups[0]["lr"])
    0.5 1.0
    1.25 1.0
    2.25 1.0
    """

    def __init__(
        self,
        num_steps: int = 100,
        start_factor: float = 0.1,
        scope: Scope = "all",
        shape: Shape = "linear",
        fresh: bool = False,
    ) -> None:
        if num_steps < 0:
            raise ValueError(f"Expected num_warmup_steps to be 0 or more, but got {num_steps}.")
        if not 0 < start_factor <= 1:
            raise ValueError(f"Expected warmup_start_factor to be in (0, 1], but got {start_factor}.")
        if scope not in ("all", "new", "source"):
            raise ValueError(f"Expected warmup_scope to be 'all', 'new' or 'source', but got {scope!r}.")
        if shape not in ("linear", "cosine"):
            raise ValueError(f"Expected warmup_shape to be 'linear' or 'cosine', but got {shape!r}.")
        self.num_steps, self.start_factor, self.scope, self.shape = num_steps, start_factor, scope, shape
        self.fresh = fresh and scope == "new"
        self.steps: list[int] = []
        self.begun: list[dict[int, float]] = []  # of `OwnMoments`, one an optimizer
        self._attached: list[_Ramp] = []

    def attach(self, optimizers: Sequence[Optimizer], new_entries: Mapping[Tensor, Tensor] | None = None) -> None:
        """Start, or go on after a resume, with these optimizers.

        Args:
            optimizers: In the order of the counters.
            new_entries: For each parameter, where its entries are new: a bool mask of its shape. For scopes "new" and
                "source"; a parameter that is not in it has no new entries.
        """
        self.detach()
        self.steps = [*self.steps, *[0] * len(optimizers)][: len(optimizers)]
        self.begun = [*self.begun, *({} for _ in optimizers)][: len(optimizers)]
        masks = dict(new_entries or {})
        for index, optimizer in enumerate(optimizers):
            if not hasattr(optimizer, STATE_DICT_HOOKS):
                self.steps[index] = self.num_steps
                warnings.warn(
                    f"No warm-up: {type(optimizer).__name__} takes no hooks, for it does not call the __init__ of "
                    "torch.optim.Optimizer. Lower its learning rate for the first steps yourself.",
                    stacklevel=2,
                )
            elif not self.is_over(index):
                self._attached.append(_Ramp(self, index, optimizer, masks))

    def detach(self) -> None:
        """Take every hook off the optimizers; the counters stay."""
        for ramp in self._attached:
            ramp.remove()
        self._attached = []

    def factor(self, optimizer_index: int = 0) -> float:
        """The factor of this optimizer's next step: `start_factor` at first, 1 from step `num_steps` on."""
        done = self.steps[optimizer_index] if optimizer_index < len(self.steps) else 0
        if done >= self.num_steps:
            return 1.0
        part = done / self.num_steps
        return self.start_factor + (1 - self.start_factor) * (
            part if self.shape == "linear" else (1 - math.cos(math.pi * part)) / 2
        )

    def is_over(self, optimizer_index: int) -> bool:
        """Whether this optimizer has made all its steps."""
        return self.steps[optimizer_index] >= self.num_steps

    @property
    def is_finished(self) -> bool:
        """Whether every optimizer has made its steps, or there never was a warm-up."""
        return all(map(self.is_over, range(len(self.steps))))

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs, as plain types; empty when finished, so that no trace is left."""
        if self.is_finished:
            return {}
        settings = {key: getattr(self, key) for key in SETTINGS}
        begun = {"begun": [dict(item) for item in self.begun]} if self.fresh else {}
        return {**settings, "steps": list(self.steps), **begun}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Warmup":
        """The warm-up that wrote this state, at the step where it was."""
        warmup = cls(**{key: state[key] for key in SETTINGS if key in state})
        warmup.steps = list(state["steps"])
        warmup.begun = [dict(begun) for begun in state.get("begun", ())]
        return warmup


class _Ramp:
    """The hooks of one warm-up on one optimizer."""

    def __init__(self, warmup: Warmup, index: int, optimizer: Optimizer, masks: Mapping[Tensor, Tensor]) -> None:
        self.warmup, self.index, self.optimizer = warmup, index, optimizer
        self.rates: list[Any] | None = None  # the base rates, while a step runs
        self.is_open = False  # between the two hooks of one step
        self.held: list[tuple[Tensor, Tensor, Tensor]] = []  # parameter, mask, its entries before the step
        self.by_rate = warmup.scope == "all" and all(group.get("lr") is not None for group in optimizer.param_groups)
        self.masks: dict[Tensor, Tensor] = {} if self.by_rate else self._find_masks(masks)
        self.moments = OwnMoments(optimizer, self.masks, warmup.begun[index]) if warmup.fresh else None
        self.handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self.before),
            optimizer.register_step_post_hook(self.after),
            optimizer.register_state_dict_post_hook(self.show_base_rates),
        ]

    def _find_masks(self, new_entries: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        masks = {}
        for parameter in (parameter for group in self.optimizer.param_groups for parameter in group["params"]):
            new = local(new_entries.get(parameter, torch.zeros_like(parameter, dtype=torch.bool))).to(parameter.device)
            mask = {"new": new, "source": ~new, "all": torch.ones_like(new)}[self.warmup.scope]
            if mask.any():
                masks[parameter if self.warmup.fresh else local(parameter)] = mask
        return masks

    def before(self, optimizer: Optimizer, *_: Any) -> None:
        self.restore()  # a step that raised never reached `after`
        if self.warmup.is_over(self.index):
            return
        self.is_open, factor = True, self.warmup.factor(self.index)
        if self.moments is not None and self.warmup.steps[self.index] == 0:
            self.moments.forget()
        if self.by_rate:
            self.rates = [_scale(group, factor) for group in optimizer.param_groups]
        else:
            self.held = [(parameter, mask, parameter.detach()[mask]) for parameter, mask in self.masks.items()]

    @torch.no_grad()
    def after(self, optimizer: Optimizer, *_: Any) -> None:
        if not self.is_open:  # over, or the outer one of two: a subclass whose step calls super().step runs hooks twice
            return
        factor, count = self.warmup.factor(self.index), self.warmup.steps[self.index] + 1
        for parameter, mask, old in self.held:
            share = factor if self.moments is None else factor * self.moments.correction(parameter)
            parameter[mask] = torch.lerp(old, parameter[mask], share)
        self.restore()
        self.warmup.steps[self.index] = count  # the hooks stay until detach: torch is iterating over them here
        if self.moments is not None and self.warmup.is_over(self.index):
            self.moments.settle()
            self.moments.begun.clear()

    def show_base_rates(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """A state dict taken while a step runs (or after one raised) holds the base rates, not the scaled ones."""
        for group, rate in zip(state["param_groups"], self.rates or (), strict=False):
            group["lr"] = rate

    def restore(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates or (), strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(rate)  # in place: captured and compiled steps hold this very tensor
            else:
                group["lr"] = rate
        self.rates, self.held, self.is_open = None, [], False

    def remove(self) -> None:
        self.restore()
        for handle in self.handles:
            handle.remove()


def _scale(group: dict[str, Any], factor: float) -> Any:
    """Scale a group's rate and return the base one."""
    rate = group["lr"]
    if isinstance(rate, Tensor):
        base = rate.clone()
        rate.mul_(factor)
        return base
    group["lr"] = rate * factor
    return rate


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, but where it is sharded; a change of it changes the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def end_warmup(checkpoint: dict[str, Any], new_entries: Mapping[str, Sequence[int]]) -> None:
    """End the warm-up that a checkpoint is in the middle of, so that another growth may begin its own.

    Args:
        checkpoint: Changed in place: half-gathered moments get the size they need under their tensor's step count, and
            the warm-up is gone.
        new_entries: Which entries are new, by parameter, as `to_runs` writes them.
    """
    own = (checkpoint.get("callbacks") or {}).get(STATE_KEY, {})
    for index, begun in enumerate(own.get("begun", ())):
        if not begun:  # over, or without moments of its own
            continue
        state = checkpoint["optimizer_states"][index]
        names = list(chain.from_iterable(find_record(checkpoint)["optimizers"][index]))
        keys = [(key, group["betas"]) for group in state["param_groups"] for key in group["params"]]
        for number, start in begun.items():
            key, betas = keys[number]
            moments = state["state"].get(key, {})
            new = from_runs(new_entries[names[number]], moments["exp_avg"].shape) if moments else torch.empty(0)
            moments.update(settle_moments(moments, new, start, betas))
    for key in (*SETTINGS, "steps", "begun"):
        own.pop(key, None)


def to_runs(mask: Tensor) -> list[int]:
    """A bool mask as plain data: lengths of alternating runs over its flat entries, the first one of False.

    >>> to_runs(torch.tensor([[False, True], [False, True]]))
    [1, 1, 1, 1]
    """
    flat = mask.flatten()
    edges = torch.nonzero(flat[1:] != flat[:-1]).flatten() + 1
    bounds = torch.tensor([0, *edges.tolist(), len(flat)])
    runs: list[int] = bounds.diff().tolist()
    return [0, *runs] if len(flat) and flat[0] else runs


def from_runs(runs: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The mask that `to_runs` wrote.

    >>> from_runs([1, 1, 1, 1], (2, 2))
    tensor([[False,  True],
            [False,  True]])
    """
    values = torch.arange(len(runs)) % 2 == 1
    return values.repeat_interleave(torch.tensor(runs, dtype=torch.long)).reshape(tuple(shape))
