"""What PPO's settings may be, and which of a Trainer's it can honour."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_grow.errors import WrongSetting

Range = tuple[Callable[[float], bool], str]

_POSITIVE: Range = (lambda value: 0 < value < math.inf, "above 0")
_NOT_NEGATIVE: Range = (lambda value: 0 <= value < math.inf, "at least 0")
_SHARE: Range = (lambda value: 0 <= value <= 1, "in [0, 1]")
_COUNT: Range = (lambda value: value >= 1 and value == int(value), "a whole number, at least 1")
RANGES: dict[str, Range] = {
    "learning_rate": _POSITIVE,
    "total_iterations": _COUNT,
    "gamma": _SHARE,
    "gae_lambda": _SHARE,
    "clip_coef": _POSITIVE,
    "ent_coef": _NOT_NEGATIVE,
    "vf_coef": _NOT_NEGATIVE,
    "max_grad_norm": _POSITIVE,
    "target_kl": _POSITIVE,
    "num_envs": _COUNT,
    "num_steps": _COUNT,
    "num_minibatches": _COUNT,
    "update_epochs": _COUNT,
}
"""Every number among PPO's settings, and what it has to be."""

_OPTIONAL = ("total_iterations", "target_kl")
_PRECISIONS = ("32-true", "64-true", "bf16-mixed")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings outside their range, all of them at once.

    Args:
        settings: PPO's hyperparameters.

    Raises:
        WrongSetting: A setting is out of its range, no number, or leaves too few samples for a minibatch.

    >>> check_settings(dict.fromkeys(RANGES, 1) | {"norm_adv": False, "gamma": 1.5, "clip_coef": 0.0})
    Traceback (most recent call last):
    lightning_grow.errors.WrongSetting: Expected gamma to be in [0, 1], but got 1.5. Expected clip_coef to be above 0...
    """
    faults = [
        f"Expected {name} to be {words}{' or None' if name in _OPTIONAL else ''}, but got {settings[name]!r}."
        for name, (holds, words) in RANGES.items()
        if not (settings[name] is None and name in _OPTIONAL) and not _is_number(settings[name], holds)
    ]
    if faults:
        raise WrongSetting(" ".join(faults))
    if settings.get("memory") is not None and settings["num_envs"] < settings["num_minibatches"]:
        raise WrongSetting(
            f"A minibatch of an agent with a memory is made of whole environments: expected num_envs (in each process) "
            f"to be at least num_minibatches={settings['num_minibatches']}, but got {settings['num_envs']}."
        )
    samples = settings["num_envs"] * settings["num_steps"]
    least = (2 if settings["norm_adv"] else 1) * settings["num_minibatches"]
    if samples < least:
        raise WrongSetting(
            f"Expected num_envs x num_steps to be at least {least} for num_minibatches={settings['num_minibatches']}, "
            f"but got {samples}. Collect more, or take fewer minibatches: norm_adv needs two samples in each."
        )


def _is_number(value: Any, holds: Callable[[float], bool]) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and holds(value)


def check_trainer(trainer: Trainer) -> None:
    """Refuse what a Trainer is set to do and PPO, which steps its optimizer itself, would not.

    Raises:
        WrongSetting: Gradients are to be accumulated or clipped, or the precision is one that PPO does not take.
    """
    if trainer.accumulate_grad_batches != 1:
        raise WrongSetting(
            f"PPO takes an optimizer step for each minibatch; the Trainer has accumulate_grad_batches="
            f"{trainer.accumulate_grad_batches}. Leave it out, and set num_minibatches for larger minibatches."
        )
    if trainer.gradient_clip_val:
        raise WrongSetting(
            f"PPO clips gradients to its own max_grad_norm; the Trainer has gradient_clip_val="
            f"{trainer.gradient_clip_val}. Leave it out, and set max_grad_norm."
        )
    if trainer.precision not in _PRECISIONS:
        raise WrongSetting(f"PPO trains in {', '.join(_PRECISIONS)}; the Trainer has precision={trainer.precision}.")
