"""Buffers that are settings (class weights of a loss): no forward reads them, and they are as the module was built."""

from torch import nn

from lightning_grow.trace.tape import Trace

AS_BUILT = "_lightning_grow_as_built"
"""On a module built again from a checkpoint: its buffers that training has left as its constructor makes them."""


def find_settings(module: nn.Module, tape: Trace) -> set[str]:
    """The names of a source's buffers that its forward does not read and that it was built with."""
    used, as_built = tape.used(), getattr(module, AS_BUILT, ())
    return {name for name in as_built if name in tape.tensors and tape.tensors[name] not in used}
