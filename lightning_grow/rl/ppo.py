"""PPO as a LightningModule: one training step is one iteration, a rollout and all updates on it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import Unpack

from lightning_grow.callbacks.growable import GrowableMixin
from lightning_grow.errors import WrongSetting
from lightning_grow.options import GrowthOptions
from lightning_grow.report import TransferReport
from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.annealing import annealed, count_iterations
from lightning_grow.rl.finite import check_state, check_step
from lightning_grow.rl.load import KEY, grow_from_file, transfer_options
from lightning_grow.rl.losses import explained_variance
from lightning_grow.rl.market import MARKET_ID, describe_sizes
from lightning_grow.rl.metrics import EpisodeStatistics, log_at_once
from lightning_grow.rl.normalizer import ObservationNormalizer
from lightning_grow.rl.rollout import Rollout, collect
from lightning_grow.rl.settings import check_settings, check_trainer
from lightning_grow.rl.spaces import shown_names
from lightning_grow.rl.update import Batch, prepare, update
from lightning_grow.rl.vector_env import VectorEnv, make_fitting
from lightning_grow.strategies import Strategy


class PPO(GrowableMixin, LightningModule):
    """Train an `ActorCritic` by proximal policy optimization, with CleanRL's names and defaults.

    One `training_step` is one iteration and one epoch of the Trainer: `num_steps` steps in each of `num_envs`
    environments, then `update_epochs` x `num_minibatches` optimizer steps. So `max_epochs` counts iterations and
    `trainer.global_step` optimizer steps; environment steps are logged beside it as `timesteps`.

    Environments are made in `setup`, anew where a stage of growth changes them, and closed in `teardown`. A checkpoint
    has the random streams, the counters and, for environments that offer `get_state() -> dict` and `set_state(dict)`,
    the running episodes, so that training straight on and resuming give the same bits on a CPU. Every other gymnasium
    environment starts a new episode at a resume.

    Args:
        state_dim: Length of an observation, flattened (`lightning_grow.rl.spaces.env_spaces` reads it off `env`);
            [height, width, channels] of an image, for an `encoder`.
        action_dim: Number of discrete actions (a list where several are chosen at once), or length of a continuous one.
        continuous: Gaussian actions, clipped to the environment's bounds, instead of a choice.
        env: `{"id": <gymnasium id>, **kwargs of gymnasium.make}`; CartPole-v1 when None. "frame_stack" is how many
            observations the agent is shown as one, the newest last.
        hidden_dims: Width of each hidden layer, of actor and critic alike.
        activation: elu, gelu, leaky_relu, relu, silu or tanh.
        shared_trunk: Whether actor and critic share all but their last layer.
        encoder: Of images: `{"kind": "nature_cnn" or "impala_cnn", **its settings}`; see `lightning_grow.rl.encoders`.
        normalize_observations: Whether to shift and scale observations by running statistics; not those of an encoder.
        num_envs: Environments stepped together.
        num_steps: Steps in each environment per iteration.
        learning_rate: Of Adam, at the start.
        anneal_lr: Whether the learning rate falls linearly to 0 at the last iteration.
        total_iterations: Iterations over which it falls; the Trainer's `max_epochs` (or `max_steps`) when None.
        gamma: Discount, in [0, 1].
        gae_lambda: GAE's trade of bias (0) against variance (1).
        num_minibatches: Minibatches per pass over a rollout; their sizes differ by one at most.
        update_epochs: Passes over a rollout.
        norm_adv: Whether to normalise the advantages of each minibatch.
        clip_coef: How far a ratio may leave 1 before its gradient stops.
        clip_vloss: Whether to clip the change of values by `clip_coef` too.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the value loss.
        max_grad_norm: Gradients are clipped to this norm.
        target_kl: No further pass over a rollout once the approximate KL exceeds this; None never stops.
        seed: Of environments, action noise and minibatch order. Weights are drawn from torch's global generator, as in
            every module: call `lightning.seed_everything` before.

    Raises:
        ValueError: If there is no such activation.
        WrongSetting: If a setting is out of its range, or a minibatch would be too small.

    A reward, an observation, a loss or a gradient that is not finite ends the run with `NotFinite` before it is learnt
    from, and what is not finite is never saved.

    Logged once an iteration: `episode_return` and `episode_length` (means of the last 100 episodes, NaN before the
    first has ended), `timesteps`, `episodes`, `policy_loss`, `value_loss`, `entropy`, `approx_kl`, `clipfrac`,
    `explained_variance`, `learning_rate`.

    References: Schulman et al., "Proximal policy optimization algorithms" (2017); Huang et al., "The 37 implementation
    details of PPO" (2022).

    >>> agent = PPO(state_dim=4, action_dim=2, env={"id": "CartPole-v1"}, hidden_dims=[8])
    >>> logits, value = agent(agent.example_input_array)
    >>> logits.shape, value.shape
    (torch.Size([7, 2]), torch.Size([7, 1]))
    """

    def __init__(
        self,
        state_dim: int | Sequence[int],
        action_dim: int | Sequence[int],
        continuous: bool = False,
        env: Mapping[str, Any] | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "tanh",
        shared_trunk: bool = False,
        encoder: Mapping[str, Any] | None = None,
        normalize_observations: bool = True,
        num_envs: int = 4,
        num_steps: int = 128,
        learning_rate: float = 2.5e-4,
        anneal_lr: bool = True,
        total_iterations: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        num_minibatches: int = 4,
        update_epochs: int = 4,
        norm_adv: bool = True,
        clip_coef: float = 0.2,
        clip_vloss: bool = True,
        ent_coef: float = 0.01,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        target_kl: float | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        env, hidden_dims = dict(env or {"id": "CartPole-v1"}), list(hidden_dims)
        state_dim, action_dim = (size if isinstance(size, int) else list(size) for size in (state_dim, action_dim))
        encoder = None if encoder is None else dict(encoder)
        self.save_hyperparameters()
        check_settings(self.hparams)
        self.automatic_optimization = False
        self.agent = ActorCritic(state_dim, action_dim, continuous, hidden_dims, activation, shared_trunk, encoder)
        is_normalized = normalize_observations and isinstance(state_dim, int)
        self.normalizer = ObservationNormalizer(cast(int, state_dim)) if is_normalized else nn.Identity()
        self.statistics = EpisodeStatistics()
        # Real values even under torch.device("meta"), and the same for every agent: growth is verified on them.
        fixed = torch.Generator().manual_seed(0)
        self.example_input_array = torch.randn(7, *np.atleast_1d(state_dim), generator=fixed, device="cpu")
        self.envs: VectorEnv | None = None
        self.generator: torch.Generator | None = None
        self.run_state: dict[str, Any] | None = None
        self.metrics: dict[str, Any] = {}  # what a file of `load_with_transfer` held under that name

    def forward(self, observations: Tensor) -> tuple[Tensor, ...]:
        """Return (logits, value), the logits of each part and the value, or (mean, value, log_std).

        Args:
            observations: As the environment gives them, `(batch, state_dim)`.

        Returns:
            `(batch, action_dim)`, `(batch, 1)` and, if there is one, `(action_dim,)`.
        """
        outputs: tuple[Tensor, ...] = self.agent(self.normalizer(observations))
        return outputs

    @property
    def timesteps(self) -> int:
        """Environment steps since the agent was new, over all environments."""
        return int(self.statistics.timesteps)

    @property
    def episodes(self) -> int:
        """Episodes that ended since the agent was new."""
        return int(self.statistics.episodes)

    # Growth: what the inputs are.

    @property
    def input_names(self) -> list[str] | None:
        """Names of the observation's entries, where the environment or its space has them: see `observation_names`."""
        env, size = self.hparams["env"], self.hparams["state_dim"]
        if self.envs is not None and self.envs.env == env:
            return self.envs.names
        names = shown_names(env, self.agent.encoder is not None)
        return names if names and len(names) == (size if isinstance(size, int) else size[-1]) else None

    @staticmethod
    def describe_inputs(hparams: dict[str, Any]) -> str:
        """Say how an agent's input size comes about from its hyperparameters; nothing but for the market.

        >>> PPO.describe_inputs({"env": {"id": "lightning_grow/Market-v0", "state_features": 10}})
        '10 features x 3 timeframes x 20 lookback bars = 600'
        """
        env = hparams.get("env") or {}
        return describe_sizes(env) if env.get("id") == MARKET_ID else ""

    def load_with_transfer(
        self,
        path: str | Path,
        transfer_strategy: str | Strategy | None = None,
        device: str | torch.device | None = None,
        **options: Unpack[GrowthOptions],
    ) -> TransferReport:
        """Grow the agent in a file into this one, in place, and take over its counters and its `metrics`.

        The optimizer is not read, and environments start anew: to resume a run, give `Trainer.fit` its `ckpt_path`.

        Args:
            path: A Lightning checkpoint of a PPO, or a plain file with the state dicts of an actor and a critic, as
                `lightning_grow.rl.load.read_agent` describes.
            transfer_strategy: Another name for the option `strategy`.
            device: Where this agent is moved to first; None leaves it where it is.
            **options: See `GrowthOptions`. The source's names are those in the file: `rename={"actor": "pi.network"}`.

        Returns:
            What was done to each tensor.

        Raises:
            CheckpointError: If the file cannot be read safely, or holds no agent.
            RefusedGrowth: If this agent is not a grown version of that one; nothing was changed.
            UnknownStrategy: If there is no such strategy.
            WrongSetting: If an option has a value that nothing can be made of.
            TypeError: If there is no such option, or two strategies.
        """
        checked = transfer_options(options, transfer_strategy)
        report, own = grow_from_file(self if device is None else self.to(device), path, checked)
        self.statistics.restore(own.get("statistics", {}))
        self.metrics = own.get("metrics", {})
        return report

    # Lightning: the run around an iteration.

    def configure_callbacks(self) -> list[Callback]:
        """None: this is what Lightning asks of a module first, and so where the Trainer's settings are checked."""
        check_trainer(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Make the environments of a fit, and check that they are the ones this network was built for.

        Raises:
            WrongSetting: If the environment's sizes are not the network's, the run is distributed, or its end unknown.
        """
        if stage != "fit":
            return
        if self.trainer.world_size > 1:
            raise WrongSetting(f"PPO runs in one process; the Trainer has {self.trainer.world_size}. Use devices=1.")
        if self.hparams["anneal_lr"]:
            self._num_iterations()  # refused here, not hours later
        self.envs = make_fitting(self.hparams)

    def on_train_start(self) -> None:
        """Start episodes and random streams, or go on with those of the checkpoint (loaded after `setup`)."""
        envs, state = self._renew_envs(), self.run_state
        self.generator = torch.Generator().manual_seed(self.hparams["seed"])
        if state is not None:
            self.generator.set_state(state["generator"])
        if state is None or not envs.load_state_dict(state["envs"]):
            if state is not None:
                rank_zero_info("The environments are not those of the checkpoint: their episodes start anew.")
            self._start_episodes(envs)

    def teardown(self, stage: str) -> None:
        """Close the environments, and remember where they were for a later checkpoint or fit."""
        if self.envs is not None:
            self.run_state = self._current_run_state()
            self.envs.close()
            self.envs = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, random streams and environments, in types that load with `weights_only=True`."""
        super().on_save_checkpoint(checkpoint)
        check_state(self)
        state, run = self.statistics.state(), self._current_run_state()
        checkpoint[KEY] = {"statistics": state, "run": run, "metrics": self.metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what `on_save_checkpoint` added, if it is there."""
        super().on_load_checkpoint(checkpoint)
        if KEY in checkpoint:
            self.statistics.restore(checkpoint[KEY]["statistics"])
            self.run_state, self.metrics = checkpoint[KEY]["run"], checkpoint[KEY].get("metrics", {})

    def train_dataloader(self) -> Iterable[int]:
        """One empty batch: an epoch is one iteration, and the data comes from the environments."""
        return range(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with epsilon 1e-5 (fused), and the linear annealing, stepped once an iteration."""
        adam = torch.optim.Adam(self.named_parameters(), lr=self.hparams["learning_rate"], eps=1e-5, fused=True)
        if not self.hparams["anneal_lr"]:
            return adam
        return [adam], [LambdaLR(adam, lambda step: annealed(step, self.current_epoch, self._num_iterations()))]

    # PPO itself.

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Run one iteration: collect a rollout, update on it, and log."""
        old, envs, generator = self.envs, self._renew_envs(), cast(torch.Generator, self.generator)
        if envs is not old:
            self._start_episodes(envs)
        rollout = collect(envs, self.agent, self.normalizer, self.hparams["num_steps"], generator)
        samples = self.prepare(rollout)
        diagnostics = self.update(samples, generator)
        if isinstance(self.normalizer, ObservationNormalizer):
            self.normalizer.update(rollout.observations[:-1])
        self.statistics.update(rollout.episode_returns, rollout.episode_lengths, len(samples.returns))
        diagnostics |= {
            "explained_variance": explained_variance(samples.values, samples.returns),
            "learning_rate": self._optimizer.param_groups[0]["lr"],
        }
        if self.hparams["anneal_lr"]:
            cast(LambdaLR, self.lr_schedulers()).step()
        log_at_once(self, diagnostics | self.statistics.compute())

    def prepare(self, rollout: Rollout) -> Batch:
        """Add log-probabilities, values, advantages and returns to a rollout, and flatten it."""
        return prepare(rollout, self.agent, self.normalizer, self.hparams["gamma"], self.hparams["gae_lambda"])

    def update(self, samples: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Take all optimizer steps of an iteration; return the mean of each diagnostic over them."""
        optimizer, parameters = self._optimizer, list(self.agent.parameters())

        def take_step(loss: Tensor) -> None:
            for parameter in parameters:
                parameter.grad = None
            self.manual_backward(loss)
            norm = nn.utils.clip_grad_norm_(parameters, self.hparams["max_grad_norm"])
            check_step(loss, norm, self.trainer.global_step)
            optimizer.step()

        return update(self.agent, samples, self.hparams, generator, take_step)

    def _num_iterations(self) -> int:
        return count_iterations(self.trainer, self.hparams)

    @property
    def _optimizer(self) -> LightningOptimizer:
        return cast(LightningOptimizer, self.optimizers())

    def _renew_envs(self) -> VectorEnv:
        """The environments of the hyperparameters, which a stage of growth may have changed since `setup`."""
        if self.envs is None:
            raise RuntimeError("PPO has no environments outside of fit: train it with Trainer.fit.")
        if (self.envs.env, len(self.envs.envs)) != (self.hparams["env"], self.hparams["num_envs"]):
            old, self.envs = self.envs, make_fitting(self.hparams)
            old.close()
        return self.envs

    def _start_episodes(self, envs: VectorEnv) -> None:
        # Drawn, so that agents with seeds 1 and 2 do not share all environments but one.
        envs.reset(int(torch.randint(2**31, (), generator=self.generator)))

    def _current_run_state(self) -> dict[str, Any] | None:
        if self.envs is None or self.generator is None:
            return self.run_state
        return {"generator": self.generator.get_state(), "envs": self.envs.state_dict()}
