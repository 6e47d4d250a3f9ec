"""Proximal policy optimization on gymnasium environments, ready to grow; registers `lightning_grow/Market-v0`."""

from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.evaluate import evaluate
from lightning_grow.rl.ppo import PPO
from lightning_grow.rl.spaces import env_spaces

__all__ = ["PPO", "ActorCritic", "env_spaces", "evaluate"]
