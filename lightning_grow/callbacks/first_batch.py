"""Example inputs for a module that names none: what its forward takes of the first batch."""

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_grow.errors import RefusedGrowth
from lightning_grow.pair.examples import call_forms, runs_on
from lightning_grow.private import data_source, transfer_batch, tree_map
from lightning_grow.trace.outputs import Forward
from lightning_grow.trace.untouched import untouched_rng

SAMPLES = 8  # of a batch: the check has no use for more


def first_inputs(trainer: Trainer, pl_module: LightningModule, forward: Forward | None) -> Any:
    """The arguments of forward out of the first batch, moved and cast as Lightning does.

    The loader is not iterated: the order of its batches and every random state stay as they are.

    Raises:
        RefusedGrowth: There is no batch, or forward takes nothing of it.
    """
    with untouched_rng():
        batch = _place(trainer, pl_module, _first_batch(trainer, pl_module))
    forms = list(call_forms(batch, pl_module, forward))
    found = next((form for form in forms if runs_on(pl_module, form, forward)), None)
    if found is None:
        raise RefusedGrowth(
            f"no example inputs: {type(pl_module).__name__} has no example_input_array, and its forward does not run "
            f"on the first batch ({_describe(batch)}). {_WAY_OUT}"
        )
    return found


_WAY_OUT = "Pass example_inputs= (the arguments of forward, a tuple, or a dict of keyword arguments)."


def _first_batch(trainer: Trainer, pl_module: LightningModule) -> Any:
    source = data_source(trainer)
    try:
        loaders = source.dataloader() if source.is_defined() else None
        loaders = loaders.iterables if isinstance(loaders, CombinedLoader) else loaders
        return tree_map(_first, loaders)
    except Exception as error:  # any code may run in a dataset
        raise RefusedGrowth(
            f"no example inputs: {type(pl_module).__name__} has no example_input_array, and the first batch cannot be "
            f"taken ({type(error).__name__}: {error}). {_WAY_OUT}"
        ) from error


def _first(loader: Any) -> Any:
    """The first samples of a loader, put together as it does; one that cannot be asked by index is copied first."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return next(iter(copy.deepcopy(loader)))
    return loader.collate_fn(list(islice(_samples(loader.dataset), min(loader.batch_size, SAMPLES))))


def _samples(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, IterableDataset):
        return iter(copy.deepcopy(dataset))
    return (dataset[index] for index in range(len(dataset)))


def _place(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    return transfer_batch(pl_module, trainer.precision_plugin.convert_input(batch))


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dict of {', '.join(map(repr, batch))}"
    return f"{len(batch)} items" if isinstance(batch, (tuple, list)) else f"of the type {type(batch).__name__}"
