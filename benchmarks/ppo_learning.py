"""Measure how well our PPO learns beside Stable-Baselines3's at equal settings: CartPole, MinAtar Breakout, Recall.

Run `pip install 'lightning-grow[benchmarks]'` and `python benchmarks/ppo_learning.py` (about 25 minutes, one core). It
writes benchmarks/results/ppo_learning.json after each run, so that a second call goes on where the first ended, and at
the end ppo_learning.md and .png. Each run is a process of its own with one thread; ours and theirs take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
SUBJECTS = ("ours", "Stable-Baselines3")
Curve = list[list[float]]
"""(environment steps, mean return of the last 100 training episodes) after each iteration."""


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Args:
        env: gymnasium's id.
        steps: In all environments together.
        good: The mean return of 100 training episodes that counts as solved.
        settings: Of the algorithm, by PPO's names; the same for both.
        hidden_dims: Behind encoder and memory.
        filters: Of a 3 x 3 convolution, and features behind it; () for none.
        hidden_size: Of an LSTM that actor and critic share; 0 for none.
    """

    env: str
    steps: int
    good: float
    settings: dict[str, Any] = field(hash=False)
    hidden_dims: tuple[int, ...] = (64, 64)
    filters: tuple[int, ...] = ()
    hidden_size: int = 0


# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml, but for its annealed clip range
ZOO = {"num_envs": 8, "num_steps": 32, "gae_lambda": 0.8, "gamma": 0.98, "update_epochs": 20, "num_minibatches": 1}
TASKS = {
    "CartPole": Task("CartPole-v1", 100_096, 475, ZOO | {"ent_coef": 0.0, "learning_rate": 1e-3}),
    "MinAtar Breakout": Task(
        "MinAtar/Breakout-v1",
        499_712,
        10,
        {"num_envs": 32, "num_steps": 128, "num_minibatches": 8, "learning_rate": 2.5e-3},
        hidden_dims=(64,),
        filters=(16, 128),
    ),
    "Recall": Task(
        "lightning_grow/Recall-v0",
        102_400,
        0.9,
        {"num_envs": 16, "num_steps": 64, "learning_rate": 3e-3},
        hidden_dims=(64,),
        hidden_size=64,
    ),
}
DEFAULTS = {"gamma": 0.99, "gae_lambda": 0.95, "num_minibatches": 4, "update_epochs": 4, "ent_coef": 0.01}


def ours(task: Task, seed: int) -> Curve:
    """Train `lightning_grow.rl.PPO`."""
    import lightning

    from lightning_grow.rl import PPO, env_spaces

    class Note(lightning.Callback):
        def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: PPO) -> None:
            curve.append([pl_module.timesteps, trainer.callback_metrics["episode_return"].item()])

    curve: Curve = []
    lightning.seed_everything(seed, verbose=False)
    network: dict[str, Any] = {"hidden_dims": task.hidden_dims}
    if task.filters:
        filters, features = task.filters
        shape = {"channels": [filters], "kernels": [3], "strides": [1], "features": features}
        network |= {"encoder": {"kind": "nature_cnn", **shape}, "activation": "relu"}
    if task.hidden_size:
        network["memory"] = {"kind": "lstm", "hidden_size": task.hidden_size}
    sizes = env_spaces({"id": task.env}, images=bool(task.filters))
    plain = {"normalize_observations": False, "clip_vloss": False}
    agent = PPO(*sizes, env={"id": task.env}, seed=seed, **network, **plain, **DEFAULTS | task.settings)
    trainer = lightning.Trainer(
        max_epochs=task.steps // (agent.hparams["num_envs"] * agent.hparams["num_steps"]), callbacks=[Note()],
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(agent)
    return curve


def theirs(task: Task, seed: int) -> Curve:
    """Train Stable-Baselines3's PPO, or sb3-contrib's RecurrentPPO, with the same network."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Eyes(BaseFeaturesExtractor):
        def __init__(self, space: Any) -> None:
            filters, features = task.filters
            super().__init__(space, features)
            height, width, channels = space.shape
            maps = filters * (height - 2) * (width - 2)
            convolution = nn.Conv2d(channels, filters, 3)
            self.body = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(maps, features), nn.ReLU())

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images.movedim(-1, -3))

    class Note(BaseCallback):
        def _on_rollout_end(self) -> None:
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            curve.append([self.num_timesteps, statistics.fmean(returns) if returns else float("nan")])

        def _on_step(self) -> bool:
            return True

    curve: Curve = []
    given = DEFAULTS | task.settings
    envs = make_vec_env(task.env, given["num_envs"], seed=seed)
    network: dict[str, Any] = {"net_arch": list(task.hidden_dims), "activation_fn": nn.Tanh}
    if task.filters:
        network |= {"features_extractor_class": Eyes, "activation_fn": nn.ReLU}
    if task.hidden_size:
        network |= {"lstm_hidden_size": task.hidden_size, "shared_lstm": True, "enable_critic_lstm": False}
    settings = {
        "n_steps": given["num_steps"],
        "batch_size": given["num_envs"] * given["num_steps"] // given["num_minibatches"],
        "n_epochs": given["update_epochs"],
        "learning_rate": lambda left: left * given["learning_rate"],
        **{name: given[name] for name in ("gamma", "gae_lambda", "ent_coef")},
    }
    kind, policy = (RecurrentPPO, "MlpLstmPolicy") if task.hidden_size else (PPO, "MlpPolicy")
    kind(policy, envs, policy_kwargs=network, seed=seed, device="cpu", **settings).learn(task.steps, callback=Note())
    return curve


def work(name: str, subject: str, seed: int) -> None:
    """One process: print the curve and the CPU seconds."""
    torch.set_num_threads(1)
    import lightning_grow.rl  # noqa: F401 - registers Recall

    if TASKS[name].filters:
        from minatar.gym import register_envs

        register_envs()
    start = time.process_time()
    curve = (ours if subject == SUBJECTS[0] else theirs)(TASKS[name], seed)
    print(json.dumps({"curve": curve, "seconds": time.process_time() - start}))


def steps_until(curve: Curve, good: float) -> float:
    """Environment steps until the mean return reaches `good`; infinity if it never does."""
    return next((steps for steps, value in curve if value >= good), float("inf"))


def table(found: dict[str, Any], seeds: int) -> list[str]:
    """One row a task and subject."""
    lines = ["| | | return at the end | steps until it is good | CPU seconds |", "|---|---|---|---|---|"]
    for name, task in TASKS.items():
        for subject in SUBJECTS:
            runs = [found[f"{name}/{subject}/{seed}"] for seed in range(1, seeds + 1)]
            last = [run["curve"][-1][1] for run in runs]
            until = [steps_until(run["curve"], task.good) for run in runs]
            times = [f"{steps:,.0f}" if steps < float("inf") else "never" for steps in sorted(until)]
            spread = f"{statistics.median(last):.4g} ({min(last):.4g} to {max(last):.4g})"
            seconds = statistics.median(run["seconds"] for run in runs)
            lines.append(f"| {name} ({task.good:g}) | {subject} | {spread} | {', '.join(times)} | {seconds:.0f} |")
    return lines


def draw(found: dict[str, Any], seeds: int) -> None:
    """Learning curves: each seed, and the median over them."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (name, task) in zip(figure.subplots(1, len(TASKS)), TASKS.items(), strict=True):
        for subject, color in zip(SUBJECTS, ("C0", "0.45"), strict=True):
            curves = [found[f"{name}/{subject}/{seed}"]["curve"] for seed in range(1, seeds + 1)]
            for curve in curves:
                axes.plot(*zip(*curve, strict=True), color=color, alpha=0.3, linewidth=0.8)
            points = [(row[0][0], statistics.median(value for _, value in row)) for row in zip(*curves, strict=False)]
            axes.plot(*zip(*points, strict=True), color=color, label=subject, linewidth=1.8)
        axes.axhline(task.good, color="0.8", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="environment steps")
        axes.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:.0f}k")
    figure.axes[0].set_ylabel("return, last 100 episodes")
    figure.axes[0].legend(loc="lower right", fontsize="small")
    figure.savefig(RESULTS / "ppo_learning.png", dpi=150)


def main() -> None:
    """Train what is missing, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, 1, 2, ...")
    given = parser.parse_args()
    if given.worker:
        name, subject, seed = given.worker
        work(name, subject, int(seed))
        return
    path = RESULTS / "ppo_learning.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    jobs = [f"{name}/{subject}/{seed}" for name in TASKS for seed in range(1, given.seeds + 1) for subject in SUBJECTS]
    for job in track([job for job in jobs if job not in found], description="training"):
        command = [sys.executable, "-W", "ignore", __file__, "--worker", *job.split("/")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[job] = json.loads(done.stdout.splitlines()[-1])
        path.write_text(json.dumps(found))
    lines = table(found, given.seeds)
    lines += [
        "",
        f"{given.seeds} seeds; in brackets what counts as good. Load average {os.getloadavg()[0]:.1f} at the end.",
    ]
    print("\n".join(lines))
    (RESULTS / "ppo_learning.md").write_text("\n".join(lines) + "\n")
    draw(found, given.seeds)


if __name__ == "__main__":
    main()
