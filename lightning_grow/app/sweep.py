"""What a sweep comes to: one table and figure over its runs, from what each of them wrote."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

RECORD = "run.json"
_REPEATS = ("seed", "model.seed")  # what runs of one kind differ in


class Comparison(Callback):
    """Compare the runs of a multirun when it ends; a single run is left alone.

    Args:
        monitor: The logged value to compare.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table, and write it to comparison.md with a figure beside it."""
        folder = Path(config.hydra.sweep.dir)
        groups = group_runs(folder)
        if not groups:
            return
        table = compare(groups, self.monitor)
        (folder / "comparison.md").write_text("\n".join(table) + "\n")
        draw(groups, self.monitor, folder / "comparison.png")
        print("\n".join(["", *table, "", f"wrote comparison.md and comparison.png to {folder}"]))


def write_run(run_dir: Path, overrides: Sequence[str], numbers: Mapping[str, Any]) -> None:
    """Write what a sweep compares: what was asked for, and what came out."""
    (run_dir / RECORD).write_text(json.dumps({"overrides": list(overrides), **numbers}, indent=1))


def group_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The runs below a folder by what they were asked for, seeds and what all have in common aside."""
    found = [(path.parent.name, json.loads(path.read_text())) for path in sorted(folder.glob(f"*/{RECORD}"))]
    asked = [[item for item in run["overrides"] if item.partition("=")[0] not in _REPEATS] for _, run in found]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (name, run), own in zip(found, asked, strict=True):
        apart = [item for item in own if not all(item in other for other in asked)]
        groups[" ".join(apart) or "as configured"].append(run | {"folder": name})
    return dict(groups)


Groups = Mapping[str, Sequence[Mapping[str, Any]]]


def compare(groups: Groups, monitor: str) -> list[str]:
    r"""The table: a row a kind of run, the best median first.

    >>> runs = [{"folder": "0", "parameters": 9, "seconds": 1.2, "metrics": {"return": 3.0}},
    ...         {"folder": "1", "parameters": 9, "seconds": 1.4, "metrics": {"return": 5.0}}]
    >>> print(*compare({"strategy=random": runs}, "return"), sep="\n")
    | run | return, median (lowest to highest) | parameters | s | folders |
    |---|---|---|---|---|
    | strategy=random | 4 (3 to 5) | 9 | 1.3 | 0, 1 |
    """
    lines = [f"| run | {monitor}, median (lowest to highest) | parameters | s | folders |", "|---|---|---|---|---|"]
    for name, own in _best_first(groups, monitor).items():
        runs = groups[name]
        spread = f"{statistics.median(own):.4g} ({min(own):.4g} to {max(own):.4g})" if own else "never logged"
        sizes = ", ".join(dict.fromkeys(f"{run['parameters']:,}" for run in runs))
        seconds, folders = statistics.median(run["seconds"] for run in runs), ", ".join(run["folder"] for run in runs)
        lines.append(f"| {name} | {spread} | {sizes} | {seconds:.1f} | {folders} |")
    return lines


def _best_first(groups: Groups, monitor: str) -> dict[str, list[float]]:
    values = {
        name: [run["metrics"][monitor] for run in runs if monitor in run["metrics"]] for name, runs in groups.items()
    }
    return dict(sorted(values.items(), key=lambda item: -statistics.median(item[1] or [float("-inf")])))


def draw(groups: Groups, monitor: str, path: Path) -> None:
    """A line of points a kind of run, a point a run."""
    from lightning_grow.pictures import plot_points  # torch is not imported before there is something to draw

    plot_points(_best_first(groups, monitor), monitor).savefig(path, dpi=150)
