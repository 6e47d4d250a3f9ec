"""Which two modules a plan is for, as long as they live."""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import nn


class Modules:
    """Source and target of a plan, neither kept alive by it; a copy of the plan in another process knows none.

    >>> source = nn.Linear(2, 2)
    >>> modules = Modules(source, nn.Linear(2, 3))
    >>> modules.source is source, modules.target is None
    (True, True)
    """

    def __init__(self, source: nn.Module | None = None, target: nn.Module | None = None) -> None:
        self._source, self._target = (ref(module) if module is not None else _none for module in (source, target))

    @property
    def source(self) -> nn.Module | None:
        """The trained module; None once it is gone."""
        return self._source()

    @property
    def target(self) -> nn.Module | None:
        """The bigger module; None once it is gone."""
        return self._target()

    def __reduce__(self) -> Any:
        return Modules, ()


def _none() -> None:
    return None
