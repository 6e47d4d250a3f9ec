"""A mixin for LightningModules that records its architecture and grows in `load_from_checkpoint`."""

from collections.abc import Callable
from typing import Any

from lightning_grow.convert import MARK, grow_checkpoint, is_bigger
from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.hparams import to_plain
from lightning_grow.files.record import record_architecture, restore_attributes


class GrowableMixin:
    """Make a LightningModule's checkpoints plain, self-describing, and loadable into a bigger one.

    Put it before LightningModule in the bases: ``class Net(GrowableMixin, LightningModule)``. A module may also offer
    `input_names` (a list of str), `example_input_array`, and `describe_inputs`.

    Attributes:
        transfer_options: The keyword arguments of `grow` (and `source`) that `load_from_checkpoint` grows with; a
            method that returns them will do too. ArchTransfer has its own.
    """

    transfer_options: dict[str, Any] | Callable[[], dict[str, Any]] = {}  # noqa: RUF012

    def describe_inputs(self, hparams: dict[str, Any]) -> str:
        """Say in a sentence how the input size comes about; shown when checkpoint and config disagree on it.

        Args:
            hparams: The hyperparameters, of the checkpoint or of the config.

        Returns:
            E.g. "900 = 15 features x 3 timeframes x 20 bars."; nothing by default.
        """
        del hparams  # unused by the default
        return ""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the architecture under our key, and save hyperparameters that need no code to load.

        Args:
            checkpoint: The checkpoint being saved, changed in place.
        """
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = to_plain(checkpoint["hyper_parameters"])
            checkpoint.pop("hparams_type", None)  # a class: weights_only=True would refuse the file for it
        trainer = getattr(self, "_trainer", None)
        record_architecture(checkpoint, self, trainer.optimizers if trainer is not None else ())  # type: ignore[arg-type]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Grow the checkpoint to this module's shapes, unless ArchTransfer is about to.

        Args:
            checkpoint: The checkpoint being loaded, changed in place.

        Raises:
            RefusedGrowth: It cannot be grown, or this is a `fit` without ArchTransfer: the optimizer would be left
                with the source's shapes.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        if MARK in checkpoint or "state_dict" not in checkpoint:
            return
        trainer = getattr(self, "_trainer", None)
        fitting = trainer is not None and trainer.state.fn == "fit"
        refusal = RefusedGrowth(
            f"the checkpoint holds another architecture than this {type(self).__name__}, or its inputs in another "
            "order, and growing inside fit needs the optimizers too. Add lightning_grow.ArchTransfer() to the "
            "Trainer's callbacks."
        )
        if fitting and is_bigger(checkpoint["state_dict"], self):  # type: ignore[arg-type]
            raise refusal
        options = self.transfer_options() if callable(self.transfer_options) else self.transfer_options
        if grow_checkpoint(checkpoint, self, **options) is not None and fitting:  # type: ignore[arg-type]
            raise refusal
        restore_attributes(self, checkpoint)  # type: ignore[arg-type]
