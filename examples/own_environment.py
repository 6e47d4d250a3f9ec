"""PPO on an environment of one's own: registered here, named on the command line.

    lightning-grow env.id=own_environment:Corridor-v0 +env.kwargs.length=5 trainer.max_epochs=6
    lightning-grow env.id=own_environment:Corridor-v0 +env.kwargs.length=5 trainer.max_epochs=12 \
        model.hidden_dims=[64,64] ckpt_path=outputs/.../checkpoints/last.ckpt

run in this folder; `python own_environment.py` does both from code.
"""

import gymnasium
import lightning
import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_grow import ArchTransfer
from lightning_grow.rl import PPO


class Corridor(gymnasium.Env):
    """Walk to the right end; every step costs.

    Args:
        length: Of the corridor.
    """

    def __init__(self, length: int = 5) -> None:
        self.length = length
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def _see(self) -> np.ndarray:
        return np.array([self.place / self.length, self.steps / (4 * self.length)], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        return self._see(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place, self.steps = max(0, self.place + (1 if action else -1)), self.steps + 1
        arrived = self.place == self.length
        return self._see(), 1.0 if arrived else -0.05, arrived, self.steps == 4 * self.length, {}


gymnasium.register("Corridor-v0", Corridor)


def train(hidden_dims: list[int], iterations: int, ckpt_path: str | None) -> float:
    lightning.seed_everything(1, verbose=False)
    env = {"id": "Corridor-v0", "length": 5}
    agent = PPO(state_dim=2, action_dim=2, hidden_dims=hidden_dims, env=env, num_envs=4, learning_rate=3e-3)
    saving = ModelCheckpoint("own_environment", save_last=True, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_epochs=iterations, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ArchTransfer(), saving],
    )  # fmt: skip
    trainer.fit(agent, ckpt_path=ckpt_path, weights_only=True)
    return trainer.callback_metrics["episode_return"].item()


def main() -> None:
    print(f"small agent: a return of {train([16, 16], 10, None):.2f}")
    print(f"larger agent, from there on: {train([64, 64], 20, 'own_environment/last.ckpt'):.2f}")


if __name__ == "__main__":
    main()
