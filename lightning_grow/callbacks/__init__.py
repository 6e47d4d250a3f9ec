"""Lightning callbacks that grow a run."""

from lightning_grow.callbacks.arch_transfer import ArchTransfer
from lightning_grow.callbacks.growable import GrowableMixin
from lightning_grow.callbacks.growth_monitor import GrowthMonitor
from lightning_grow.callbacks.growth_schedule import GrowthSchedule

__all__ = ["ArchTransfer", "GrowableMixin", "GrowthMonitor", "GrowthSchedule"]
