"""Without example_input_array the first batch is the example, and the run does not notice that it was looked at."""

import lightning as L
import pytest
import torch
from stacks import make_trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_grow import ArchTransfer, GrowthSchedule, RefusedGrowth

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :2].sin()
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32: rounding of sums of 12 numbers of about 1


class Plain(L.LightningModule):
    """As most are: hyperparameters, no example inputs."""

    def __init__(self, hidden=8):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        self.seen, self.at_start = [], None

    def forward(self, x, scale=None):
        return self.net(x) * (1.0 if scale is None else scale)

    def training_step(self, batch, batch_idx):
        x, y = self.parts(batch)
        self.seen.append(x.clone())
        return (self.net(x) - y).square().mean()

    def parts(self, batch):
        return batch

    def on_train_start(self):
        self.at_start = self.net(X).detach()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Named(Plain):
    def parts(self, batch):
        return batch["x"], batch["label"]


class Nested(Plain):
    def parts(self, batch):
        return batch["left"] if isinstance(batch, dict) else batch

    def forward(self, batch):
        return self.net(self.parts(batch)[0])


class Pairs(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return {"x": x, "label": y, "name": str(index)}


class Stream(IterableDataset):
    """Its samples in an order that it draws."""

    def __iter__(self):
        return ((X[index], Y[index]) for index in torch.randperm(len(X)))


class Once(IterableDataset):
    """A source that can be read once."""

    def __init__(self):
        self.samples = ((x, y) for x, y in zip(X, Y, strict=True))

    def __iter__(self):
        return self.samples


def shuffled(dataset=None, **options):
    return DataLoader(dataset or TensorDataset(X, Y), batch_size=6, shuffle=True, **options)


class Data(L.LightningDataModule):
    def setup(self, stage):
        self.set = TensorDataset(X, Y)

    def train_dataloader(self):
        return shuffled(self.set)


LOADERS = {
    "a tuple": (Plain, shuffled),
    "with a generator of its own": (Plain, lambda: shuffled(generator=torch.Generator().manual_seed(5))),
    "with workers": (Plain, lambda: shuffled(num_workers=1)),
    "named": (Named, lambda: shuffled(Pairs(X, Y))),
    "several loaders": (Nested, lambda: {"left": shuffled(), "right": shuffled()}),
    "a stream": (Plain, lambda: DataLoader(Stream(), batch_size=6)),
    "batches in a list": (Plain, lambda: DataLoader([(X[:6], Y[:6]), (X[6:], Y[6:])], batch_size=None)),
    "a datamodule": (Plain, Data),
}


def fit(module, folder, data, *callbacks, ckpt_path=None, **options):
    L.seed_everything(3, verbose=False)
    make_trainer(folder, *callbacks, **options).fit(module, data, ckpt_path=ckpt_path)
    return module, torch.random.get_rng_state()


@pytest.fixture
def small(tmp_path):
    module = Plain()
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, shuffled())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    return module, tmp_path / "small.ckpt"


@pytest.mark.parametrize(("cls", "make"), LOADERS.values(), ids=LOADERS)
def test_a_module_without_example_inputs_grows(tmp_path, small, cls, make):
    big, after = fit(cls(12), tmp_path, make(), ArchTransfer(), ckpt_path=small[1])
    torch.testing.assert_close(big.at_start, expected(small[1]), **CLOSE)
    other = cls(12)
    other.example_input_array = ((X[:3], Y[:3]),) if cls is Nested else X[:3]
    told, after_told = fit(other, tmp_path, make(), ArchTransfer(), ckpt_path=small[1])
    assert torch.equal(after, after_told)  # no random number was drawn for the look
    assert len(big.seen) == len(told.seen) > 0
    assert all(map(torch.equal, big.seen, told.seen))  # nor is any sample missed, or in another place


def expected(path):
    module = Plain()
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return module.net(X).detach()


def test_a_schedule_takes_the_first_batch_too(tmp_path):
    class Told(Plain):
        def __init__(self, hidden=8):
            super().__init__(hidden)
            self.example_input_array = X[:3]

    def run(cls):
        return fit(cls(), tmp_path, DataLoader(Stream(), batch_size=6), GrowthSchedule([{"hidden": 12}], at=[2]))

    (module, after), (told, after_told) = run(Plain), run(Told)
    assert module.net[0].weight.shape == (12, 4)
    assert torch.equal(after, after_told)
    assert all(map(torch.equal, module.seen, told.seen))


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation_takes_the_first_batch_of_its_own_loader(tmp_path, small, method):
    class Evaluated(Plain):
        def validation_step(self, batch, batch_idx):
            return self(batch[0])

        test_step = predict_step = validation_step

    big = Evaluated(12)
    options = {} if method == "predict" else {"verbose": False}
    data = DataLoader(TensorDataset(X, Y), batch_size=6)
    getattr(make_trainer(tmp_path, ArchTransfer()), method)(big, data, ckpt_path=small[1], **options)
    torch.testing.assert_close(big.net(X).detach(), expected(small[1]), **CLOSE)


def test_a_source_that_can_be_read_once_is_not_read(tmp_path, small):
    data = Once()
    with pytest.raises(RefusedGrowth, match=r"(?s)the first batch cannot be taken .*generator.*Pass example_inputs="):
        fit(Plain(12), tmp_path, DataLoader(data, batch_size=6), ArchTransfer(), ckpt_path=small[1])
    assert len(list(data)) == len(X)
    fit(
        Plain(12), tmp_path, DataLoader(Once(), batch_size=6), ArchTransfer(example_inputs=(X[:3],)), ckpt_path=small[1]
    )


def test_a_batch_that_forward_does_not_take_is_said(tmp_path, small):
    class Other(Plain):
        def forward(self, x, mask):
            return self.net(x) * mask["of"]

    with pytest.raises(RefusedGrowth, match=r"does not run on the first batch \(2 items\)\. Pass example_inputs="):
        fit(Other(12), tmp_path, shuffled(), ArchTransfer(), ckpt_path=small[1])
