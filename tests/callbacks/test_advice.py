"""Every way out that a message of the resume names is gone, on the very case that printed it."""

import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from stacks import Stack, batches, make_trainer
from torch import nn

from lightning_grow import ArchTransfer, CheckpointError, GrowableMixin, GrowError, GrowthSchedule, convert_checkpoint


class Scheduled(Stack):
    """Its cosine's length is a setting."""

    def __init__(self, hidden_dims=(8,), length=40):
        super().__init__(hidden_dims, schedule="cosine")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams.length)]


class Unsaved(Stack):
    """Keeps no hyperparameters, and finds its size in a module of its own."""

    def __init__(self, hidden_dims=(8,)):
        super(Stack, self).__init__()
        self.net = nn.Sequential(nn.Linear(4, hidden_dims[0]), nn.ReLU(), nn.Linear(hidden_dims[0], 2))
        self.example_input_array = torch.linspace(-1, 1, 12).reshape(3, 4)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Saved(GrowableMixin, Unsaved):
    def __init__(self, hidden_dims=(8,)):
        super().__init__(hidden_dims)
        self.save_hyperparameters()


class Headless(Stack):
    """Its forward takes something else than the first of a batch, and it says of no example."""

    def __init__(self, hidden_dims=(8,)):
        super().__init__(hidden_dims)
        self.example_input_array = None

    def forward(self, x, scale):
        return self.net(x) * scale.reshape(1).tanh()

    def training_step(self, batch, batch_idx):
        return (self(batch[0], torch.ones(1)) - batch[1]).square().mean()


class TwoHeaded(Stack):
    """A second head that forward does not return yet, or does."""

    def __init__(self, hidden_dims=(8,), heads=1):
        super().__init__(hidden_dims)
        self.other = nn.Linear(4, 2)

    def forward(self, x):
        return (self.net(x), self.other(x))[: self.hparams.heads]

    def training_step(self, batch, batch_idx):
        return sum((item - batch[1]).square().mean() for item in self(batch[0]))


class Choosing(Stack):
    """Goes by the content of a weight."""

    def forward(self, x):
        return self.net(x) if self.net[0].weight.sum().item() < 1e9 else -self.net(x)


class Queued(Stack):
    """Holds a buffer of its width that no forward reads and training fills."""

    def __init__(self, hidden_dims=(8,)):
        super().__init__(hidden_dims)
        self.register_buffer("queue", torch.zeros(hidden_dims[0]))

    def training_step(self, batch, batch_idx):
        self.queue += self.net[0](batch[0]).detach().mean(0)
        return super().training_step(batch, batch_idx)


class NeedsTrainer(Stack):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2 / self.trainer.max_epochs)


def small(cls, folder):
    trainer = make_trainer(folder, max_epochs=2)
    trainer.fit(cls(), batches(), batches())
    trainer.save_checkpoint(path := folder / "small.ckpt")
    return path


def fit(path, module, *, epochs=3, weights_only=None, **options):
    trainer = make_trainer(path.parent, ArchTransfer(**options), max_epochs=epochs)
    trainer.fit(module, batches(), batches(), ckpt_path=path, weights_only=weights_only)
    assert trainer.global_step == 8 * epochs
    return module


def convert(path, module, **options):
    convert_checkpoint(path, module, out := path.with_name("out.ckpt"), **options)
    return out


def without(*keys):
    return lambda content: [content.pop(key) for key in keys]


def as_it_is(content):
    pass


def in_part(content):
    weights = dict(content["state_dict"])
    content["ema"] = {"other.0.weight": weights.pop("net.0.weight"), **weights}


def of_another(content):
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3, 4)


WIDE = {"hidden_dims": (12,)}
TRANSFER, RESET = {"optimizer": "transfer"}, {"optimizer": "reset", "scheduler": "reset"}

# what is advised -> (the class, what became of the file, what is refused, what is advised and works)
ADVICE = {
    "start fresh: optimizer='reset', scheduler='reset'": (
        Stack,
        without("optimizer_states", "lr_schedulers"),
        lambda path: fit(path, Stack(**WIDE), **TRANSFER),
        [lambda path: fit(path, Stack(**WIDE), **RESET)],
    ),
    "or start fresh: optimizer='reset', scheduler='reset'": (
        Stack,
        lambda content: content.update(optimizer_states=[]),
        lambda path: fit(path, Stack(**WIDE), **TRANSFER),
        [lambda path: fit(path, Stack(**WIDE), **RESET)],
    ),
    "Pass scheduler='reset' (and optimizer='reset') to start the config's schedule": (
        Scheduled,
        as_it_is,
        lambda path: fit(path, Scheduled((12,), 50), **TRANSFER),
        [
            lambda path: fit(path, Scheduled((12,), 50), scheduler="reset", **TRANSFER),
            lambda path: fit(path, Scheduled((12,), 50), **RESET),
        ],
    ),
    "Give the config the checkpoint's": (
        Scheduled,
        as_it_is,
        lambda path: fit(path, Scheduled((12,), 50), **TRANSFER),
        [lambda path: fit(path, Scheduled((12,), 40), **TRANSFER)],
    ),
    "Ask for more: trainer.max_epochs=4, say": (
        Stack,
        as_it_is,
        lambda path: fit(path, Stack(**WIDE), epochs=2),
        [lambda path: fit(path, Stack(**WIDE), epochs=4)],
    ),
    "Make a file of it that can be resumed: lightning_grow.convert_checkpoint": (
        Stack,
        without("pytorch-lightning_version"),
        lambda path: fit(path, Stack(**WIDE)),
        [lambda path: fit(convert(path, Stack(**WIDE), **TRANSFER), Stack(**WIDE))],
    ),
    "pass weights_only=False to the Trainer's method": (
        Stack,
        lambda content: content.update(extra=SimpleNamespace(a=1)),
        lambda path: fit(path, Stack(**WIDE)),
        [
            lambda path: fit(path, Stack(**WIDE), weights_only=False),
            lambda path: allowing(lambda: fit(path, Stack(**WIDE))),
        ],
    ),
    "pass source= (a callable hparams -> nn.Module that builds the source) to ArchTransfer": (
        Unsaved,
        as_it_is,
        lambda path: fit(path, Unsaved((12,))),
        [
            lambda path: fit(path, Unsaved((12,)), source=lambda hparams: Unsaved()),
            lambda path: fit(
                convert(path, Unsaved((12,)), source=lambda hparams: Unsaved(), **TRANSFER), Unsaved((12,))
            ),
            lambda path: fit(small(Saved, path.parent), Saved((12,))),
        ],
    ),
    "remove 'optimizer_states' from it": (
        Stack,
        of_another,
        lambda path: fit(path, Stack()),
        [lambda path: fit(rewrite(path, without("optimizer_states", "lr_schedulers")), Stack(**WIDE))],
    ),
    "or take it out of the checkpoint": (
        Stack,
        in_part,
        lambda path: fit(path, Stack(**WIDE)),
        [
            lambda path: fit(rewrite(path, without("ema")), Stack(**WIDE)),
            lambda path: fit(rewrite(path, lambda c: c.update(ema=c["state_dict"])), Stack(**WIDE)),
        ],
    ),
    "Pass example_inputs= (the arguments of forward, a tuple": (
        Headless,
        as_it_is,
        lambda path: fit(path, Headless(**WIDE)),
        [
            lambda path: fit(path, Headless(**WIDE), example_inputs=(torch.ones(3, 4), torch.ones(1))),
            lambda path: fit(path, Headless(**WIDE), example_inputs={"x": torch.ones(3, 4), "scale": torch.ones(1)}),
        ],
    ),
    "pass forward= a callable that returns the same from both": (
        TwoHeaded,
        as_it_is,
        lambda path: fit(path, TwoHeaded((12,), heads=2)),
        [lambda path: fit(path, TwoHeaded((12,), heads=2), forward=lambda module, x: module.net(x))],
    ),
    "pass forward= a callable (module, *inputs) without that choice": (
        Choosing,
        as_it_is,
        lambda path: fit(path, Choosing(**WIDE)),
        [lambda path: fit(path, Choosing(**WIDE), forward=lambda module, x: module.net(x))],
    ),
    "Pass forward= a callable that uses it": (
        Queued,
        as_it_is,
        lambda path: fit(path, Queued(**WIDE)),
        [lambda path: fit(path, Queued(**WIDE), forward=lambda m, x: (m.net(x), m.net[0](x) @ m.queue))],
    ),
    "use ArchTransfer(optimizer='asymmetric') in trainer.fit": (
        Stack,
        as_it_is,
        lambda path: convert(path, Stack(**WIDE), optimizer="asymmetric"),
        [lambda path: fit(path, Stack(**WIDE), optimizer="asymmetric")],
    ),
    "Use ArchTransfer(optimizer='transfer') in trainer.fit, or optimizer='reset' here": (
        NeedsTrainer,
        as_it_is,
        lambda path: convert(path, NeedsTrainer(**WIDE), **TRANSFER),
        [
            lambda path: fit(path, NeedsTrainer(**WIDE), **TRANSFER),
            lambda path: fit(convert(path, NeedsTrainer(**WIDE), optimizer="reset"), NeedsTrainer(**WIDE)),
        ],
    ),
    "Pass another file name": (
        Stack,
        as_it_is,
        lambda path: convert_checkpoint(path, Stack(**WIDE), path),
        [lambda path: fit(convert(path, Stack(**WIDE)), Stack(**WIDE))],
    ),
    "Call self.save_hyperparameters() in its __init__": (
        Stack,
        as_it_is,
        lambda path: stages(path, Unsaved()),
        [lambda path: stages(path, Saved())],
    ),
}


def allowing(call):
    with torch.serialization.safe_globals([SimpleNamespace]):
        return call()


def rewrite(path, change):
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)
    return path


def stages(path, module):
    trainer = make_trainer(path.parent, GrowthSchedule([WIDE], at=[4]), max_epochs=1)
    trainer.fit(module, batches(), batches())
    assert module.net[0].out_features == 12


FOLLOWED = [(words, number) for words, case in ADVICE.items() for number in range(len(case[3]))]


@pytest.mark.parametrize(("words", "number"), FOLLOWED)
def test_who_follows_the_advice_gets_on(tmp_path, words, number):
    cls, change, refused, ways = ADVICE[words]
    L.seed_everything(0, verbose=False)
    path = small(cls, tmp_path)
    rewrite(path, change)
    with pytest.raises((GrowError, CheckpointError, ValueError), match=re.escape(words)):
        refused(path)
    ways[number](path)
