"""An agent's life in a Trainer: its environments, random streams and counters, from setup to checkpoint to teardown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_grow.callbacks.growable import GrowableMixin
from lightning_grow.callbacks.together import together
from lightning_grow.errors import WrongSetting
from lightning_grow.rl import processes
from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.annealing import count_iterations
from lightning_grow.rl.finite import check_state
from lightning_grow.rl.load import KEY
from lightning_grow.rl.market import MARKET_ID, describe_sizes
from lightning_grow.rl.memory import State
from lightning_grow.rl.metrics import EpisodeStatistics
from lightning_grow.rl.settings import check_settings, check_trainer
from lightning_grow.rl.spaces import shown_names
from lightning_grow.rl.vector_env import VectorEnv, join_states, make_fitting


class AgentRun(GrowableMixin, LightningModule):
    """All of an agent as a LightningModule that does not depend on how it learns.

    Environments are made in `setup`, anew where a stage of growth changes them, and closed in `teardown`. Where several
    processes train, each steps its share of them; a checkpoint has all, so that any number of processes goes on.

    Attributes:
        agent: The network.
        statistics: What it has been through.
        envs: This process's environments, within a fit.
        generator: Of action noise and minibatch order, the same in every process.
        memory: What the agent remembers of the running episodes.
    """

    agent: ActorCritic

    def __init__(self) -> None:
        super().__init__()
        self.statistics = EpisodeStatistics()
        self.envs: VectorEnv | None = None
        self.generator: torch.Generator | None = None
        self.memory: State = ()
        self.run_state: dict[str, Any] | None = None
        self.metrics: dict[str, Any] = {}  # what a file of `load_with_transfer` held under that name

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

        >>> AgentRun.describe_inputs({"env": {"id": "lightning_grow/Market-v0", "state_features": 10}})
        '10 features x 3 timeframes x 20 lookback bars = 600'
        """
        env = hparams.get("env") or {}
        return describe_sizes(env) if env.get("id") == MARKET_ID else ""

    # Lightning: the run around an iteration.

    def configure_callbacks(self) -> list[Callback]:
        """None: this is what Lightning asks of a module first, and so where the Trainer's settings are checked."""
        check_trainer(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Make the environments of a fit, and check that they are the ones this network was built for.

        Raises:
            WrongSetting: If the environment's sizes are not the network's, its end unknown, or the processes cannot
                share the environments.
        """
        if stage != "fit":
            return
        if self.hparams["anneal_lr"] or self.hparams["anneal_clip_coef"]:
            self._num_iterations()  # refused here, not hours later
        if self.hparams["num_envs"] % self.trainer.world_size:
            raise WrongSetting(
                f"{self.trainer.world_size} processes cannot share num_envs={self.hparams['num_envs']} environments: "
                "take a multiple."
            )
        check_settings({**self.hparams, "num_envs": self.hparams["num_envs"] // self.trainer.world_size})
        self.envs = together(lambda: make_fitting(self.hparams))

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
        else:
            own = slice(processes.rank() * len(envs.envs), (processes.rank() + 1) * len(envs.envs))
            self.held_copies = state.get("memory", [])[own]

    @property
    def held_copies(self) -> list[dict[str, Tensor]]:
        """What is remembered in each environment, under the names of what an episode begins with: so it grows."""
        names = [] if self.agent.memory is None else [f"agent.memory.{name}" for name in self.agent.memory.names]
        return [dict(zip(names, map(Tensor.clone, parts), strict=True)) for parts in zip(*self.memory, strict=True)]

    @held_copies.setter
    def held_copies(self, copies: Sequence[Mapping[str, Tensor]]) -> None:
        envs = cast(VectorEnv, self.envs)
        self.memory = self.agent.new_memory(len(envs.envs))
        for index, held in enumerate(copies):
            for part, saved in zip(self.memory, held.values(), strict=True):
                if envs.episode_lengths[index]:  # else an episode has just begun
                    part[index] = saved

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

    def _num_iterations(self) -> int:
        return count_iterations(self.trainer, self.hparams)

    def _renew_envs(self) -> VectorEnv:
        """The environments of the hyperparameters, which a stage of growth may have changed since `setup`."""
        if self.envs is None:
            raise RuntimeError("An agent has no environments outside of fit: train it with Trainer.fit.")
        own = self.hparams["num_envs"] // processes.count()
        if (self.envs.env, len(self.envs.envs)) != (self.hparams["env"], own):
            old, self.envs = self.envs, make_fitting(self.hparams)
            old.close()
        return self.envs

    def _start_episodes(self, envs: VectorEnv) -> None:
        # Drawn, so that agents with seeds 1 and 2 do not share all environments but one.
        seed = int(torch.randint(2**31, (), generator=cast(torch.Generator, self.generator)))
        envs.reset(seed + processes.rank() * len(envs.envs))
        self.memory = self.agent.new_memory(len(envs.envs))

    def _current_run_state(self) -> dict[str, Any] | None:
        if self.envs is None or self.generator is None:
            return self.run_state
        states = processes.gather(self.envs.state_dict())
        memory = [part for copies in processes.gather(self.held_copies) for part in copies]
        return {"generator": self.generator.get_state(), "envs": join_states(states), "memory": memory}
