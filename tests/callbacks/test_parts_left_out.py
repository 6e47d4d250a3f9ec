"""`strict_loading=False`: what a file leaves out by design, or a target has beyond it, is the target's own."""

import pytest
import torch
from stacks import Stack, fit, train_small
from torch import nn

from lightning_grow import ArchTransfer, RefusedGrowth

INPUT = torch.linspace(-1, 1, 20).reshape(5, 4)


class Encoded(Stack):
    """A frozen encoder, the same for everyone, and a network that is trained and saved."""

    def __init__(self, hidden_dims=(8,), state_dim=4):
        super().__init__(hidden_dims, state_dim)
        self.strict_loading = False
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.0)).requires_grad_(False)
        generator = torch.Generator().manual_seed(3)
        for tensor in [*self.encoder.parameters(), self.encoder[1].running_mean]:
            tensor.data = torch.randn(tensor.shape, generator=generator)

    def forward(self, x):
        return self.net(self.encoder(x))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=1e-2)


class ByStateDict(Encoded):
    def state_dict(self, *args, **kwargs):
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if "encoder" not in k}


class ByHook(Encoded):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if "encoder" not in k}


class Headed(Stack):
    """Has a second head, or not yet."""

    def __init__(self, hidden_dims=(8,), state_dim=4, second=False):
        super().__init__(hidden_dims, state_dim)
        self.strict_loading = False
        if second:
            self.head = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + self.head(batch[0]).square().mean() if self.hparams.second else loss


class Start(ArchTransfer):
    """Keeps what the resumed run begins with."""

    def on_train_start(self, trainer, pl_module):
        self.output = pl_module.eval()(INPUT).detach()
        pl_module.train()
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        self.moments = {names[parameter] for parameter in trainer.optimizers[0].state}


def small_of(folder, cls, recorded):
    module, path = train_small(folder, cls, *([ArchTransfer()] if recorded else []))
    return module.eval()(INPUT).detach(), path


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("hidden_dims", [(8,), (12,), (8, 8)])
@pytest.mark.parametrize("cls", [ByStateDict, ByHook])
def test_a_frozen_part_that_is_not_in_the_file_is_the_targets(tmp_path, cls, hidden_dims, recorded):
    expected, path = small_of(tmp_path, cls, recorded)
    assert not any("encoder" in name for name in torch.load(path, weights_only=True)["state_dict"])
    start = Start(optimizer="transfer")
    fit(cls(hidden_dims), tmp_path, start, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(start.output, expected)
    assert len(start.moments) == 4


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("hidden_dims", [(8,), (12,)])
@pytest.mark.parametrize("optimizer", ["reset", "transfer"])
def test_a_part_that_is_new_is_the_targets_and_its_optimizer_knows_it(tmp_path, hidden_dims, optimizer, recorded):
    expected, path = small_of(tmp_path, Headed, recorded)
    start = Start(optimizer=optimizer)
    fit(Headed(hidden_dims, second=True), tmp_path, start, ckpt_path=path, max_epochs=3)
    torch.testing.assert_close(start.output, expected)
    assert len(start.moments) == (4 if optimizer == "transfer" else 0)


def test_a_part_that_is_new_and_seen_is_refused(tmp_path):
    class Seen(Headed):
        def forward(self, x):
            return (self.net(x), self.head(x)) if self.hparams.second else self.net(x)

        def training_step(self, batch, batch_idx):
            return (self.net(batch[0]) - batch[1]).square().mean()

    _, path = train_small(tmp_path, Seen)
    with pytest.raises(RefusedGrowth, match="the source returns 1 tensors, the target 2"):
        fit(Seen(second=True), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)


def test_a_part_of_another_size_that_is_not_in_the_file_is_refused(tmp_path):
    class Wide(ByHook):
        def __init__(self, hidden_dims=(8,), state_dim=4, mixed=4):
            super().__init__(hidden_dims, state_dim)
            self.encoder = nn.Sequential(nn.Linear(4, mixed), nn.Linear(mixed, 4)).requires_grad_(False)

    _, path = train_small(tmp_path, Wide)
    with pytest.raises(RefusedGrowth, match=r"'encoder.0.bias' is absent in the checkpoint"):
        fit(Wide((12,), mixed=6), tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
