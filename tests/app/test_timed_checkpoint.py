"""Checkpoints by time: one at once, one at the end, one where a run breaks off, and no more than asked for."""

import lightning
import pytest
import torch

from lightning_grow.app.checkpoint import TimedCheckpoint
from lightning_grow.errors import NotFinite
from lightning_grow.rl import PPO


def make_ppo(**settings):
    torch.manual_seed(0)
    return PPO(4, 2, hidden_dims=[8], num_envs=2, num_steps=8, num_minibatches=2, update_epochs=2, **settings)


class Interfere(lightning.Callback):
    """Do something as an epoch starts, and note which checkpoints there are then."""

    def __init__(self, path, do=lambda trainer: None):
        self.path, self.do, self.saved = path, do, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.saved.append(torch.load(self.path, weights_only=True)["epoch"] if self.path.exists() else None)
        self.do(trainer)


def run(tmp_path, seconds=1e9, do=lambda trainer: None, agent=None, **limits):
    path = tmp_path / "last.ckpt"
    interfere = Interfere(path, do)
    trainer = lightning.Trainer(
        callbacks=[TimedCheckpoint(seconds, dirpath=tmp_path, filename="last"), interfere],
        **{"max_epochs": 4} | limits,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(agent or make_ppo())
    finally:
        interfere.saved.append(torch.load(path, weights_only=True)["epoch"])
    return interfere.saved


@pytest.mark.parametrize(("seconds", "saved"), [(0, [None, 0, 1, 2, 3]), (1e9, [None, 0, 0, 0, 3])])
def test_time_decides_between_the_first_epoch_and_the_last(tmp_path, seconds, saved):
    assert run(tmp_path, seconds) == saved


@pytest.mark.parametrize("limits", [{"max_epochs": -1, "max_steps": 9}, {"max_epochs": None, "max_steps": 12}])
def test_the_last_epoch_may_be_that_of_the_last_step(tmp_path, limits):
    assert run(tmp_path, agent=make_ppo(anneal_lr=False), **limits) == [None, 0, 0, 2]


def test_a_run_that_is_stopped_saves(tmp_path):
    def stop(trainer):
        trainer.should_stop = trainer.current_epoch == 2

    assert run(tmp_path, do=stop) == [None, 0, 0, 2]


@pytest.mark.parametrize(("error", "kept"), [(RuntimeError, 2), (KeyboardInterrupt, 2), (NotFinite, 0)])
def test_a_run_that_breaks_off_saves_but_where_its_state_is_worth_nothing(tmp_path, error, kept):
    def fail(trainer):
        if trainer.current_epoch == 2:
            raise error("on purpose")

    with pytest.raises((error, SystemExit)):
        run(tmp_path, do=fail)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == kept


def test_what_broke_off_goes_on_to_the_same_weights(tmp_path):
    def fail(trainer):
        if trainer.current_epoch == 2:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        run(tmp_path, do=fail)
    results = []
    for path in (None, tmp_path / "last.ckpt"):
        agent = make_ppo()
        lightning.Trainer(
            max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
        ).fit(agent, ckpt_path=path, weights_only=True)
        results.append(agent.agent.state_dict())
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())
