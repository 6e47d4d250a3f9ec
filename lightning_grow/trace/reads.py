"""A forward that takes a tensor's content out of torch in one piece (tolist, numpy), where no operator shows it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_grow.private import no_dispatch
from lightning_grow.trace.recorder import Branches, NeedsData, Recorder

_READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__format__)


class ContentReads(TorchFunctionMode):
    """Gives the content of constants, and stops a pass that asks for that of weights.

    Raises:
        Branches: The content depends on weights.
        NeedsData: It is an input's, on the meta device.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in _READS:
            return function(*args, **(kwargs or {}))
        value = self.recorder.value_of(args[0])
        if value.constant is not None:
            with no_dispatch():
                return function(value.constant.clone(), *args[1:], **(kwargs or {}))  # an array shares its memory
        if function.__name__ == "__format__":  # a name with the tensor's number in it asks for it as .item() does
            return function(*args)
        if value.learned:
            raise Branches(self.recorder.where)
        if args[0].is_meta:
            raise NeedsData(self.recorder.where)
        self.recorder.trace.branches.append(self.recorder.where)
        return function(*args, **(kwargs or {}))
