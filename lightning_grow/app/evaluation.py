"""Evaluate the agent of a checkpoint: what it earns, greedy and sampled, and on the market how its equity went."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console
from rich.table import Table

from lightning_grow.errors import CheckpointError, WrongSetting
from lightning_grow.files.checkpoint import read_checkpoint
from lightning_grow.rl import PPO, evaluate
from lightning_grow.rl.evaluate import equity_curve, look, make_envs, make_player, unseen
from lightning_grow.rl.market import MARKET_ID

FRAMES_PER_SECOND = 25
WAYS = {"greedy": True, "sampled": False}


def run_evaluation(config: DictConfig, path: str | None) -> None:
    """Play `evaluation.episodes` episodes in each of the two ways; print the returns and write `evaluation.json`.

    Args:
        config: Of the run. The agent and its environment are those of the checkpoint; `evaluation.env` changes the
            environment's arguments.
        path: The checkpoint.

    Raises:
        WrongSetting: No checkpoint is given.
        CheckpointError: The file cannot be read, or holds no agent.
        gymnasium.error.Error: A video is asked for, and the environment cannot be drawn.
    """
    if path is None:
        raise WrongSetting("mode=eval evaluates the agent of a checkpoint: say ckpt_path=FILE.")
    agent, run_dir = load_agent(path), Path(config.run_dir)
    changed: dict[str, Any] = OmegaConf.to_container(config.evaluation.env, resolve=True)  # type: ignore[assignment]
    env = unseen({**agent.hparams["env"], **changed})
    episodes, seed = config.evaluation.episodes, config.evaluation.seed
    returns = {way: evaluate(agent, env, episodes, seed, greedy) for way, greedy in WAYS.items()}
    Console().print(make_table(returns, f"{env['id']}, agent of {agent.timesteps:,} steps"))
    found = {"checkpoint": path, "env": env, "timesteps": agent.timesteps, "returns": returns}
    (run_dir / "evaluation.json").write_text(json.dumps(found, indent=1))
    if config.evaluation.video:
        write_video(agent, env, seed, run_dir / "episode.gif")
    if env["id"] == MARKET_ID:
        write_equity(*equity_curve(agent, env), run_dir)
    print(f"wrote to {run_dir}")


def load_agent(path: str) -> PPO:
    """Build the agent of a checkpoint, ready to play.

    Raises:
        CheckpointError: The file cannot be read, or holds no agent.
    """
    checkpoint = read_checkpoint(path)
    hparams = checkpoint.get("hyper_parameters", {})
    if "state_dim" not in hparams:
        raise CheckpointError(f"{path} holds no agent of ours: no hyperparameter state_dim. Pass a PPO's checkpoint.")
    agent = PPO(**hparams)
    agent.load_state_dict(checkpoint["state_dict"])
    agent.on_load_checkpoint(checkpoint)
    return agent.eval()


def make_table(returns: dict[str, list[float]], title: str) -> Table:
    """One row a way: mean, standard deviation, lowest and highest return."""
    table = Table("actions", "episodes", "mean return", "std", "lowest", "highest", title=title)
    for way, found in returns.items():
        numbers = (fmean(found), pstdev(found), min(found), max(found))
        table.add_row(way, str(len(found)), *(f"{number:.6g}" for number in numbers))
    return table


def write_equity(times: "np.ndarray[Any, Any]", equity: "np.ndarray[Any, Any]", folder: Path) -> None:
    """Write `equity.csv` and `equity.png`."""
    rows = [f"{time},{value:.8f}" for time, value in zip(times, equity, strict=True)]
    (folder / "equity.csv").write_text("\n".join(["time,equity", *rows]) + "\n")
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(times, equity, linewidth=1)
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set(ylabel="equity, greedy agent", title="Evaluation period")
    axes.tick_params(axis="x", labelrotation=30)
    figure.savefig(folder / "equity.png", dpi=150)


@torch.no_grad()
def write_video(agent: PPO, env: Mapping[str, Any], seed: int, path: Path) -> None:
    """Write an episode of the greedy agent as its environment draws it.

    Raises:
        WrongSetting: The environment does not draw.
    """
    envs = make_envs(agent, {**env, "render_mode": "rgb_array"}, 1)
    envs.reset(seed)
    player = make_player(agent, 1)
    drawn: list[Any] = [envs.envs[0].render()]
    is_over = False
    while not is_over:
        _, terminated, truncated, _ = envs.step(look(agent, player, envs.observations).mode.numpy())
        is_over = bool(terminated[0] or truncated[0])
        if not is_over:  # after the end it shows the next episode
            drawn.append(envs.envs[0].render())
    envs.close()
    if not isinstance(drawn[0], np.ndarray):
        raise WrongSetting(f"{env['id']} draws no pictures (render_mode rgb_array): leave evaluation.video out.")
    first, *others = (Image.fromarray(frame) for frame in drawn)
    first.save(path, save_all=True, append_images=others, duration=1000 // FRAMES_PER_SECOND, loop=0)
