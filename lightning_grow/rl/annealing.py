"""How PPO's learning rate falls over its iterations."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_grow.errors import WrongSetting


def annealed(step: int, iteration: int, total: int) -> float:
    """Return the learning rate after `step` scheduler steps as a fraction: 1 at first, 0 after the last iteration.

    A scheduler that starts in the middle of a run, as after growth, falls over the iterations that are left.

    Args:
        step: Steps of the scheduler so far, one an iteration.
        iteration: Iterations before this one, from the run's beginning.
        total: All iterations of the run.

    >>> [annealed(step, iteration, total=4) for step, iteration in enumerate(range(-1, 4))]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    >>> annealed(1, iteration=2, total=4)
    0.5
    """
    if step == 0:
        return 1.0
    first_iteration = iteration + 1 - step
    return max(0.0, 1 - step / max(1, total - first_iteration))


def count_iterations(trainer: Trainer, settings: Mapping[str, Any]) -> int:
    """Return over how many iterations the learning rate falls.

    Args:
        trainer: Has `max_epochs` and `max_steps`.
        settings: PPO's hyperparameters.

    Raises:
        WrongSetting: If none of them says.
    """
    total: int | None = settings["total_iterations"] or trainer.max_epochs
    if total is not None and total > 0:
        return total
    if trainer.max_steps > 0:
        steps_each: int = settings["update_epochs"] * settings["num_minibatches"]
        return math.ceil(trainer.max_steps / steps_each)
    raise WrongSetting(
        "What falls over the run (anneal_lr, anneal_clip_coef) needs to know its end: set total_iterations, or "
        "max_epochs of the Trainer."
    )
