import random

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from stacks import GrowableStack, Stack, batches, fit, make_net, make_trainer, outputs, train_small, weights
from torch import nn
from torch.utils.data import DataLoader

from lightning_grow.callbacks import ArchTransfer
from lightning_grow.callbacks.growable import GrowableMixin
from lightning_grow.errors import RefusedGrowth

CLOSE = {"rtol": 0, "atol": 1e-6}  # float32 outputs of about 1


def read(path):
    return torch.load(path, weights_only=True)


def test_load_from_checkpoint_grows(tmp_path):
    small, path = train_small(tmp_path, GrowableStack)
    big = GrowableStack.load_from_checkpoint(path, hidden_dims=[16])
    assert big.net[0].weight.shape == (16, 4)
    torch.testing.assert_close(outputs(big), outputs(small), **CLOSE)


def test_load_from_checkpoint_at_the_same_size_is_lightnings_own(tmp_path):
    small, path = train_small(tmp_path, GrowableStack)
    random_state = torch.random.get_rng_state()
    torch.random.set_rng_state(random_state)
    Stack.load_from_checkpoint(path)
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(random_state)
    same = GrowableStack.load_from_checkpoint(path)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert all(torch.equal(tensor, weights(small)[name]) for name, tensor in weights(same).items())


def test_the_architecture_is_recorded_as_plain_types(tmp_path):
    _, path = train_small(tmp_path, GrowableStack)
    record = read(path)["lightning_grow"]["architecture"]
    assert record["class"].endswith("stacks.GrowableStack")
    assert record["hparams"]["hidden_dims"] == (8,)
    assert record["shapes"]["net.0.weight"] == [8, 4]
    assert record["optimizers"] == [[["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]]]


def test_a_file_from_before_the_mixin_is_refused_when_hparams_are_overwritten(tmp_path):
    _, path = train_small(tmp_path, Stack)
    with pytest.raises(RefusedGrowth, match="convert_checkpoint"):
        GrowableStack.load_from_checkpoint(path, hidden_dims=[16])


def test_another_activation_is_refused(tmp_path):
    _, path = train_small(tmp_path, GrowableStack)
    with pytest.raises(RefusedGrowth):
        GrowableStack.load_from_checkpoint(path, activation="tanh")


def test_growing_in_fit_without_the_callback_is_an_error(tmp_path):
    _, path = train_small(tmp_path, GrowableStack)
    with pytest.raises(RefusedGrowth, match=r"Add lightning_grow\.ArchTransfer\(\)"):
        fit(GrowableStack([16]), tmp_path, ckpt_path=path, max_epochs=3)


def test_evaluation_without_the_callback_grows(tmp_path):
    small, path = train_small(tmp_path, GrowableStack)
    big = GrowableStack([16])
    make_trainer(tmp_path).validate(big, batches(), ckpt_path=path, verbose=False)
    torch.testing.assert_close(outputs(big), outputs(small), **CLOSE)


@pytest.mark.parametrize("as_method", [False, True])
def test_transfer_options_say_how_to_grow(tmp_path, as_method):
    options = {"strategy": "preserve", "seed": 7}

    class Seeded(GrowableStack):
        transfer_options = (lambda self: options) if as_method else options

    _, path = train_small(tmp_path, GrowableStack)
    seeded, plain = (cls.load_from_checkpoint(path, hidden_dims=[16]) for cls in (Seeded, GrowableStack))
    assert not torch.equal(seeded.net[0].weight[8:], plain.net[0].weight[8:])


class Configured(GrowableMixin, L.LightningModule):
    """Takes its hyperparameters as one OmegaConf object, as Hydra users do."""

    def __init__(self, cfg):
        super().__init__()
        self.save_hyperparameters(cfg if isinstance(cfg, DictConfig) else OmegaConf.create(cfg))
        self.net = make_net(self.hparams.hidden_dims, 4)
        self.example_input_array = torch.ones(2, 4)

    forward = Stack.forward
    training_step = Stack.training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def config(*hidden_dims):
    return OmegaConf.create({"hidden_dims": list(hidden_dims), "width": "${hidden_dims[0]}"})


def test_omegaconf_hyperparameters_are_saved_as_plain_containers(tmp_path):
    module = Configured(config(8))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, batches())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    checkpoint = read(tmp_path / "small.ckpt")
    assert checkpoint["hyper_parameters"] == {"hidden_dims": [8], "width": 8}
    assert type(checkpoint["hyper_parameters"]["hidden_dims"]) is list
    assert "hparams_type" not in checkpoint
    big, trainer = Configured(config(16)), make_trainer(tmp_path, ArchTransfer(), max_epochs=2)
    trainer.fit(big, batches(), ckpt_path=tmp_path / "small.ckpt")
    assert trainer.global_step == 16


class Drawing(Stack):
    """Draws numbers and keeps tensors that no state dict carries."""

    def __init__(self, hidden_dims=(8,), **hparams):
        super().__init__(hidden_dims, **hparams)
        random.random(), np.random.rand(), torch.rand(1)
        self.scale = torch.full((), 2.0)
        self.register_buffer("shift", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.net(x) * self.scale + self.shift


def test_building_the_source_draws_no_number(tmp_path):
    small, path = train_small(tmp_path, Drawing)

    class States(L.Callback):
        def setup(self, trainer, pl_module, stage):
            L.seed_everything(3, verbose=False)

        def on_fit_start(self, trainer, pl_module):
            self.states = random.random(), np.random.rand(), torch.rand(()).item()
            self.outputs = outputs(pl_module)

    grown, plain = States(), States()
    fit(Drawing([16]), tmp_path, ArchTransfer(), grown, ckpt_path=path, max_epochs=3)
    fit(Drawing(), tmp_path, plain, max_epochs=1)
    assert grown.states == plain.states
    torch.testing.assert_close(grown.outputs, outputs(small), **CLOSE)


def test_a_module_that_cannot_be_built_again_says_why(tmp_path):
    class Wrapper(L.LightningModule):
        def __init__(self, net, hidden):
            super().__init__()
            self.save_hyperparameters(ignore=["net"])
            self.net, self.example_input_array = net, torch.ones(2, 4)

        forward, training_step = Stack.forward, Stack.training_step
        configure_optimizers = Configured.configure_optimizers

    def wrap(hidden):
        return Wrapper(make_net([hidden], 4), hidden)

    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(wrap(8), batches())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    with pytest.raises(RefusedGrowth, match=r"missing 1 required positional argument: 'net'.*source="):
        make_trainer(tmp_path, ArchTransfer()).fit(wrap(16), batches(), ckpt_path=tmp_path / "small.ckpt")
    callback = ArchTransfer(source=lambda hparams: wrap(hparams["hidden"]))
    trainer = make_trainer(tmp_path, callback)
    trainer.fit(wrap(16), batches(), ckpt_path=tmp_path / "small.ckpt")
    assert trainer.global_step == 16


def test_layers_made_in_configure_model_grow(tmp_path):
    class Lazy(Stack):
        def __init__(self, hidden_dims=(8,), **hparams):
            super().__init__(hidden_dims, **hparams)
            self.net = None

        def configure_model(self):
            if self.net is None:
                self.net = make_net(self.hparams.hidden_dims, 4)

    small, path = train_small(tmp_path, Lazy)
    big = Lazy([16])
    fit(big, tmp_path, ArchTransfer(num_warmup_steps=0), ckpt_path=path, max_epochs=3)
    assert isinstance(big.net[0], nn.Linear)
    assert small.net[0].weight.shape == (8, 4)


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")  # the tracer's hooks
def test_a_compiled_submodule_takes_the_weights_of_a_plain_one(tmp_path):
    small, path = train_small(tmp_path)
    big = Stack([16])
    big.net = torch.compile(big.net, backend="eager")
    make_trainer(tmp_path, ArchTransfer()).validate(big, batches(), ckpt_path=path, verbose=False)
    assert torch.equal(big.net._orig_mod[0].weight[:8], small.net[0].weight)
    same = Stack()
    same.net = torch.compile(same.net, backend="eager")
    trainer = fit(same, tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3)
    assert trainer.optimizers[0].state[same.net._orig_mod[0].weight]["step"] == 24  # nothing grew: a plain resume


def test_changed_attributes_are_set_again_and_saved_again(tmp_path):
    class Normed(GrowableStack):
        def __init__(self, hidden_dims=(8,), **hparams):
            super().__init__(hidden_dims, **hparams)
            self.norm = nn.LayerNorm(2)

    _, path = train_small(tmp_path, Normed)
    checkpoint = read(path)
    checkpoint["lightning_grow"]["attributes"] = {"norm.eps": 0.25}
    torch.save(checkpoint, path)
    assert Normed.load_from_checkpoint(path).norm.eps == 0.25
    module = Normed()
    fit(module, tmp_path, ArchTransfer(), ckpt_path=path, max_epochs=3).save_checkpoint(tmp_path / "next.ckpt")
    assert module.norm.eps == 0.25
    assert read(tmp_path / "next.ckpt")["lightning_grow"]["attributes"] == {"norm.eps": 0.25}


class Tied(GrowableMixin, L.LightningModule):
    """A language model whose head is its embedding."""

    def __init__(self, width=6, learning_rate=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.embedding, self.middle = nn.Embedding(11, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.example_input_array = torch.arange(10).reshape(2, 5)

    def forward(self, tokens):
        return self.head(torch.tanh(self.middle(self.embedding(tokens))))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch).transpose(1, 2), batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


TOKENS = DataLoader(torch.arange(80).reshape(16, 5) % 11, batch_size=2)


@pytest.fixture
def tied(tmp_path):
    """A tied model and its checkpoint after 8 steps."""
    L.seed_everything(0, verbose=False)
    small, trainer = Tied(), make_trainer(tmp_path, ArchTransfer(), max_epochs=1)
    trainer.fit(small, TOKENS)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    return small, tmp_path / "small.ckpt"


@pytest.mark.parametrize("choice", ["reset", "transfer"])
@pytest.mark.parametrize("size", [{"width": 9}, {"learning_rate": 1e-3}], ids=["bigger", "as big"])
def test_tied_weights_stay_tied(tmp_path, tied, size, choice):
    small, path = tied
    big = Tied(**size)
    callback = ArchTransfer(optimizer=choice, scheduler="reset")
    make_trainer(tmp_path, callback, max_epochs=2).fit(big, TOKENS, ckpt_path=path)
    assert big.head.weight is big.embedding.weight
    torch.testing.assert_close(outputs(Tied.load_from_checkpoint(path, **size)), outputs(small), **CLOSE)


def test_two_tensors_do_not_become_one(tied):
    _, path = tied
    checkpoint = read(path)
    checkpoint["state_dict"]["head.weight"] = checkpoint["state_dict"]["head.weight"] + 1
    torch.save(checkpoint, path)
    with pytest.raises(RefusedGrowth, match=r"'head\.weight' and 'embedding\.weight' are one tensor .* two different"):
        Tied.load_from_checkpoint(path, width=9)
