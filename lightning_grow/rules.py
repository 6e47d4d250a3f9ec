"""What a rule for an operator of your own is made of; `help(axis_rule)` says how.

A rule gets a `Call` and returns one (axes, meaning) per output: from `pointwise`, `contract` or `Call.rearrange`, or
written out, as `(axes, Along((call.input,), dims))`. An `Axis` of its own is a dimension that no other tensor has.

>>> import torch
>>> @torch.library.custom_op("doctest::running_mean", mutates_args=())
... def running_mean(x: torch.Tensor, dim: int) -> torch.Tensor:
...     return x.cumsum(dim) / x.shape[dim]
>>> _ = running_mean.register_fake(lambda x, dim: torch.empty_like(x))
>>> @axis_rule("doctest::running_mean")
... def running_mean_rule(call):
...     return [(call.input.axes, Along((call.input,), call.dims()))]
"""

from lightning_grow.trace.axes import Axis
from lightning_grow.trace.meanings import Along
from lightning_grow.trace.rules.contractions import contract
from lightning_grow.trace.table import Call, axis_rule, pointwise

__all__ = ["Along", "Axis", "Call", "axis_rule", "contract", "pointwise"]
