"""How long a growth of a big checkpoint takes, and how much memory, beside copying the grown file with torch.

Run `python benchmarks/streaming.py --gigabytes 1 2 4` (each doubles: 1 -> 2, 2 -> 4, 4 -> 8; needs 25 GB of disk for
the last). Every number is of a process of its own, one thread; memory is anonymous memory, what files hold there is the
kernel's to give away. It writes results/streaming.json and .md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import lightning as L
import torch
from torch import Tensor, nn

from lightning_grow import convert_checkpoint

RESULTS = Path(__file__).parent / "results"
LAYERS = 16


class Stack(L.LightningModule):
    """Square layers between two small ones; what is big is their weights and Adam's two moments of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = [64, *[width] * (LAYERS + 1)]
        self.net = nn.Sequential(
            *(part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.Tanh())),
            nn.Linear(width, 4),
        )
        self.example_input_array = torch.linspace(-1, 1, 4 * 64).reshape(4, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layers make of the inputs."""
        return self.net(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, whose moments are two thirds of a checkpoint."""
        return torch.optim.Adam(self.parameters())


def width_of(gigabytes: float) -> int:
    """Of a stack whose checkpoint has that size: three float32 numbers a weight."""
    return int((gigabytes * 2**30 / 12 / LAYERS) ** 0.5)


def make(path: Path, gigabytes: float) -> None:
    """Write the checkpoint of a run of one step, without running it."""
    model = Stack(width_of(gigabytes))
    optimizer = model.configure_optimizers()
    for parameter in model.parameters():
        state = {"step": torch.tensor(1.0)}
        state |= {kind: torch.rand_like(parameter) * 1e-3 for kind in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = state
    content = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "lr_schedulers": []}
    progress = {"epoch": 0, "global_step": 1, "pytorch-lightning_version": L.__version__, "loops": {}, "callbacks": {}}
    torch.save({**content, **progress, "hyper_parameters": dict(model.hparams)}, path)


def copy(path: Path, out: Path, to_disk: bool) -> None:
    """What torch alone needs for the same bytes; with `to_disk` until they are on it, as the library waits for."""
    with out.open("wb") as file:
        torch.save(torch.load(path, mmap=True, weights_only=True), file)
        file.flush()
        if to_disk:
            os.fsync(file.fileno())


def grow(path: Path, out: Path, gigabytes: float, verify: bool) -> None:
    """What the library needs."""
    with torch.device("meta"):
        target = Stack(width_of(2 * gigabytes))
    target.example_input_array = torch.linspace(-1, 1, 4 * 64).reshape(4, 64)
    convert_checkpoint(path, target, out, optimizer="transfer", verify=verify)


def measure(work, *arguments) -> dict[str, float]:
    """Seconds, CPU seconds and the highest anonymous memory above the start, in MiB."""
    torch.set_num_threads(1)
    highest, over = [start := anonymous()], Event()
    watcher = Thread(target=watch, args=(highest, over), daemon=True)
    watcher.start()
    begun, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    seconds = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
    over.set()
    watcher.join()
    return {**seconds, "mebibytes": max(highest) - start}


def watch(highest: list[float], over: Event) -> None:
    """Keep the highest anonymous memory until it is over."""
    while not over.wait(0.002):
        highest[0] = max(highest[0], anonymous())


def anonymous() -> float:
    """Memory of this process that no file stands behind, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def in_a_process(what: str, folder: Path, gigabytes: float) -> dict[str, float]:
    """Do one thing in a new process, and return what it took."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", what, str(folder), "--gigabytes", str(gigabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def one(what: str, folder: Path, gigabytes: float) -> dict[str, float]:
    """Do one thing."""
    small, large, again = (folder / name for name in ("small.ckpt", "large.ckpt", "again.ckpt"))
    if what == "make":
        return measure(make, small, gigabytes)
    if what.startswith("copy"):
        return measure(copy, large, again, what != "copy")
    return measure(grow, small, large, gigabytes, what == "grow")


def compare(gigabytes: float, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Grow, grow without the check, and copy what was grown, one after the other, several times."""
    ways = ("grow", "grow without the check", "copy to the disk", "copy")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        in_a_process("make", folder, gigabytes)
        for number in range(rounds):
            for what, runs in found.items():
                runs.append(in_a_process(what, folder, gigabytes))
                print(f"{gigabytes:g} GB, round {number + 1}, {what}: {runs[-1]}", file=sys.stderr, flush=True)
                (folder / "again.ckpt").unlink(missing_ok=True)
    return found


def as_table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """A row a size and way: median (lowest to highest)."""
    rows = [
        "| checkpoint | | seconds | CPU seconds | memory above the start, MiB | largest tensor, old and new, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for size, ways in results.items():
        tensors = sum(width_of(float(size) * factor) ** 2 * 4 for factor in (1, 2)) / 2**20
        for way, runs in ways.items():
            cells = [f"{float(size):g} -> {2 * float(size):g} GB", way]
            for key in ("seconds", "cpu", "mebibytes"):
                numbers = [run[key] for run in runs]
                cells.append(f"{statistics.median(numbers):.1f} ({min(numbers):.1f} to {max(numbers):.1f})")
            rows.append(f"| {' | '.join(cells)} | {tensors:.0f} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one[0], Path(chosen.one[1]), chosen.gigabytes[0])))
        return
    results = {f"{size:g}": compare(size, chosen.rounds) for size in chosen.gigabytes}
    (RESULTS / "streaming.json").write_text(json.dumps(results, indent=1))
    (RESULTS / "streaming.md").write_text(as_table(results) + "\n")
    print(as_table(results))


if __name__ == "__main__":
    main()
