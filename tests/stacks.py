"""A small stack of linear layers to train, save and grow."""

import copy
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_grow.callbacks.growable import GrowableMixin

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Stack(L.LightningModule):
    def __init__(self, hidden_dims=(8,), state_dim=4, activation="relu", learning_rate=1e-2, schedule=None):
        super().__init__()
        self.save_hyperparameters()
        self.net = make_net(hidden_dims, state_dim, activation)
        self.example_input_array = torch.linspace(-1, 1, 3 * state_dim).reshape(3, state_dim)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return (self(inputs) - targets).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)
        if self.hparams.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class GrowableStack(GrowableMixin, Stack):
    def describe_inputs(self, hparams):
        return f"state_dim {hparams['state_dim']} is that many numbers."


def make_net(hidden_dims, state_dim, activation="relu"):
    sizes = [state_dim, *hidden_dims]
    layers = [(nn.Linear(*pair), ACTIVATIONS[activation]()) for pair in pairwise(sizes)]
    return nn.Sequential(*(layer for pair in layers for layer in pair), nn.Linear(sizes[-1], 2))


def batches(state_dim=4):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(32, size, generator=generator) for size in (state_dim, 2))
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def make_trainer(folder, *callbacks, **arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {
        "max_epochs": 2,
        "limit_val_batches": 1,
        "accelerator": "cpu",
        "enable_model_summary": False,
        **quiet,
        **arguments,
    }
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings)


def fit(module, folder, *callbacks, ckpt_path=None, **arguments):
    trainer = make_trainer(folder, *callbacks, **arguments)
    state_dim = module.hparams.state_dim
    trainer.fit(module, batches(state_dim), batches(state_dim), ckpt_path=ckpt_path)
    return trainer


def train_small(folder, cls=Stack, *callbacks, name="small.ckpt", max_epochs=2, **hparams) -> tuple[Stack, Path]:
    """A trained stack and its checkpoint: 8 steps an epoch."""
    L.seed_everything(0, verbose=False)
    module = cls(**hparams)
    path = Path(folder) / name
    fit(module, folder, *callbacks, max_epochs=max_epochs).save_checkpoint(path)
    return module, path


def weights(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def outputs(module):
    with torch.no_grad():
        return module(module.example_input_array)


class AtStart(L.Callback):
    """Looks at the module and optimizer once everything is restored, before the first step."""

    def on_train_start(self, trainer, pl_module):
        self.outputs, self.weights = outputs(pl_module), weights(pl_module)
        self.step, self.epoch = trainer.global_step, trainer.current_epoch
        self.rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.state = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])


def equal(left, right):
    """Whether two nested states are the same, bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right
