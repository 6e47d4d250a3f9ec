"""What ends a run before it is learnt from, or saved: a loss, a gradient or a weight that is NaN or infinite."""

import torch
from torch import Tensor, nn

from lightning_grow.errors import NotFinite


def check_step(loss: Tensor, norm: Tensor, number: int) -> None:
    """Refuse an optimizer step along a gradient that is not finite.

    Args:
        loss: Scalar.
        norm: Of its gradient, scalar.
        number: Optimizer steps taken so far.

    Raises:
        NotFinite: The norm is NaN or infinite.

    >>> check_step(torch.tensor(1.5), torch.tensor(float("nan")), 3)
    Traceback (most recent call last):
    lightning_grow.errors.NotFinite: optimizer step 3: the loss is 1.5 and its gradient's norm nan, so the step is ...
    """
    if not norm.isfinite():
        raise NotFinite(
            f"optimizer step {number}: the loss is {loss.item():g} and its gradient's norm {norm.item():g}, so the "
            "step is not taken. Lower learning_rate, or scale rewards and observations."
        )


def check_state(module: nn.Module) -> None:
    """Refuse to save a module whose state is not finite: it would overwrite a checkpoint that is.

    Raises:
        NotFinite: A parameter or a buffer is not finite; names it.
    """
    for name, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise NotFinite(f"'{name}' is not finite, so no checkpoint is written. Resume from the last one.")
