"""An image classifier with a DataModule: train a small one, then go on with twice the channels and one more block.

python examples/image_classifier.py --width 8 --depth 1 --epochs 3
python examples/image_classifier.py --width 16 --depth 2 --epochs 6 --ckpt_path image_classifier/last.ckpt
"""

import argparse

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.functional import accuracy

from lightning_grow import ArchTransfer, GrowthMonitor


class Digits(lightning.LightningDataModule):
    """scikit-learn's 8 x 8 digits."""

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels))
        self.train, self.held_out = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, 64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, 360)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(self.norm(x))))


class Classifier(lightning.LightningModule):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.save_hyperparameters()  # so that the small network can be built from its checkpoint
        self.into = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.out = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(F.relu(self.blocks(self.into(images))).mean((2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        right = accuracy(logits, batch[1], task="multiclass", num_classes=10)
        self.log_dict({"val_loss": F.cross_entropy(logits, batch[1]), "accuracy": right}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3, help="in all, those before a resume among them")
    parser.add_argument("--ckpt_path")
    given = parser.parse_args()
    lightning.seed_everything(1, verbose=False)
    saving = ModelCheckpoint("image_classifier", save_last=True, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_epochs=given.epochs, accelerator="cpu", logger=False, log_every_n_steps=1, enable_model_summary=False,
        callbacks=[ArchTransfer(), GrowthMonitor("val_loss"), saving],
    )  # fmt: skip
    trainer.fit(Classifier(given.width, given.depth), Digits(), ckpt_path=given.ckpt_path)
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
