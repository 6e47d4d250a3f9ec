"""PPO as a LightningModule: one training step is one iteration, a rollout and all updates on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import Unpack

from lightning_grow.callbacks.together import together
from lightning_grow.options import GrowthOptions
from lightning_grow.report import TransferReport
from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.annealing import annealed
from lightning_grow.rl.finite import check_step
from lightning_grow.rl.load import grow_from_file, transfer_options
from lightning_grow.rl.losses import explained_variance
from lightning_grow.rl.metrics import log_at_once
from lightning_grow.rl.normalizer import ObservationNormalizer
from lightning_grow.rl.processes import average, count, gather, share_of
from lightning_grow.rl.reward_scaling import RewardScaler
from lightning_grow.rl.rollout import Rollout, collect
from lightning_grow.rl.run import AgentRun
from lightning_grow.rl.settings import check_settings
from lightning_grow.rl.update import Batch, prepare, update
from lightning_grow.strategies import Strategy


class PPO(AgentRun):
    """Train an `ActorCritic` by proximal policy optimization, with CleanRL's names and defaults.

    One `training_step` is one iteration and one epoch of the Trainer: `num_steps` steps in each of `num_envs`
    environments, then `update_epochs` x `num_minibatches` optimizer steps. So `max_epochs` counts iterations and
    `trainer.global_step` optimizer steps; environment steps are logged beside it as `timesteps`.

    A checkpoint has the random streams, the counters and the running episodes of environments that are stepped as
    arrays (CartPole, Pendulum, the market) or offer `get_state() -> dict` and `set_state(dict)`, so that training
    straight on and resuming give the same bits on a CPU. Every other one starts a new episode at a resume.

    Several processes (`strategy="ddp"`) share the environments: two with `num_envs=8` step four each, see the same
    observations and take the same noise as one with eight, and average their gradients. Minibatches are shares of each
    process's samples, so with more than one of them the bits are others.

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
        memory: Of an episode: `{"kind": "lstm" or "gru", "hidden_size": 128}`, before the hidden layers; see
            `lightning_grow.rl.memory`. A minibatch is then made of whole environments.
        squash_actions: Whether continuous actions go through tanh into the environment's bounds, not clipped to them.
        normalize_observations: Whether to shift and scale observations by running statistics; not those of an encoder.
        scale_rewards: Whether to divide rewards by the running deviation of the discounted return.
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
        anneal_clip_coef: Whether `clip_coef` falls linearly to 0 over the run, as RL Zoo's `lin_0.2` does.
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
        memory: Mapping[str, Any] | None = None,
        squash_actions: bool = False,
        normalize_observations: bool = True,
        scale_rewards: bool = False,
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
        anneal_clip_coef: bool = False,
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
        encoder, memory = (None if settings is None else dict(settings) for settings in (encoder, memory))
        self.save_hyperparameters()
        check_settings(self.hparams)
        self.automatic_optimization = False
        architecture = (hidden_dims, activation, shared_trunk, encoder, memory, squash_actions)
        self.agent = ActorCritic(state_dim, action_dim, continuous, *architecture)
        is_normalized = normalize_observations and isinstance(state_dim, int)
        self.normalizer = ObservationNormalizer(cast(int, state_dim)) if is_normalized else nn.Identity()
        self.reward_scaler = RewardScaler(gamma) if scale_rewards else None
        # Real values even under torch.device("meta"), and the same for every agent: growth is verified on them.
        fixed = torch.Generator().manual_seed(0)
        leading = (7,) if memory is None else (7, 5)
        self.example_input_array = torch.randn(*leading, *np.atleast_1d(state_dim), generator=fixed, device="cpu")

    def forward(self, observations: Tensor) -> tuple[Tensor, ...]:
        """Return (logits, value), the logits of each part and the value, or (mean, value, log_std).

        Args:
            observations: As the environment gives them, `(batch, state_dim)`; with a memory those of whole episodes,
                `(batch, steps, state_dim)`.

        Returns:
            `(batch, action_dim)`, `(batch, 1)` and, if there is one, `(action_dim,)`; with a memory of every step.
        """
        outputs: tuple[Tensor, ...] = self.agent(self.normalizer(observations))
        return outputs

    def load_with_transfer(
        self,
        path: str | Path,
        transfer_strategy: str | Strategy | None = None,
        device: str | torch.device | None = None,
        vec_normalize: str | Path | None = None,
        **options: Unpack[GrowthOptions],
    ) -> TransferReport:
        """Grow the agent in a file into this one, in place, and take over its counters and its `metrics`.

        The optimizer is not read, and environments start anew: to resume a run, give `Trainer.fit` its `ckpt_path`.

        Args:
            path: A Lightning checkpoint of a PPO, the zip of a PPO or A2C of Stable-Baselines3 (with an `MlpPolicy`),
                or a plain file with the state dicts of an actor and a critic, as `lightning_grow.rl.load.read_agent`
                describes.
            transfer_strategy: Another name for the option `strategy`.
            device: Where this agent is moved to first; None leaves it where it is.
            vec_normalize: What Stable-Baselines3's `VecNormalize.save` wrote, for the statistics of observations.
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
        report, own = grow_from_file(self if device is None else self.to(device), path, checked, vec_normalize)
        self.statistics.restore(own.get("statistics", {}))
        self.metrics = own.get("metrics", {})
        return report

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with epsilon 1e-5 (fused), and the linear annealing, stepped once an iteration."""
        adam = torch.optim.Adam(self.named_parameters(), lr=self.hparams["learning_rate"], eps=1e-5, fused=True)
        if not self.hparams["anneal_lr"]:
            return adam
        return [adam], [LambdaLR(adam, lambda step: annealed(step, self.current_epoch, self._num_iterations()))]

    def on_train_start(self) -> None:
        """Start or go on, the returns under way included."""
        super().on_train_start()
        if self.reward_scaler is not None and (state := self.run_state) is not None and "under_way" in state:
            self.reward_scaler.under_way = share_of(state["under_way"], 0).to(self.device)

    def _current_run_state(self) -> dict[str, Any] | None:
        state = super()._current_run_state()
        if self.reward_scaler is None or self.reward_scaler.under_way is None or state is None:
            return state
        return state | {"under_way": torch.cat(gather(self.reward_scaler.under_way.cpu()))}

    # PPO itself.

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Run one iteration: collect a rollout, update on it, and log."""
        old, envs, generator = self.envs, self._renew_envs(), cast(torch.Generator, self.generator)
        if envs is not old:
            self._start_episodes(envs)
        num_steps = self.hparams["num_steps"]
        rollout = together(lambda: collect(envs, self.agent, self.normalizer, num_steps, generator, self.memory))
        if self.reward_scaler is not None:
            rollout = self.reward_scaler.scale(rollout)
        samples = self.prepare(rollout)
        diagnostics = self.update(samples, generator)
        if isinstance(self.normalizer, ObservationNormalizer):
            self.normalizer.update(rollout.observations[:-1])
        self.statistics.update(*rollout.all_episodes(), samples.returns.numel() * count())
        diagnostics |= {
            "explained_variance": average(explained_variance(samples.values, samples.returns)),
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

        settings = dict(self.hparams)
        if settings["anneal_clip_coef"]:
            settings["clip_coef"] *= max(1 - self.current_epoch / self._num_iterations(), 1e-8)
        return update(self.agent, samples, settings, generator, take_step)

    @property
    def _optimizer(self) -> LightningOptimizer:
        return cast(LightningOptimizer, self.optimizers())
