"""A mixin for LightningModules that records its architecture and grows in `load_from_checkpoint`."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from lightning_grow.comparison import shapes_differ
from lightning_grow.convert import GROWN_OUTSIDE, grow_checkpoint
from lightning_grow.errors import CheckpointError, RefusedGrowth
from lightning_grow.files.archive import at_hand, check_file
from lightning_grow.files.checkpoint import explain
from lightning_grow.files.hparams import to_plain
from lightning_grow.files.rebuild import Source
from lightning_grow.files.record import record_architecture, restore_attributes
from lightning_grow.options import GrowthOptions, check_options
from lightning_grow.private import TRAINER


class RebuildOptions(GrowthOptions, total=False):
    """`GrowthOptions`, and how the source is built.

    Args:
        source: A callable ``hparams -> nn.Module``, for modules that ``type(module)(**hparams)`` cannot build again.
    """

    source: Source | None


class GrowableMixin:
    """Make a LightningModule's checkpoints plain, self-describing, and loadable into a bigger one.

    Put it before LightningModule in the bases: ``class Net(GrowableMixin, LightningModule)``. A module may also offer
    `input_names` (a list of str), `example_input_array`, and `describe_inputs`.

    Attributes:
        held_copies: What it holds beside its state dict under the names of its tensors (averages, the states of
            sequences under way): a stage of GrowthSchedule takes it from here, grows it, and sets it.
        transfer_options: The options that `load_from_checkpoint` grows with, as in `RebuildOptions`; a method that
            returns them will do too. ArchTransfer has its own.
    """

    held_copies: Any = ()
    transfer_options: RebuildOptions | Callable[[], RebuildOptions] = {}  # noqa: RUF012

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Lightning's own, behind the checks of the file: whole, with every checksum right; nothing in it runs.

        Args:
            checkpoint_path: A path, an address that fsspec knows, or an open file.
            map_location: See `LightningModule.load_from_checkpoint`.
            hparams_file: Likewise.
            strict: Likewise.
            weights_only: False for a file of your own that needs code to load.
            **kwargs: Hyperparameters in place of the file's; a bigger size grows.

        Raises:
            CheckpointError: The file cannot be read, or its weights are not finite.
            RefusedGrowth: It cannot be grown.
        """
        load: Any = super().load_from_checkpoint  # type: ignore[misc]
        with at_hand(checkpoint_path) as place:
            if isinstance(place, (str, Path)):
                check_file(place)
            try:
                return load(place, map_location, hparams_file, strict, weights_only=weights_only is not False, **kwargs)
            except UnpicklingError as error:
                raise CheckpointError(explain(place, error)) from error

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
        trainer = getattr(self, TRAINER, None)
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
        if GROWN_OUTSIDE in checkpoint or "state_dict" not in checkpoint:
            return
        trainer = getattr(self, TRAINER, None)
        fitting = trainer is not None and trainer.state.fn == "fit"
        refusal = RefusedGrowth(
            f"the checkpoint holds another architecture than this {type(self).__name__}, or its inputs in another "
            "order, and growing inside fit needs the optimizers too. Add lightning_grow.ArchTransfer() to the "
            "Trainer's callbacks."
        )
        if fitting and shapes_differ(checkpoint["state_dict"], self):  # type: ignore[arg-type]
            raise refusal
        own = dict(self.transfer_options() if callable(self.transfer_options) else self.transfer_options)
        source: Any = own.pop("source", None)
        options = check_options(own, f"{type(self).__name__}.transfer_options", "source")
        if grow_checkpoint(checkpoint, self, options, source=source) is not None and fitting:  # type: ignore[arg-type]
            raise refusal
        restore_attributes(self, checkpoint)  # type: ignore[arg-type]
