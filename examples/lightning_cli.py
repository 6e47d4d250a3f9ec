"""A LightningCLI project: the callback stands in lightning_cli.yaml, and a bigger network is one flag.

    python examples/lightning_cli.py --config examples/lightning_cli.yaml
    python examples/lightning_cli.py --config examples/lightning_cli.yaml --model.hidden_dims=[64,64] \
        --trainer.max_epochs=4 --ckpt_path=lightning_cli/last.ckpt

LightningCLI's own `fit --ckpt_path` would put the checkpoint's hidden_dims in place of those asked for, so that nothing
grows. With `run=False` it builds what is asked for.
"""

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Regression(lightning.LightningModule):
    """Learns a wave.

    Args:
        hidden_dims: Sizes of the hidden layers.
        learning_rate: Of AdamW.
    """

    def __init__(self, hidden_dims: list[int], learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        for before, after in zip([1, *hidden_dims], hidden_dims, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden_dims[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def train_dataloader(self) -> DataLoader:
        x = torch.linspace(-3, 3, 512)[:, None]
        return DataLoader(TensorDataset(x, torch.sin(3 * x)), 64, shuffle=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.hparams.learning_rate)


class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str, help="to go on from; a smaller network in it grows")


if __name__ == "__main__":
    cli = CLI(Regression, run=False, save_config_callback=None)
    cli.trainer.fit(cli.model, ckpt_path=cli.config.ckpt_path)
