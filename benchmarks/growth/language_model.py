"""Does growing a language model pay? A byte-level GPT on the Python standard library's sources, at equal FLOPs.

Run `python benchmarks/growth/language_model.py --seeds 5` (about 32 minutes of one core a seed; `--workers 2` for two).
It writes results/language_model.json after each run, so that a second call goes on where the first ended, and at the
end language_model.md and .png.
"""

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from paired import Budgeted, Run, Task, main
from torch import Tensor, nn

from lightning_grow import Block as NewEntries
from lightning_grow import Strategy

LENGTH, BATCH, HEAD = 128, 8, 32
NARROW, SHALLOW = ("width", 32), ("depth", 2)
RUNS = {
    "large from scratch": Run(),
    "shallow alone": Run((SHALLOW,)),
    "depth x2": Run((SHALLOW,), 0.2),
    "depth x2, 0.7 of the budget": Run((SHALLOW,), 0.2, budget=0.7),
    "depth x2, 0.5 of the budget": Run((SHALLOW,), 0.2, budget=0.5),
    "depth x2 after 0.1": Run((SHALLOW,), 0.1),
    "depth x2 after 0.4": Run((SHALLOW,), 0.4),
    "depth x2, moments moved": Run((SHALLOW,), 0.2, optimizer="transfer"),
    "depth x2, asymmetric": Run((SHALLOW,), 0.2, optimizer="asymmetric"),
    "depth x2, blocks stacked": Run((SHALLOW,), 0.2, strategy=lambda model: Stack(model, model.hparams.depth)),
    "narrow alone": Run((NARROW,)),
    "width x2": Run((NARROW,), 0.2),
    "width x2, net2wider": Run((NARROW,), 0.2, strategy="net2wider"),
    "width x2, copy_and_extend": Run((NARROW,), 0.2, strategy="copy_and_extend"),
    "width x2, asymmetric": Run((NARROW,), 0.2, optimizer="asymmetric"),
    "width and depth x2": Run((NARROW, SHALLOW), 0.2),
}


class Stack(Strategy):
    """New blocks are copies of the old ones, in their order: the literature's baseline, which loses the function.

    References: Du et al., "Stacking your Transformers" (2024), G_stack.
    """

    name = "stack"

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.model, self.depth = model, depth

    def new_layer(self, block: NewEntries) -> Tensor:
        """The tensor of the block `depth` before."""
        parts = block.name.split(".")
        return self.model.get_parameter(".".join([parts[0], str(int(parts[1]) % self.depth), *parts[2:]])).detach()


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, length, width)` to the same."""
        seen, layers = self.norm1(x), (self.queries, self.keys, self.values)
        heads = (layer(seen).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in layers)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(Budgeted):
    """Predicts the next byte.

    Args:
        width: Of the stream.
        depth: Blocks.
        **budget: See `Budgeted`.
    """

    def __init__(self, width: int, depth: int, **budget: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        nn.init.normal_(self.tokens.weight, std=0.02)  # as GPT-2
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        self.example_input_array = torch.arange(2 * LENGTH, device="cpu").view(2, LENGTH) % 256

    def forward(self, tokens: Tensor) -> Tensor:
        """`(batch, length)` to logits `(batch, length, 256)`."""
        x = self.tokens(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The mean cross-entropy in nats."""
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


class Windows:
    """Batches of bytes from random places, the same for every run of a seed."""

    def __init__(self, data: np.ndarray, seed: int, steps: int) -> None:
        self.data, self.seed, self.steps = data, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        generator = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            starts = generator.integers(len(self.data) - LENGTH - 1, size=BATCH)
            yield torch.from_numpy(self.data[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int64))


@cache
def read_bytes() -> tuple[np.ndarray, np.ndarray]:
    """The standard library's sources: training bytes, and those of every twentieth file."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) + sorted(
        path for path in Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py") if "site-packages" not in path.parts
    )
    parts = [path.read_bytes() for path in files]
    train, held_out = (
        b"".join(part for index, part in enumerate(parts) if (index % 20 == 0) == held) for held in (0, 1)
    )
    return np.frombuffer(train, np.uint8), np.frombuffer(held_out, np.uint8)


def validate(module: GPT) -> list[float]:
    """The mean loss on 256 fixed windows of held-out files."""
    held_out = read_bytes()[1]
    starts = np.random.default_rng(0).integers(len(held_out) - LENGTH - 1, size=256)
    windows = torch.from_numpy(held_out[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int64))
    return [float(np.mean([module.training_step(part, 0).item() for part in windows.split(32)]))]


TASK = Task(
    name="language_model",
    model=GPT,
    large={"width": 64, "depth": 4},
    batches=lambda seed, steps: Windows(read_bytes()[0], seed, steps),
    validate=validate,
    example=torch.zeros(BATCH, LENGTH + 1, dtype=torch.int64),
    budget=4000,
    every=200,
)


GROWTHS = ("depth x2, 0.5 of the budget", "depth x2, 0.7 of the budget", "depth x2")

if __name__ == "__main__":
    main(
        TASK,
        RUNS,
        ("large from scratch", "shallow alone", "depth x2"),
        "validation loss (nats a byte)",
        GROWTHS,
        __doc__,
    )
