"""A Hugging Face language model: train a small GPT-2 on a text, then go on with a wider and deeper one.

    python examples/language_model.py README.md --steps 30
    python examples/language_model.py README.md --n_embd 64 --n_head 4 --n_layer 3 --steps 60 \
        --ckpt_path language_model/last.ckpt

In place of the new GPT-2, `GPT2LMHeadModel.from_pretrained(...)` with its config begins from trained weights.
"""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_grow import ArchTransfer

LENGTH = 64


class LanguageModel(lightning.LightningModule):
    def __init__(self, n_embd: int, n_head: int, n_layer: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.gpt = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=256, n_positions=LENGTH, n_embd=n_embd, n_head=n_head, n_layer=n_layer, use_cache=False
            )
        )
        self.example_input_array = torch.zeros(2, LENGTH, dtype=torch.int64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gpt(tokens).logits

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.gpt(batch, labels=batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def windows(file: str) -> DataLoader:
    """The bytes of a file, in pieces."""
    data = torch.frombuffer(bytearray(Path(file).read_bytes()), dtype=torch.uint8).long()
    return DataLoader(data[: len(data) // LENGTH * LENGTH].view(-1, LENGTH), 16, shuffle=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--n_embd", type=int, default=32)
    parser.add_argument("--n_head", type=int, default=2)
    parser.add_argument("--n_layer", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="in all, those before a resume among them")
    parser.add_argument("--ckpt_path")
    given = parser.parse_args()
    lightning.seed_everything(1, verbose=False)
    saving = ModelCheckpoint("language_model", save_last=True, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_steps=given.steps, accelerator="cpu", logger=False, log_every_n_steps=1, enable_model_summary=False,
        callbacks=[ArchTransfer(), saving],
    )  # fmt: skip
    model = LanguageModel(given.n_embd, given.n_head, given.n_layer)
    trainer.fit(model, windows(given.file), ckpt_path=given.ckpt_path)
    print(f"step {trainer.global_step}, loss {trainer.callback_metrics['loss']:.3f}")


if __name__ == "__main__":
    main()
