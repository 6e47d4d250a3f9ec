"""The place in the list of callbacks does not matter, whatever the others do with the optimizers."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from stacks import equal, make_trainer, outputs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_grow import ArchTransfer


class Backboned(L.LightningModule):
    def __init__(self, hidden=8):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, 2)
        self.example_input_array = torch.linspace(-1, 1, 12).reshape(3, 4)

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam((item for item in self.parameters() if item.requires_grad), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def data():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(*(torch.randn(32, size, generator=generator) for size in (4, 2))), batch_size=8)


def finetuning():
    return BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False)


class Seen(L.Callback):
    def on_train_start(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        self.outputs, self.moments = outputs(pl_module), len(optimizer.state)
        self.step, self.groups = trainer.global_step, len(optimizer.param_groups)
        self.rates = [group["lr"] for group in optimizer.param_groups]


def run(hidden, folder, *callbacks, epochs, ckpt_path=None, module_class=Backboned):
    L.seed_everything(1, verbose=False)
    module = module_class(hidden)
    trainer = make_trainer(folder, *callbacks, max_epochs=epochs, enable_checkpointing=True)
    trainer.fit(module, data(), data(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.filterwarnings("ignore:.*do not require grad:UserWarning", "ignore:The provided params")
@pytest.mark.parametrize("optimizer", ["reset", "transfer", "asymmetric"])
@pytest.mark.parametrize(("epochs", "groups"), [(1, 1), (2, 1), (3, 2)], ids=["frozen", "at the edge", "unfrozen"])
def test_a_backbone_that_is_unfrozen_grows_wherever_the_callback_stands(tmp_path, optimizer, epochs, groups):
    trainer = run(8, tmp_path, finetuning(), ArchTransfer(), epochs=epochs)
    trainer.save_checkpoint(path := tmp_path / "small.ckpt")
    small = trainer.lightning_module
    results = []
    for ours_first in (True, False):
        seen, ours = Seen(), ArchTransfer(optimizer=optimizer, num_warmup_steps=4)
        callbacks = [ours, finetuning(), seen] if ours_first else [finetuning(), ours, seen]
        trainer = run(12, tmp_path, *callbacks, epochs=5, ckpt_path=path)
        torch.testing.assert_close(seen.outputs, outputs(small), rtol=1e-5, atol=1e-6)  # float32: sums of 12 terms
        assert (seen.step, seen.groups) == (4 * epochs, groups)
        assert seen.moments == (0 if optimizer == "reset" else 2 if groups == 1 else 6)
        assert trainer.global_step == 20
        results.append((trainer.lightning_module.state_dict(), trainer.optimizers[0].state_dict()))
    assert equal(*results)
