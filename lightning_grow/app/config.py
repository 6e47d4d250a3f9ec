"""What a run's configuration may hold: any other key, or a value of another type, is an error.

Only types are here. The values are in `conf/`, one file a choice, each key with its meaning beside it.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    """Arguments of `lightning_grow.rl.PPO`; what is null here is read off the environment."""

    _target_: str = MISSING
    state_dim: Any = None
    action_dim: Any = None
    continuous: bool | None = None
    hidden_dims: list[int] = MISSING
    activation: str = MISSING
    shared_trunk: bool = MISSING
    encoder: Any = None
    memory: Any = None
    squash_actions: bool = MISSING
    normalize_observations: bool = MISSING
    scale_rewards: bool = MISSING
    num_envs: int = MISSING
    num_steps: int = MISSING
    learning_rate: float = MISSING
    anneal_lr: bool = MISSING
    total_iterations: int | None = None
    gamma: float = MISSING
    gae_lambda: float = MISSING
    num_minibatches: int = MISSING
    update_epochs: int = MISSING
    norm_adv: bool = MISSING
    clip_coef: float = MISSING
    anneal_clip_coef: bool = MISSING
    clip_vloss: bool = MISSING
    ent_coef: float = MISSING
    vf_coef: float = MISSING
    max_grad_norm: float = MISSING
    target_kl: float | None = None
    seed: int = MISSING


@dataclass
class GymConfig:
    """Any gymnasium environment."""

    id: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class MarketConfig:
    """Arguments of the environment `lightning_grow/Market-v0`."""

    id: str = MISSING
    state_features: int = MISSING
    timeframes: list[str] = MISSING
    lookback_bars: int = MISSING
    path: str | None = None
    bars: dict[str, Any] | None = None
    period: str = MISSING
    cost: float = MISSING
    episode_bars: int = MISSING
    reward_scale: float = MISSING


class Mode(Enum):
    """What the command does."""

    train = "train"
    eval = "eval"


@dataclass
class EvaluationConfig:
    """What `mode=eval` plays."""

    episodes: int = MISSING
    seed: int = MISSING
    video: bool = MISSING
    env: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunConfig:
    """A whole run: `config.yaml` and one choice of each group."""

    name: str = MISSING
    seed: int = MISSING
    num_threads: int = MISSING
    ckpt_path: str | None = None
    run_dir: str = MISSING
    debug: bool = False
    mode: Mode = Mode.train
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    env: Any = MISSING
    strategy: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    trainer: Any = MISSING


store = ConfigStore.instance()
store.store(name="run", group="schema", node=RunConfig, package="_global_")
store.store(name="gym", group="schema/env", node=GymConfig)
store.store(name="market", group="schema/env", node=MarketConfig)
