"""Measure how many env steps PPO needs to solve CartPole-v1, and how fast it makes them.

Solved: the mean return of the last 100 training episodes reaches 475. Run
`python benchmarks/ppo_cartpole.py --seeds 3`; give `--settings` to run one of the two only.
"""

import argparse
import statistics
import time
import warnings
from dataclasses import dataclass

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

from lightning_grow.rl import PPO

SOLVED = 475
SETTINGS = {
    "CleanRL": {"total_iterations": 500_000 // (4 * 128)},
    # https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml, but for its annealed clip range
    "rl-zoo3": {
        "num_envs": 8,
        "num_steps": 32,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "update_epochs": 20,
        "num_minibatches": 1,
        "ent_coef": 0.0,
        "learning_rate": 1e-3,
        "clip_vloss": False,
        "normalize_observations": False,
        "total_iterations": 100_000 // (8 * 32),
    },
}


@dataclass(frozen=True)
class Result:
    """Of one seed: timesteps until solved (None: never), the last mean return, and timesteps a second."""

    solved_at: int | None
    last_return: float
    speed: float


class StopWhenSolved(Callback):
    """Stop the Trainer once the agent is good and has closed 100 episodes."""

    solved_at: int | None = None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: PPO) -> None:
        """Look at what the iteration logged."""
        if trainer.callback_metrics["episode_return"] >= SOLVED and pl_module.episodes >= 100:
            self.solved_at, trainer.should_stop = pl_module.timesteps, True


def train(settings: dict, seed: int) -> Result:
    """Train one agent until it has solved CartPole or its iterations are over."""
    lightning.seed_everything(seed, verbose=False)
    agent = PPO(state_dim=4, action_dim=2, seed=seed, **settings)
    stop = StopWhenSolved()
    trainer = lightning.Trainer(
        max_epochs=settings["total_iterations"],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[stop],
    )
    start = time.perf_counter()
    trainer.fit(agent)
    speed = agent.timesteps / (time.perf_counter() - start)
    return Result(stop.solved_at, trainer.callback_metrics["episode_return"].item(), speed)


def main() -> None:
    """Train for each setting and seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, 1, 2, ...")
    parser.add_argument("--settings", choices=SETTINGS, nargs="*", default=list(SETTINGS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    table = Table("settings", "seed", "env steps until solved", "last mean return", "env steps/s", title="CartPole-v1")
    for name in arguments.settings:
        results = [train(SETTINGS[name], seed) for seed in range(1, arguments.seeds + 1)]
        for seed, result in enumerate(results, start=1):
            solved_at = f"{result.solved_at:,}" if result.solved_at else "not within its iterations"
            table.add_row(name, str(seed), solved_at, f"{result.last_return:.0f}", f"{result.speed:,.0f}")
        solved = statistics.median(result.solved_at or float("inf") for result in results)
        speed = statistics.median(result.speed for result in results)
        table.add_row(name, "median", f"{solved:,.0f}", "", f"{speed:,.0f}", style="bold", end_section=True)
    Console().print(table)


if __name__ == "__main__":
    main()
