"""The names that a module gives its inputs."""

from collections.abc import Iterable

from torch import nn

INPUT_NAMES = "_lightning_grow_input_names"


"""On a module built again from a checkpoint: the names recorded there. Those of its class may be of newer code."""


def find_input_names(module: nn.Module) -> list[str] | None:
    """The names of a module's inputs, as it gives them or as its checkpoint recorded them; None without any."""
    names = getattr(module, INPUT_NAMES, None) or getattr(module, "input_names", None)
    return list(map(str, names)) if isinstance(names, Iterable) and not isinstance(names, str) else None
