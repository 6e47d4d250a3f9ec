"""Two processes that train one agent: with one minibatch, as one process with all their environments."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

RUN = """
    import sys
    import lightning, torch
    from lightning_grow.rl import PPO

    folder, devices, epochs, minibatches, fails, path = sys.argv[1:7]

    class Fail(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if fails == "yes" and trainer.current_epoch == 1 and trainer.global_rank == 1:
                pl_module.envs.stepper.step = lambda *_: 1 / 0

    class Note(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(f"{folder}/3.ckpt")

        def on_train_end(self, trainer, pl_module):
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            state = {"metrics": found, "weights": pl_module.state_dict(), "own": len(pl_module.envs.envs)}
            torch.save(state, f"{folder}/{trainer.global_rank}.pt")

    torch.manual_seed(0)
    agent = PPO(
        4, 2, hidden_dims=[8], num_envs=6, num_steps=32, num_minibatches=int(minibatches), update_epochs=2,
        total_iterations=10, learning_rate=5e-3,
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=int(devices), strategy="ddp" if devices == "2" else "auto", max_epochs=int(epochs),
        callbacks=[Fail(), Note()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )
    trainer.fit(agent, ckpt_path=path or None, weights_only=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo's threads may abort a process that exits with them
"""


def run(folder, devices, epochs=3, minibatches=1, fails="no", path="", more=""):
    folder.mkdir()
    script = folder / "run.py"
    script.write_text(textwrap.dedent(RUN).replace("hidden_dims=[8],", f"hidden_dims=[8], {more}"))
    command = [sys.executable, "-W", "ignore", str(script), str(folder)]
    command += [*map(str, (devices, epochs, minibatches)), fails, str(path)]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=200, check=False)


def results(folder, devices):
    done = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]
    return done[0]["metrics"], done[0]["weights"], done


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Four epochs in two processes, and a checkpoint after three."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    ended = run(folder, 2, epochs=4)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


def check_like_one_process(one, two):
    """Sums are in another order, and Adam has taken 8 steps."""
    for name, tensor in two[1].items():
        torch.testing.assert_close(tensor, one[1][name], rtol=1e-4, atol=1e-5)
    assert two[0].keys() == one[0].keys()
    for name in ("timesteps", "episodes", "episode_return", "episode_length", "entropy", "value_loss", "learning_rate"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-3), name


def test_two_processes_learn_as_one_of_all_environments(tmp_path, straight):
    ended = run(tmp_path / "1", 1, epochs=4)
    assert ended.returncode == 0, ended.stderr[-3000:]
    _, weights, (first, second) = results(straight, 2)
    assert first["own"] == second["own"] == 3
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in weights.items())
    check_like_one_process(results(tmp_path / "1", 1), results(straight, 2))


def test_two_processes_remember_as_one(tmp_path):
    """And a run of two goes on in one, in the middle of its episodes."""
    memory = "memory={'kind': 'lstm', 'hidden_size': 6},"
    for name, devices, epochs, path in (
        ("2", 2, 4, ""),
        ("1", 1, 4, ""),
        ("2 then 1", 1, 4, tmp_path / "2" / "3.ckpt"),
    ):
        ended = run(tmp_path / name, devices, epochs, path=path, more=memory)
        assert ended.returncode == 0, ended.stderr[-3000:]
        check_like_one_process(results(tmp_path / name, devices), results(tmp_path / "2", 2))


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_goes_on_in_any_number_of_processes(tmp_path, straight, devices):
    ended = run(tmp_path / "run", devices, epochs=4, path=straight / "3.ckpt")
    assert ended.returncode == 0, ended.stderr[-3000:]
    resumed, expected = results(tmp_path / "run", devices), results(straight, 2)
    assert resumed[0]["timesteps"] == 4 * 6 * 32
    if devices == 1:
        return check_like_one_process(resumed, expected)
    assert resumed[0] == expected[0]
    assert all(torch.equal(tensor, resumed[1][name]) for name, tensor in expected[1].items())


def test_what_fails_in_one_process_ends_both(tmp_path):
    ended = run(tmp_path / "both", 2, fails="yes")
    assert ended.returncode != 0
    assert "ZeroDivisionError" in ended.stderr
    assert "This is the error of process 1." in ended.stderr


def test_two_processes_learn_with_minibatches(tmp_path):
    ended = run(tmp_path / "run", 2, epochs=25, minibatches=4)
    assert ended.returncode == 0, ended.stderr[-3000:]
    metrics, _, (first, second) = results(tmp_path / "run", 2)
    assert metrics == second["metrics"] == first["metrics"]
    assert metrics["episode_return"] > 40  # about 22 at first


def test_environments_that_cannot_be_shared_are_refused(tmp_path):
    script = RUN.replace("num_envs=6", "num_envs=3")
    (tmp_path / "run.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "-W", "ignore", str(tmp_path / "run.py"), str(tmp_path), "2", "1", "1", "no", ""]
    ended = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=200, check=False)
    assert "2 processes cannot share num_envs=3 environments: take a multiple" in ended.stderr
