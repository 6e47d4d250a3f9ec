"""Lightning callbacks that grow a run."""

from lightning_grow.callbacks.arch_transfer import ArchTransfer

__all__ = ["ArchTransfer"]
