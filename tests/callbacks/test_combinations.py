"""Beside every callback and under every option of the Trainer: the same outputs and steps, and a resume of a resume."""

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.profilers import SimpleProfiler
from stacks import Stack, batches, equal, make_trainer
from torch import nn

from lightning_grow import ArchTransfer


def beside(make, net=Stack, **options):
    return make, options, net


class ByHand(Stack):
    """Takes its steps itself, with two optimizers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return [torch.optim.Adam(self.net[0].parameters(), lr=1e-2), torch.optim.Adam(self.net[1:].parameters(), 1e-2)]


class Compiled(Stack):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.net = torch.compile(self.net, backend="eager")


class Scheduled(Stack):
    def __init__(self, hidden_dims=(8,), schedule="cosine"):
        super().__init__(hidden_dims, schedule=schedule)


class Normed(Stack):
    def __init__(self, hidden_dims=(8,)):
        super().__init__(hidden_dims)
        layers = [(nn.Linear(4 if not at else hidden_dims[at - 1], size), nn.BatchNorm1d(size), nn.ReLU())
                  for at, size in enumerate(hidden_dims)]  # fmt: skip
        self.net = nn.Sequential(*(layer for part in layers for layer in part), nn.Linear(hidden_dims[-1], 2))


def saver(trainer, pl_module):
    trainer.save_checkpoint(f"{trainer.default_root_dir}/by_hand.ckpt")


COMBINATIONS = {
    "nothing else": beside(list),
    "EMAWeightAveraging": beside(lambda: [callbacks.EMAWeightAveraging(decay=0.9)]),
    "WeightAveraging": beside(lambda: [callbacks.WeightAveraging()]),
    "StochasticWeightAveraging, begun": beside(lambda: [callbacks.StochasticWeightAveraging(1e-3, 1)]),
    "StochasticWeightAveraging, to begin": beside(lambda: [callbacks.StochasticWeightAveraging(1e-3, 4)]),
    "ModelPruning": beside(lambda: [callbacks.ModelPruning("l1_unstructured", amount=0.3, verbose=0)]),
    "EarlyStopping": beside(lambda: [callbacks.EarlyStopping("val_loss", patience=99)]),
    "GradientAccumulationScheduler": beside(lambda: [callbacks.GradientAccumulationScheduler({0: 1, 1: 2})]),
    "LearningRateMonitor": beside(lambda: [callbacks.LearningRateMonitor()], logger=True),
    "LambdaCallback": beside(lambda: [callbacks.LambdaCallback(on_train_epoch_end=saver)]),
    "Timer": beside(lambda: [callbacks.Timer("00:01:00:00")]),
    "OnExceptionCheckpoint": beside(lambda: [callbacks.OnExceptionCheckpoint(".")], enable_checkpointing=True),
    "RichProgressBar": beside(lambda: [callbacks.RichProgressBar()], enable_progress_bar=True),
    "TQDMProgressBar": beside(lambda: [callbacks.TQDMProgressBar()], enable_progress_bar=True),
    "RichModelSummary": beside(lambda: [callbacks.RichModelSummary()], enable_model_summary=True),
    "precision bf16-mixed": beside(list, precision="bf16-mixed"),
    "precision bf16-true": beside(list, precision="bf16-true"),
    "precision 64-true": beside(list, precision="64-true"),
    "accumulate_grad_batches": beside(list, accumulate_grad_batches=3),
    "gradient_clip_val": beside(list, gradient_clip_val=0.1),
    "gradient_clip_algorithm value": beside(list, gradient_clip_val=0.1, gradient_clip_algorithm="value"),
    "deterministic": beside(list, deterministic=True),
    "detect_anomaly": beside(list, detect_anomaly=True),
    "overfit_batches": beside(list, overfit_batches=2),
    "limit_train_batches": beside(list, limit_train_batches=0.5),
    "val_check_interval": beside(list, val_check_interval=3),
    "check_val_every_n_epoch": beside(list, check_val_every_n_epoch=2),
    "num_sanity_val_steps 0": beside(list, num_sanity_val_steps=0),
    "reload_dataloaders_every_n_epochs": beside(list, reload_dataloaders_every_n_epochs=1),
    "inference_mode off": beside(list, inference_mode=False),
    "profiler": beside(list, profiler=SimpleProfiler()),
    "a logger": beside(list, logger=True),
    "steps by hand, two optimizers": beside(list, net=ByHand),
    "torch.compile": beside(list, net=Compiled),
    "a schedule": beside(list, net=Scheduled),
    "batch normalisation": beside(list, net=Normed),
}


OTHERWISE = {name for name in COMBINATIONS if any(part in name for part in ("WeightAveraging", "Pruning", "64"))}
"""Averages take the weights' place when a fit ends, Lightning keeps no masks of a pruned module, and it reads float64
weights into a float32 module: there a resume of the end of a fit is, without us too, no straight run."""


def outputs(module):
    with torch.no_grad():
        return module(module.example_input_array.to(module.dtype))


class Start(L.Callback):
    def on_train_start(self, trainer, pl_module):
        was = pl_module.training
        self.outputs = outputs(pl_module.eval())
        pl_module.train(was)
        self.step, self.epoch = trainer.global_step, trainer.current_epoch
        self.weight = next(pl_module.parameters()).detach().clone()


def run(net, hidden_dims, folder, callbacks, epochs, ckpt_path=None, **options):
    L.seed_everything(3, verbose=False)
    module = net(hidden_dims)
    trainer = make_trainer(folder, *callbacks, max_epochs=epochs, **options)
    trainer.fit(module, batches(), batches(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(path := folder / f"{epochs}-{hidden_dims}.ckpt")
    return trainer, path


@pytest.fixture(autouse=True)
def deterministic_here_alone():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the others' own
@pytest.mark.parametrize("optimizer", ["reset", "transfer"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_run_grows_beside(tmp_path, combination, optimizer):
    others, options, net = COMBINATIONS[combination]

    def ours():
        return [*others(), ArchTransfer(optimizer=optimizer, num_warmup_steps=3)]

    first, path = run(net, (8,), tmp_path, ours(), 2, **options)
    saved = torch.load(path, weights_only=True)
    small = net((8,)).to(first.lightning_module.dtype)
    small.load_state_dict(saved["state_dict"])
    start = Start()
    grown, later = run(net, (12,), tmp_path, [*ours(), start], 4, path, **options)
    near = {torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}[small.dtype]  # sums of 12 terms
    torch.testing.assert_close(start.outputs, outputs(small.eval()), rtol=near, atol=near)
    assert (start.step, start.epoch) == (saved["global_step"], 2)
    assert grown.global_step > saved["global_step"]
    assert not torch.equal(start.weight, next(grown.lightning_module.parameters()))
    _, resumed = run(net, (12,), tmp_path / "resumed", ours(), 6, later, **options)
    _, plain = run(net, (12,), tmp_path / "plain", others(), 6, later, **options)
    assert differ(resumed, plain) == []
    if combination not in OTHERWISE:
        _, straight = run(net, (12,), tmp_path / "straight", ours(), 6, path, **options)
        assert differ(resumed, straight) == []


def differ(*paths):
    """What counts of two checkpoints and is not the same, bit for bit."""
    ends = [torch.load(item, weights_only=True) for item in paths]
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
    return [key for key in keys if not equal(*(end[key] for end in ends))]
