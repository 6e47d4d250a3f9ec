"""Measure what growing does to an agent's episode return: before, right after, and some iterations later.

Every strategy resumes the same checkpoint of a small agent, as do two controls that do not grow: one goes on with its
optimizer, one with a fresh one. Run `python benchmarks/growth_in_rl.py` (about 15 minutes on one core); it writes
benchmarks/results/growth_in_rl.md and .json.
"""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from lightning_grow import ArchTransfer
from lightning_grow.rl import PPO
from lightning_grow.rl.evaluate import evaluate
from lightning_grow.rl.spaces import env_spaces
from lightning_grow.rl.vector_env import VectorEnv

RESULTS = Path(__file__).parent / "results"
GROWING = ("preserve", "net2wider", "copy_and_extend", "interpolate", "zero_pad", "random")
CONTROLS = ("no growth, optimizer kept", "no growth, optimizer reset")
RUNS: dict[str, dict[str, Any]] = {
    "market": {
        "env": {"id": "lightning_grow/Market-v0"},
        "small": [128, 128, 64],
        "large": [256, 256, 128],
        "before": 25,
        "after": 12,
    },
    "cartpole": {"env": {"id": "CartPole-v1"}, "small": [64, 64], "large": [256, 256], "before": 25, "after": 20},
}
LEARNING: dict[str, Any] = {"num_envs": 8, "num_steps": 128, "learning_rate": 1e-3, "anneal_lr": False}
EPISODES = 40


class Watch(Callback):
    """Evaluate the agent right after the growth, and keep the training return of every iteration after it."""

    def __init__(self, env: dict[str, Any]) -> None:
        self.env, self.at_growth, self.returns = env, 0.0, []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: PPO) -> None:
        """After the weights are loaded, before the first step."""
        self.at_growth = mean_return(pl_module, self.env)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: PPO) -> None:
        """Every fourth iteration: what the agent can do by now."""
        if trainer.current_epoch % 4 == 3:
            self.returns.append(mean_return(pl_module, self.env))


def mean_return(agent: PPO, env: dict[str, Any]) -> float:
    """The mean return of sampled episodes, the same ones at every call."""
    return statistics.fmean(evaluate(agent, env, EPISODES, seed=1000))


def train(
    agent: PPO, epochs: int, folder: Path, callbacks: list[Callback], ckpt_path: Path | None
) -> lightning.Trainer:
    """Train to `epochs` in all."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(agent, ckpt_path=ckpt_path)
    return trainer


def make_agent(run: dict[str, Any], hidden_dims: list[int], seed: int) -> PPO:
    """An agent with weights of its own seed."""
    lightning.seed_everything(seed, verbose=False)
    state_dim, action_dim, continuous = env_spaces(run["env"])
    return PPO(state_dim, action_dim, continuous, run["env"], hidden_dims, seed=seed, **LEARNING)


def without_optimizer(path: Path) -> Path:
    """The checkpoint with a fresh optimizer state."""
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["optimizer_states"]:
        state["state"] = {}
    other = path.with_name("reset.ckpt")
    torch.save(checkpoint, other)
    return other


@torch.no_grad()
def divergence(small: PPO, large: PPO, env: dict[str, Any]) -> float:
    """KL(small || large) of the action distributions, averaged over the states of random play."""
    envs, generator = VectorEnv(env, 8), torch.Generator().manual_seed(0)
    envs.reset(0)
    total = []
    for _ in range(64):
        states = torch.from_numpy(envs.observations)
        old, new = (torch.log_softmax(agent(states)[0], -1) for agent in (small, large))
        total.append(float((old.exp() * (old - new)).sum(-1).mean()))
        envs.step(torch.randint(old.shape[-1], (8,), generator=generator).numpy())
    envs.close()
    return statistics.fmean(total)


def measure(name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """All conditions for one small agent."""
    run = RUNS[name]
    small = make_agent(run, run["small"], seed)
    path = folder / "small.ckpt"
    train(small, run["before"], folder, [], None).save_checkpoint(path)
    before = mean_return(small, run["env"])
    rows = []
    for condition in (*CONTROLS, *GROWING):
        grows = condition in GROWING
        agent = make_agent(run, run["large"] if grows else run["small"], seed + 100)
        watch = Watch(run["env"])
        start = without_optimizer(path) if condition == CONTROLS[1] else path
        growing: list[Callback] = [ArchTransfer(condition)] if grows else []
        report = folder / "growth_report.json"
        report.unlink(missing_ok=True)
        train(agent, run["before"] + run["after"], folder, [*growing, watch], start)
        error = json.loads(report.read_text())["max_output_error"] if grows else 0.0
        fresh = make_agent(run, run["large"], seed + 100)
        if grows:
            fresh.load_with_transfer(path, transfer_strategy=condition)
        rows.append(
            {
                "run": name,
                "seed": seed,
                "condition": condition,
                "before": before,
                "at growth": watch.at_growth,
                "worst after": min(watch.returns),
                "at the end": watch.returns[-1],
                "output error": error,
                "KL": divergence(small, fresh, run["env"]) if grows else 0.0,
            }
        )
        print(rows[-1], flush=True)
    return rows


def as_markdown(rows: list[dict[str, Any]], seeds: int) -> str:
    """Mean and range over the seeds, per environment and condition."""
    lines = []
    for name, run in RUNS.items():
        of_run = [row for row in rows if row["run"] == name]
        if not of_run:
            continue
        lines += [
            f"**{name}**, {run['small']} -> {run['large']}, {run['before']} iterations before and {run['after']} "
            f"after, mean return of {EPISODES} sampled episodes; mean (lowest to highest) of {seeds} seeds.",
            "",
            "| strategy | before | at growth | worst after | at the end | KL at growth | output error |",
            "|---|---|---|---|---|---|---|",
        ]
        for condition in (*GROWING, *CONTROLS):
            own = [row for row in of_run if row["condition"] == condition]
            spread = " | ".join(
                _spread([row[key] for row in own]) for key in ("before", "at growth", "worst after", "at the end")
            )
            small = " | ".join(f"{max(row[key] for row in own):.1e}" for key in ("KL", "output error"))
            lines.append(f"| {condition} | {spread} | {small} |")
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="small agents per environment")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), help="environments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    for name in options.runs:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(name, seed, Path(folder))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth_in_rl.json").write_text(json.dumps(rows, indent=1))
    table = as_markdown(rows, options.seeds)
    (RESULTS / "growth_in_rl.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
