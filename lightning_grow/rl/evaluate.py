"""Play whole episodes with an agent, to see how good it is."""

from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

import lightning
import numpy as np
import torch

from lightning_grow.rl.distributions import Distribution
from lightning_grow.rl.market import MARKET_ID, MarketEnv
from lightning_grow.rl.player import Player
from lightning_grow.rl.ppo import PPO
from lightning_grow.rl.spaces import make_env
from lightning_grow.rl.stepping import Array
from lightning_grow.rl.vector_env import VectorEnv


@torch.no_grad()
def evaluate(agent: PPO, env: Mapping[str, Any], episodes: int, seed: int, greedy: bool = False) -> list[float]:
    """Return the undiscounted return of each episode, one played in each of `episodes` environments side by side.

    Args:
        agent: Gives the actions; left as it is.
        env: `{"id": <gymnasium id>, **kwargs of gymnasium.make}`.
        episodes: How many to play.
        seed: Of the action noise and, plus its index, of each environment.
        greedy: Whether to take the most probable action instead of a sampled one.

    >>> agent = PPO(state_dim=4, action_dim=2)
    >>> len(evaluate(agent, {"id": "CartPole-v1"}, episodes=3, seed=0))
    3
    """
    envs, generator = make_envs(agent, env, episodes), torch.Generator().manual_seed(seed)
    envs.reset(seed)
    player, returns = make_player(agent, episodes), dict[int, float]()
    while len(returns) < episodes:
        distribution = look(agent, player, envs.observations)
        noise = agent.agent.noise((episodes,), generator).to(next(agent.parameters()))
        actions = distribution.mode if greedy else distribution.sample(noise)
        _, terminated, truncated, ends = envs.step(actions.cpu().numpy())
        ended = np.flatnonzero(terminated | truncated).tolist()
        # Environments that end early play on until all have ended once; only their first episode counts.
        returns = {index: end.episode_return for index, end in zip(ended, ends, strict=True)} | returns
    envs.close()
    return [returns[index] for index in range(episodes)]


def make_envs(agent: PPO, env: Mapping[str, Any], number: int) -> VectorEnv:
    """Make environments for an agent to play in."""
    return VectorEnv(env, number, agent.agent.encoder is not None, agent.hparams["squash_actions"])


def make_player(agent: PPO, num_envs: int) -> Player:
    """Return the agent at play in environments that have just begun an episode."""
    return Player(agent.agent, agent.normalizer, agent.agent.new_memory(num_envs))


def look(agent: PPO, player: Player, observations: Array) -> Distribution:
    """Return the distribution of an agent's actions, where it plays."""
    shown = torch.from_numpy(observations).to(agent.device)  # bytes of an image stay bytes
    return agent.agent.distribution(player(shown.to(next(agent.parameters())) if shown.is_floating_point() else shown))


def unseen(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return an environment as it is for evaluation: the market's last fifth, which no training sees.

    >>> unseen({"id": "CartPole-v1"}), unseen({"id": "lightning_grow/Market-v0"})["period"]
    ({'id': 'CartPole-v1'}, 'evaluate')
    """
    return {**env, "period": "evaluate"} if env["id"] == MARKET_ID else dict(env)


@torch.no_grad()
def equity_curve(agent: PPO, env: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the times of the market's evaluation and the equity at each, 1 at the first, of the greedy agent."""
    made = make_env(unseen(env))
    market, player = made.unwrapped, make_player(agent, 1)
    if not isinstance(market, MarketEnv):
        raise TypeError(f"only a market has an equity, {env['id']} has none.")
    observation, equity, over = made.reset(seed=0)[0], [1.0], False
    while not over:
        action = look(agent, player, observation[None]).mode
        observation, _, _, over, info = made.step(int(action))
        equity.append(float(np.exp(info["log_equity"])))
    return market.table.closes_at[market.decisions.start :][: len(equity)], np.array(equity)


class EvaluationCallback(lightning.Callback):
    """Play episodes every few epochs, and log `eval/episode_return` (their mean) and `eval/episode_return_std`.

    A `ModelCheckpoint(monitor="eval/episode_return", mode="max")` keeps the best. Training is as without it, bit for
    bit: evaluation has environments and random streams of its own.

    Args:
        every_n_epochs: Iterations between two evaluations.
        episodes: How many to play.
        greedy: Whether to take the most probable action instead of a sampled one.
        seed: Of environments and actions, the same at each evaluation.
    """

    def __init__(self, every_n_epochs: int = 10, episodes: int = 10, greedy: bool = True, seed: int = 1000) -> None:
        self.every_n_epochs, self.episodes, self.greedy, self.seed = every_n_epochs, episodes, greedy, seed

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Evaluate if it is time."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or not isinstance(pl_module, PPO):
            return
        found = evaluate(pl_module, unseen(pl_module.hparams["env"]), self.episodes, self.seed, self.greedy)
        pl_module.log_dict({"eval/episode_return": fmean(found), "eval/episode_return_std": pstdev(found)})
