"""Proximal policy optimization on gymnasium environments, ready to grow: `pip install 'lightning-grow[rl]'`.

Registers `lightning_grow/Market-v0` and `lightning_grow/Recall-v0`.
"""

from lightning_grow.extras import extra

with extra("rl"):
    from lightning_grow.rl import recall as recall
    from lightning_grow.rl.actor_critic import ActorCritic
    from lightning_grow.rl.evaluate import EvaluationCallback, evaluate
    from lightning_grow.rl.ppo import PPO
    from lightning_grow.rl.spaces import env_spaces

__all__ = ["PPO", "ActorCritic", "EvaluationCallback", "env_spaces", "evaluate"]
