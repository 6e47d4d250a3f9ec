"""A forward that takes a tensor's content out of torch in one piece (tolist, numpy), where no operator shows it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_grow.private import no_dispatch
from lightning_grow.trace.recorder import Branches, NeedsData, Recorder

_READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__format__)
_INDEXES = (Tensor.__getitem__, Tensor.__setitem__)


class _Listed(list[int]):
    """The numbers of a tensor, which as an index is that tensor again: a list would lie on no device of the pass."""

    def __init__(self, numbers: list[int], tensor: Tensor) -> None:
        super().__init__(numbers)
        self.tensor, self.before = tensor, tuple(numbers)


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
        if function in _INDEXES:
            index = tuple(map(_as_tensor, args[1])) if isinstance(args[1], tuple) else _as_tensor(args[1])
            return function(args[0], index, *args[2:])
        if function not in _READS:
            return function(*args, **(kwargs or {}))
        value = self.recorder.value_of(args[0])
        if value.constant is not None:
            with no_dispatch():
                result = function(value.constant.clone(), *args[1:], **(kwargs or {}))  # an array shares its memory
            return _Listed(result, args[0]) if function is Tensor.tolist and args[0].dim() == 1 else result
        if function.__name__ == "__format__":  # a name with the tensor's number in it asks for it as .item() does
            return function(*args)
        if value.learned:
            raise Branches(self.recorder.where)
        if args[0].is_meta:
            raise NeedsData(self.recorder.where)
        self.recorder.trace.branches.append(self.recorder.where)
        return function(*args, **(kwargs or {}))


def _as_tensor(index: Any) -> Any:
    return index.tensor if isinstance(index, _Listed) and index.before == tuple(index) else index
