"""Proximal policy optimization on gymnasium environments, ready to grow; registers `lightning_grow/Market-v0`."""

from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.evaluate import EvaluationCallback, evaluate
from lightning_grow.rl.ppo import PPO
from lightning_grow.rl.spaces import env_spaces

__all__ = ["PPO", "ActorCritic", "EvaluationCallback", "env_spaces", "evaluate"]
