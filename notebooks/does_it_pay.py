# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does it pay?
#
# Three runs at equal FLOPs: a deep network from scratch, a shallow one, and one that begins shallow and grows in the
# middle of its training. This is a small picture of it in half a minute; the measured answer, with five seeds and a
# language model, is in the documentation.

# %%
# %matplotlib inline
import logging
import os
import tempfile
import warnings

warnings.filterwarnings("ignore")
for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.ERROR)
import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from lightning_grow import GrowthSchedule
from lightning_grow.pictures import plot_curves

torch.set_num_threads(1)
os.chdir(tempfile.mkdtemp())  # files land in a scratch folder

# %% [markdown]
# The task: the parity-like sum of waves in eight dimensions. Blocks are residual, so that a new one adds 0 at first.


# %%
def examples(seed, count):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 8, generator=generator) * 2 - 1
    return x, torch.sin(3 * x).prod(1, keepdim=True) + torch.sin(2 * x.sum(1, keepdim=True))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(L.LightningModule):
    def __init__(self, depth, steps):
        super().__init__()
        self.save_hyperparameters()
        self.into, self.out = nn.Linear(8, 32), nn.Linear(32, 1)
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.example_input_array = torch.zeros(2, 8)
        self.curve, self.spent, self.held_out = [], 0, examples(1, 2000)

    def forward(self, x):
        return self.out(self.blocks(self.into(x)))

    def training_step(self, batch, batch_idx):
        self.spent += len(self.blocks)  # blocks are what costs
        if self.global_step % 25 == 0:
            with torch.no_grad():
                self.curve.append((self.spent, F.mse_loss(self(self.held_out[0]), self.held_out[1]).item()))
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.hparams.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(depth, steps, callbacks=()):
    L.seed_everything(1, verbose=False)
    net = Net(depth, steps)
    data = torch.utils.data.TensorDataset(*examples(2, 64 * steps))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=list(callbacks), enable_model_summary=False, **options
    )
    trainer.fit(net, torch.utils.data.DataLoader(data, 64))
    return net


# %% [markdown]
# The budget is 800 steps of the network with four blocks: 3,200 of one block.

# %%
scratch, shallow = train(4, 800), train(1, 3200)
grown = train(1, 640 + 640, [GrowthSchedule([{"depth": 4, "steps": 1280}], at=[640], scheduler="keep")])

# %%
curves = {
    name: tuple(zip(*net.curve, strict=True))
    for name, net in (("deep from scratch", scratch), ("shallow alone", shallow), ("grown", grown))
}
print({name: (steps[-1], round(losses[-1], 4)) for name, (steps, losses) in curves.items()})
plot_curves(curves, grown_at=[640], xlabel="compute (steps of one block)", ylabel="loss on held-out data")

# %% [markdown]
# At the growth nothing jumps: new blocks add 0. What comes after depends on the task and the budget. Rules of thumb
# that were measured: depth pays sooner than width; with little compute for the large network the small one alone is
# as good; a fresh optimizer with a short warm-up is a good default.
