"""What only the loss reads is a setting: each module has its own, unless training has changed it."""

import lightning as L
import pytest
import torch
from stacks import make_trainer, outputs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_grow import ArchTransfer, RefusedGrowth, convert_checkpoint
from lightning_grow.files.rebuild import rebuild_source


class Classifier(L.LightningModule):
    def __init__(self, classes=3, width=8, weighted=True, counting=False, prior=False):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, classes))
        self.criterion = nn.CrossEntropyLoss(weight=torch.arange(1.0, classes + 1) if weighted else None)
        self.example_input_array = torch.linspace(-1, 1, 24).reshape(4, 6)

    def forward(self, x):
        logits = self.net(x)
        return logits + self.criterion.weight.log() if self.hparams.prior else logits

    def training_step(self, batch, batch_idx):
        if self.hparams.counting:
            self.criterion.weight += torch.bincount(batch[1], minlength=self.hparams.classes)
        return self.criterion(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def data():
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)
    return DataLoader(TensorDataset(*samples), batch_size=8)


def train(folder, module, *callbacks, ckpt_path=None, epochs=2):
    trainer = make_trainer(folder, *callbacks, max_epochs=epochs)
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(path := folder / f"{epochs}.ckpt")
    return path


class Start(ArchTransfer):
    def on_train_start(self, trainer, pl_module):
        self.outputs = outputs(pl_module)
        self.weight = None if pl_module.criterion.weight is None else pl_module.criterion.weight.tolist()


GROWTHS = {
    "more classes": (Classifier(), Classifier(5, 12), [1, 2, 3, 4, 5]),
    "weights are new": (Classifier(weighted=False), Classifier(width=12), [1, 2, 3]),
    "weights are gone": (Classifier(), Classifier(width=12, weighted=False), None),
    "as many classes": (Classifier(), Classifier(width=12), [1, 2, 3]),
}


@pytest.mark.parametrize("growth", GROWTHS)
def test_class_weights_are_the_targets_own(tmp_path, growth):
    small, big, weight = GROWTHS[growth]
    path, start = train(tmp_path, small), Start(allow_output_growth=True, optimizer="transfer")
    train(tmp_path, big, start, ckpt_path=path, epochs=3)
    torch.testing.assert_close(start.outputs[:, :3], outputs(small))
    assert start.weight == weight


def test_what_became_of_them_is_in_the_report(tmp_path):
    path = train(tmp_path, Classifier())
    report = convert_checkpoint(path, Classifier(5, 12), tmp_path / "out.ckpt", allow_output_growth=True)
    assert "No forward reads 'criterion.weight', as the source was built with: the target has its own." in report.notes


@pytest.mark.parametrize(
    ("small", "big", "reason"),
    [
        (Classifier(counting=True), Classifier(5, 12, counting=True), r"'criterion\.weight' grows but no traced"),
        (Classifier(counting=True), Classifier(3, 12, weighted=False), r"no place for the source's 'criterion'"),
        (Classifier(prior=True), Classifier(3, 12, weighted=False), r"no place for the source's 'criterion'"),
    ],
    ids=["changed by training", "changed and gone", "read by forward and gone"],
)
def test_what_training_has_changed_or_forward_reads_is_no_setting(tmp_path, small, big, reason):
    path = train(tmp_path, small)
    with pytest.raises(RefusedGrowth, match=reason):
        train(tmp_path, big, ArchTransfer(allow_output_growth=True), ckpt_path=path, epochs=3)


def test_what_forward_reads_grows_by_the_plan(tmp_path):
    small = Classifier(prior=True)
    path, start = train(tmp_path, small), Start()
    train(tmp_path, Classifier(3, 12, prior=True), start, ckpt_path=path, epochs=3)
    torch.testing.assert_close(start.outputs, outputs(small))
    assert start.weight == [1, 2, 3]


class Normed(nn.Module):
    built = 0

    def __init__(self, width=4):
        super().__init__()
        type(self).built += 1
        self.net = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def test_statistics_of_a_normaliser_need_no_second_build(tmp_path):
    small, big = Normed(), Normed(6)
    checkpoint = {"state_dict": small.state_dict(), "hyper_parameters": {"width": 4}}
    Normed.built = 0
    rebuild_source(big, checkpoint, checkpoint["state_dict"])
    assert Normed.built == 1
