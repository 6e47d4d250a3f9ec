"""Train straight == train, save, be killed, resume: without a growth, and in the middle of the warm-up after one."""

import signal
import subprocess
import sys
import textwrap

import lightning as L
import pytest
import torch
from stacks import Stack, batches, fit, make_trainer, train_small, weights

from lightning_grow import ArchTransfer, convert_checkpoint

OPTIMIZERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "Adamax": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "Adagrad": {"lr": 0.05},
    "Adadelta": {"lr": 1.0},
    "Adafactor": {"lr": 0.05},
    "Rprop": {"lr": 0.01},
    "ASGD": {"lr": 0.05, "t0": 3},
}


class Optimized(Stack):
    """A stack under any of torch's optimizers."""

    def __init__(self, hidden_dims=(8,), optimizer="Adam"):
        super().__init__(hidden_dims)
        self.save_hyperparameters()

    def configure_optimizers(self):
        return getattr(torch.optim, self.hparams.optimizer)(self.parameters(), **OPTIMIZERS[self.hparams.optimizer])


def same(left, right):
    left, right = weights(left.lightning_module), weights(right.lightning_module)
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_growth_every_optimizer_goes_on_bit_for_bit(tmp_path, name):
    def train(max_epochs, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        return fit(Optimized(optimizer=name), tmp_path, ArchTransfer(), ckpt_path=ckpt_path, max_epochs=max_epochs)

    straight = train(4)
    train(2).save_checkpoint(tmp_path / "middle.ckpt")
    assert same(train(4, tmp_path / "middle.ckpt"), straight)


@pytest.mark.parametrize("choice", ["reset", "transfer", "asymmetric"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_the_middle_of_the_warmup_every_optimizer_goes_on_bit_for_bit(tmp_path, name, choice):
    _, small = train_small(tmp_path, Optimized, optimizer=name)

    def train(max_epochs, ckpt_path):
        L.seed_everything(0, verbose=False)
        callback = ArchTransfer(optimizer=choice, num_warmup_steps=12)
        return fit(Optimized([12], name), tmp_path, callback, ckpt_path=ckpt_path, max_epochs=max_epochs)

    straight = train(5, small)
    train(3, small).save_checkpoint(tmp_path / "middle.ckpt")
    assert torch.load(tmp_path / "middle.ckpt")["callbacks"]["ArchTransfer"]["steps"] == [8]
    assert same(train(5, tmp_path / "middle.ckpt"), straight)


KILLED = """
    import os
    import signal
    import sys

    import lightning as L

    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/callbacks"]
    from stacks import batches, make_trainer
    from test_resume_law import Optimized

    from lightning_grow import ArchTransfer

    class Kill(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(sys.argv[3])

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 27:  # three steps into the next epoch
                os.kill(os.getpid(), signal.SIGKILL)

    L.seed_everything(0, verbose=False)
    trainer = make_trainer(sys.argv[4], ArchTransfer(num_warmup_steps=12), Kill(), max_epochs=5)
    trainer.fit(Optimized([12]), batches(), batches(), ckpt_path=sys.argv[2])
"""


def test_a_run_that_was_killed_goes_on_from_its_last_file(tmp_path, request):
    _, small = train_small(tmp_path, Optimized)
    script, middle = tmp_path / "killed.py", tmp_path / "middle.ckpt"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(script), str(request.path.parents[1]), str(small), str(middle), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=240, check=False).returncode == -signal.SIGKILL

    def train(ckpt_path):
        L.seed_everything(0, verbose=False)
        trainer = make_trainer(tmp_path, ArchTransfer(num_warmup_steps=12), max_epochs=5)
        trainer.fit(Optimized([12]), batches(), batches(), ckpt_path=ckpt_path)
        return trainer

    assert same(train(middle), train(small))


class Pair(Stack):
    """Two layers of the same shapes, which stand in one order or in the other."""

    order = ("query", "key")

    def __init__(self, hidden_dims=(8,), state_dim=4):
        super().__init__(hidden_dims, state_dim)
        for name in self.order:
            setattr(self, name, torch.nn.Linear(2, 2))

    def forward(self, x):
        hidden = self.net(x).tanh()
        return self.query(hidden).tanh() * self.key(hidden)


class Swapped(Pair):
    order = ("key", "query")


@pytest.mark.parametrize("door", ["fit", "convert"])
def test_moments_follow_their_layers_where_a_file_of_lightnings_own_has_them_in_another_order(tmp_path, door):
    _, path = train_small(tmp_path, Pair)
    content = torch.load(path, weights_only=True)
    names = [name for name, _ in Pair().named_parameters()]
    old = {name: content["optimizer_states"][0]["state"][number]["exp_avg"] for number, name in enumerate(names)}
    big, seen = Swapped((12,)), {}
    if door == "convert":
        convert_checkpoint(path, big, tmp_path / "big.ckpt", optimizer="transfer")
        states = torch.load(tmp_path / "big.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        seen = {name: states[number]["exp_avg"] for number, (name, _) in enumerate(big.named_parameters())}
    else:

        class Look(ArchTransfer):
            def on_train_start(self, trainer, pl_module):
                state = trainer.optimizers[0].state
                seen.update({name: state[item]["exp_avg"].clone() for name, item in pl_module.named_parameters()})

        fit(big, tmp_path, Look(optimizer="transfer"), ckpt_path=path, max_epochs=3)
    assert seen.keys() == old.keys()
    for name, moment in old.items():
        assert torch.equal(seen[name][tuple(slice(size) for size in moment.shape)], moment), name
