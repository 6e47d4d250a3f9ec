"""Resume any PyTorch Lightning run with a bigger network, and lose nothing."""

from typing import TYPE_CHECKING, Any

from lightning_grow.convert import convert_checkpoint
from lightning_grow.errors import CheckpointError, GrowError, RefusedGrowth, UnknownStrategy
from lightning_grow.grow import grow, plan_growth
from lightning_grow.options import GrowthOptions
from lightning_grow.plan.growth_plan import GrowthPlan
from lightning_grow.report import TransferReport
from lightning_grow.strategies import Block, Strategy, list_strategies, register_strategy
from lightning_grow.trace.table import axis_rule
from lightning_grow.training_state.grow_optimizer import grow_optimizer
from lightning_grow.verify.liveness import measure_liveness

if TYPE_CHECKING:
    from lightning_grow.callbacks import ArchTransfer, GrowableMixin, GrowthMonitor, GrowthSchedule
    from lightning_grow.formats.pretrained import grow_pretrained

__version__ = "0.1.0"

__all__ = [
    "ArchTransfer",
    "Block",
    "CheckpointError",
    "GrowError",
    "GrowableMixin",
    "GrowthMonitor",
    "GrowthOptions",
    "GrowthPlan",
    "GrowthSchedule",
    "RefusedGrowth",
    "Strategy",
    "TransferReport",
    "UnknownStrategy",
    "__version__",
    "axis_rule",
    "convert_checkpoint",
    "grow",
    "grow_optimizer",
    "grow_pretrained",
    "list_strategies",
    "measure_liveness",
    "plan_growth",
    "register_strategy",
]


def __getattr__(name: str) -> Any:
    """Import what belongs to Lightning or Hugging Face on first use: plain modules need not wait for it."""
    if name == "grow_pretrained":
        from lightning_grow.formats import pretrained

        return pretrained.grow_pretrained
    if name in ("ArchTransfer", "GrowableMixin", "GrowthMonitor", "GrowthSchedule"):
        from lightning_grow import callbacks

        return getattr(callbacks, name)
    raise AttributeError(f"module 'lightning_grow' has no attribute {name!r}")
