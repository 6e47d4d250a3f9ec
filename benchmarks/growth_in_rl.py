"""Measure what growing does to an agent's episode return: before, right after, and some iterations later.

Every strategy resumes the same checkpoint of a small agent: on the market, on CartPole, with eyes (MinAtar Breakout)
and with a memory (Recall). So do three controls: no growth with the optimizer kept, no growth with a fresh one, and
what one would do by hand, the old weights copied into the first rows and columns of a newly initialised network.

Run `pip install 'lightning-grow[benchmarks]'` and `python benchmarks/growth_in_rl.py` (about 15 minutes on one core);
it writes benchmarks/results/growth_in_rl.md and .json.
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
from lightning_grow.rl.evaluate import evaluate, look, make_envs, make_player
from lightning_grow.rl.load import KEY
from lightning_grow.rl.spaces import env_spaces

RESULTS = Path(__file__).parent / "results"
GROWING = ("preserve", "net2wider", "copy_and_extend", "interpolate", "zero_pad", "random")
BY_HAND = "copied by hand into a new network"
CONTROLS = ("no growth, optimizer kept", "no growth, optimizer reset", BY_HAND)
SOME = ("preserve", "net2wider", "copy_and_extend", BY_HAND, CONTROLS[0])
LEARNING: dict[str, Any] = {"num_envs": 8, "num_steps": 128, "learning_rate": 1e-3, "anneal_lr": False}


def eyes(filters: int, features: int) -> dict[str, Any]:
    """One convolution, as MinAtar's authors have it."""
    return {"kind": "nature_cnn", "channels": [filters], "kernels": [3], "strides": [1], "features": features}


RUNS: dict[str, dict[str, Any]] = {
    "market": {
        "env": {"id": "lightning_grow/Market-v0"},
        "small": {"hidden_dims": [128, 128, 64]},
        "large": {"hidden_dims": [256, 256, 128]},
        "before": 25,
        "after": 12,
    },
    "cartpole": {
        "env": {"id": "CartPole-v1"},
        "small": {"hidden_dims": [64, 64]},
        "large": {"hidden_dims": [256, 256]},
        "before": 25,
        "after": 20,
    },
    "breakout": {
        "env": {"id": "MinAtar/Breakout-v1"},
        "learning": {"num_envs": 32, "num_minibatches": 8, "learning_rate": 2.5e-3, "activation": "relu"},
        "small": {"encoder": eyes(8, 64), "hidden_dims": [32]},
        "large": {"encoder": eyes(16, 128), "hidden_dims": [64]},
        "before": 40,
        "after": 12,
        "conditions": SOME,
    },
    "recall": {
        "env": {"id": "lightning_grow/Recall-v0"},
        "learning": {"num_envs": 16, "num_steps": 64, "learning_rate": 3e-3, "normalize_observations": False},
        "small": {"memory": {"kind": "lstm", "hidden_size": 32}, "hidden_dims": [32]},
        "large": {"memory": {"kind": "lstm", "hidden_size": 64}, "hidden_dims": [64]},
        "before": 100,
        "after": 12,
        "conditions": SOME,
    },
}
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


def make_agent(run: dict[str, Any], size: str, seed: int) -> PPO:
    """A small or a large agent with weights of its own seed."""
    lightning.seed_everything(seed, verbose=False)
    sizes = env_spaces(run["env"], images="encoder" in run[size])
    return PPO(*sizes, env=run["env"], seed=seed, **LEARNING | run.get("learning", {}) | run[size])


def without_optimizer(path: Path) -> Path:
    """The checkpoint with a fresh optimizer state."""
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["optimizer_states"]:
        state["state"] = {}
    other = path.with_name("reset.ckpt")
    torch.save(checkpoint, other)
    return other


def first_copied(old: dict[str, torch.Tensor], agent: PPO) -> dict[str, torch.Tensor]:
    """An agent's state as it is made, but for old tensors in the first rows and columns."""
    state = agent.state_dict()
    for name, tensor in old.items():
        state[name][tuple(map(slice, tensor.shape))] = tensor
    return state


def by_hand(path: Path, agent: PPO) -> Path:
    """A checkpoint of a large agent as it is made, but for the small one's weights in the first rows and columns."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = state = first_copied(checkpoint["state_dict"], agent)
    checkpoint[KEY]["run"]["memory"] = [
        {name: torch.cat([part, part.new_zeros(len(state[name]) - len(part))]) for name, part in held.items()}
        for held in checkpoint[KEY]["run"]["memory"]
    ]
    for optimizer in checkpoint["optimizer_states"]:
        optimizer["state"] = {}
    other = path.with_name("by_hand.ckpt")
    torch.save(checkpoint, other)
    return other


@torch.no_grad()
def divergence(small: PPO, large: PPO, env: dict[str, Any]) -> float:
    """KL(small || large) of the action distributions, averaged over the states of random play."""
    envs, generator = make_envs(small, env, 8), torch.Generator().manual_seed(0)
    envs.reset(0)
    total, players = [], [make_player(agent, 8) for agent in (small, large)]
    for _ in range(64):
        old, new = (
            look(agent, p, envs.observations).log_probs for agent, p in zip((small, large), players, strict=True)
        )
        total.append(float((old.exp() * (old - new)).sum(-1).mean()))
        _, terminated, truncated, _ = envs.step(torch.randint(old.shape[-1], (8,), generator=generator).numpy())
        for player in players:
            player.forget(terminated | truncated)
    envs.close()
    return statistics.fmean(total)


def measure(name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """All conditions for one small agent."""
    run = RUNS[name]
    small = make_agent(run, "small", seed)
    path = folder / "small.ckpt"
    train(small, run["before"], folder, [], None).save_checkpoint(path)
    before = mean_return(small, run["env"])
    rows = []
    for condition in run.get("conditions", (*CONTROLS, *GROWING)):
        grows, is_large = condition in GROWING, condition in (*GROWING, BY_HAND)
        agent = make_agent(run, "large" if is_large else "small", seed + 100)
        watch = Watch(run["env"])
        start = {
            CONTROLS[1]: without_optimizer(path),
            BY_HAND: by_hand(path, make_agent(run, "large", seed + 100)),
        }.get(condition, path)
        growing: list[Callback] = [ArchTransfer(condition)] if grows else []
        report = folder / "growth_report.json"
        report.unlink(missing_ok=True)
        train(agent, run["before"] + run["after"], folder, [*growing, watch], start)
        error = json.loads(report.read_text())["max_output_error"] if grows else float("nan")
        fresh = make_agent(run, "large", seed + 100)
        if grows:
            fresh.load_with_transfer(path, transfer_strategy=condition)
        elif is_large:
            fresh.load_state_dict(torch.load(start, weights_only=True)["state_dict"])
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
                "KL": divergence(small, fresh, run["env"]) if is_large else 0.0,
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
            f"**{name}**, {sizes(run['small'])} -> {sizes(run['large'])}, {run['before']} iterations before and "
            f"{run['after']} after, return of {EPISODES} sampled episodes; mean (lowest to highest) of {seeds} seeds.",
            "",
            "| strategy | before | at growth | worst after | at the end | KL at growth | output error |",
            "|---|---|---|---|---|---|---|",
        ]
        for condition in run.get("conditions", (*GROWING, *CONTROLS)):
            own = [row for row in of_run if row["condition"] == condition]
            spread = " | ".join(
                _spread([row[key] for row in own]) for key in ("before", "at growth", "worst after", "at the end")
            )
            small = " | ".join(
                f"{max(row[key] for row in own):.1e}".replace("nan", "") for key in ("KL", "output error")
            )
            lines.append(f"| {condition} | {spread} | {small} |")
        lines.append("")
    return "\n".join(lines)


def sizes(settings: dict[str, Any]) -> str:
    """What grows, in words."""
    eyes, memory = settings.get("encoder"), settings.get("memory")
    parts = [f"{eyes['channels'][0]} filters, {eyes['features']} features"] if eyes else []
    parts += [f"LSTM of {memory['hidden_size']}"] if memory else []
    return ", ".join([*parts, str(settings["hidden_dims"])])


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
