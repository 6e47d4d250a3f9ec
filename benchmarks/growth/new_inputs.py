"""What do new inputs cost a trained agent? On the market, 600 inputs become 900 and then 960, in three ways.

Run `python benchmarks/growth/new_inputs.py` (about 5 minutes on one core); it prints its table and writes
results/new_inputs.md and .json.

With five more features a bar, each old input has another place among the new ones. What is common: the old weights
copied into the first columns of the new layer; a bit better: by name, the new columns as they are initialised; ours: by
name, and new inputs are read with 0.
"""

import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from paired import RESULTS
from rich.progress import track

sys.path.append(str(Path(__file__).parents[1]))
from growth_in_rl import first_copied, make_agent, mean_return, train

FEATURES = (10, 15, 16)
WAYS = ("copied to the first columns", "by name, new columns as initialised", "lightning_grow: by name, read with 0")
BEFORE, AFTER, SEEDS = 25, 10, (1, 2, 3)


def run_of(features: int) -> dict[str, Any]:
    """An agent on so many features of 3 x 20 bars."""
    env = {"id": "lightning_grow/Market-v0", "state_features": features}
    return {"env": env, "agent": {"hidden_dims": [128, 128, 64]}}


def widened(way: str, path: Path, features: int, seed: int) -> Any:
    """The agent with more inputs."""
    agent, fresh = (make_agent(run_of(features), "agent", seed + 100) for _ in range(2))
    old = torch.load(path, weights_only=True)["state_dict"]
    if way == WAYS[0]:
        agent.load_state_dict(first_copied(old, agent))
        return agent
    agent.load_with_transfer(path, allow_input_growth=True)
    if way == WAYS[1]:
        small = make_agent(run_of(old["agent.actor.0.weight"].shape[1] // 60), "agent", seed)
        new = [number for number, name in enumerate(agent.input_names) if name not in set(small.input_names)]
        with torch.no_grad():
            for layer in ("agent.actor.0", "agent.critic.0"):
                agent.get_submodule(layer).weight[:, new] = fresh.get_submodule(layer).weight[:, new]
    return agent


def measure(seed: int, folder: Path) -> list[dict[str, Any]]:
    """Both growths of one agent."""
    rows, agent = [], make_agent(run_of(FEATURES[0]), "agent", seed)
    train(agent, BEFORE, folder, [], None).save_checkpoint(folder / "agent.ckpt")
    for before, after in itertools.pairwise(FEATURES):
        returns = mean_return(agent, run_of(before)["env"])
        path = folder / "agent.ckpt"
        for way in WAYS:
            agent = widened(way, path, after, seed)
            at_growth = mean_return(agent, run_of(after)["env"])
            trainer = train(agent, AFTER, folder, [], None)
            row = {"inputs": f"{60 * before} -> {60 * after}", "way": way, "seed": seed, "before": returns}
            rows.append(row | {"at the growth": at_growth, "later": mean_return(agent, run_of(after)["env"])})
        trainer.save_checkpoint(path)  # ours goes on
    return rows


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    rows = []
    for seed in track(SEEDS, "growing"):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(seed, Path(folder))
    (RESULTS / "new_inputs.json").write_text(json.dumps(rows))
    numbers = ("before", "at the growth", "later")
    lines = [f"| inputs | way | {' | '.join(numbers[:2])} | after {AFTER} iterations |", "|---" * 5 + "|"]
    for inputs, way in dict.fromkeys((row["inputs"], row["way"]) for row in rows):
        own = [row for row in rows if (row["inputs"], row["way"]) == (inputs, way)]
        cells = [[row[number] for row in own] for number in numbers]
        spreads = [f"{statistics.median(cell):.1f} ({min(cell):.1f} to {max(cell):.1f})" for cell in cells]
        lines.append(f"| {inputs} | {way} | {' | '.join(spreads)} |")
    (RESULTS / "new_inputs.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
