"""Files that something has happened to, and what became of each at a door."""

import copy
import io
import os
import random
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stacks import Stack, batches, fit, make_trainer
from torch import Tensor

from lightning_grow import ArchTransfer, GrowError, convert_checkpoint

INPUT = torch.linspace(-1, 1, 20).reshape(5, 4)
ODD = [None, -1, 3.5, "x", [], {}, (), [1], {"a": 1}, True, 10**30, float("nan"), b"x", torch.ones(3), torch.zeros(())]


# ---- what happens to a file
def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested containers."""
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))
    else:
        return [path] if path else []
    own = [path] if path else []
    return own + [place for key, item in items for place in places(item, (*path, key))]


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.system":
        CALLS.append(arguments)


CALLS: list[tuple[Any, ...]] = []
"""What files have run."""

sys.addaudithook(_watch)


def add_code(whole: bytes, dice: random.Random) -> bytes:
    """Put what runs code in one place."""
    content = torch.load(io.BytesIO(whole), weights_only=True)
    *path, key = dice.choice(places(content))
    owner = content
    for step in path:
        owner = owner[step]
    owner[key] = Hostile()
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def change_content(whole: bytes, dice: random.Random) -> bytes:
    """Replace, delete, add or swap what stands in one place, and save it again as torch does."""
    content = torch.load(io.BytesIO(whole), weights_only=True)
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        *path, key = dice.choice(places(content))
        owner = content
        for step in path:
            owner = owner[step]
        kind = dice.choice(["replace", "tensor", "delete", "add", "swap"])
        if kind == "delete":
            del owner[key]
        elif kind == "add" and isinstance(owner, dict):
            owner[dice.choice(["new", 7, "net.9.weight", "lightning_grow", "state"])] = dice.choice(ODD)
        elif kind == "swap" and len(owner) > 1:
            other = dice.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
            owner[key], owner[other] = owner[other], owner[key]
        elif kind == "tensor" and isinstance(owner[key], Tensor):
            owner[key] = change_tensor(owner[key], dice)
        else:
            owner[key] = copy.deepcopy(dice.choice(ODD))
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def change_tensor(tensor: Tensor, dice: random.Random) -> Any:
    """Another shape, type, layout, or content."""
    changes: list[Callable[[Tensor], Any]] = [
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.long(),
        lambda x: x.to_sparse() if x.dim() else x,
        lambda x: x.flatten()[:-1],
        lambda x: x[None],
        lambda x: x.t() if x.dim() == 2 else x,
        lambda x: x.float() * float("nan"),
        lambda x: x.float() + float("inf"),
        lambda x: x.float() * 2,
        lambda x: x.tolist(),
        lambda x: x.to("meta"),
        lambda x: x.is_floating_point() and x.dim() and torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
        lambda x: x.expand(3, *x.shape),
        lambda x: x.to(torch.complex64),
    ]
    return dice.choice(changes)(tensor.detach().clone())


def change_bytes(whole: bytes, dice: random.Random) -> bytes:
    """Cut it, fill it, or flip bits anywhere."""
    kind, at = dice.choice(["cut", "zeros", "flip", "flips", "insert"]), dice.randrange(len(whole))
    content = bytearray(whole)
    if kind == "cut":
        return bytes(content[:at])
    if kind == "zeros":
        content[at : at + dice.randrange(2000)] = b""
    elif kind == "insert":
        content[at:at] = dice.randbytes(dice.randrange(1, 50))
    for _ in range({"flip": 1, "flips": 40}.get(kind, 0)):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return bytes(content)


def change_record(whole: bytes, dice: random.Random) -> bytes:
    """Change bytes of one record under a checksum that is right."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = [(item.filename, archive.read(item)) for item in archive.infolist()]
    number = dice.randrange(len(records)) if dice.random() < 0.5 else 0  # the pickle
    name, content = records[number][0], bytearray(records[number][1])
    for _ in range(dice.choice([1, 1, 3, 20]) if content else 0):
        content[dice.randrange(len(content))] = dice.randrange(256)
    records[number] = name, bytes(content[: dice.choice([len(content)] * 4 + [len(content) // 2])])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return file.getvalue()


CHANGES = {"code": add_code, "content": change_content, "bytes": change_bytes, "record": change_record}


# ---- what becomes of it
@dataclass(frozen=True)
class Outcome:
    """What a door made of a file: "refused", "grown", or what went wrong, with the words for it."""

    verdict: str
    words: str = ""


def try_file(whole: bytes, seed: int, folder: Path) -> tuple[str, str, Outcome]:
    """Make the file that a seed stands for and take it through one of the doors: the door, the change, the outcome."""
    path, door = folder / "tried.ckpt", ["convert", "fit", "validate", "convert"][seed % 4]
    with warnings.catch_warnings():  # torch warns of much that is in such files
        warnings.simplefilter("ignore")
        return door, make_file(whole, seed, path), judge(path, door, folder)


def judge(path: Path, door: str, folder: Path) -> Outcome:
    """Take a file through a door and hold what comes out against what is in the file."""
    before, target = path.read_bytes(), Stack(hidden_dims=(12,), learning_rate=0.0)
    weights = {name: item.detach().clone() for name, item in target.state_dict().items()}
    out = folder / "out.ckpt"
    out.unlink(missing_ok=True)
    seen: dict[str, Any] = {}

    class Look(ArchTransfer):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.update(model=copy.deepcopy(pl_module).eval(), states=copy.deepcopy(trainer.optimizers[0].state_dict()))

    def unchanged() -> bool:
        state = target.state_dict()
        return path.read_bytes() == before and all(torch.equal(item, state[name]) for name, item in weights.items())

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if door == "convert":
                convert_checkpoint(path, target, out, optimizer="transfer")
                content = torch.load(out, map_location="cpu", weights_only=True)
                seen["model"], seen["states"] = Stack(hidden_dims=(12,)).eval(), content["optimizer_states"][0]
                seen["model"].load_state_dict(content["state_dict"])
            elif door == "fit":
                fit(target, folder, Look(optimizer="transfer"), ckpt_path=path, max_epochs=3, limit_train_batches=1)
            else:
                make_trainer(folder, ArchTransfer()).validate(target, batches(), ckpt_path=path)
                seen["model"] = target.eval()
    except GrowError as error:
        if CALLS:
            return Outcome("code has run", str(error))
        if door != "fit" and not unchanged():
            return Outcome("refused, and something changed", str(error))
        return Outcome("refused", str(error))
    except BaseException as error:
        return Outcome("another error", f"{type(error).__name__}: {error}")
    return compare(path, seen)


def compare(path: Path, seen: dict[str, Any]) -> Outcome:
    """The outputs are those of the file's own weights, the moments those of the file's own states."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    small = Stack(hidden_dims=tuple(content["state_dict"]["net.0.bias"].shape)).eval()
    small.load_state_dict(content["state_dict"])
    if not torch.allclose(seen["model"](INPUT), small(INPUT), rtol=1e-4, atol=1e-5):
        return Outcome("other outputs")
    names = [name for name, _ in small.named_parameters()]
    record = content.get("lightning_grow", {}).get("architecture", {}).get("optimizers")
    if not (record and record[0] and sorted(record[0][0]) == sorted(names)):
        record = [[names]]
    states = content.get("optimizer_states") or [{"state": {}, "param_groups": []}]
    keys = [key for group in states[0].get("param_groups", ()) for key in group["params"]]
    for key, name in zip(keys, [name for group in record[0] for name in group], strict=False):
        new = seen.get("states", {}).get("state", {}).get(names.index(name) if name in names else -1, {})
        for kind, moment in states[0]["state"].get(key, {}).items():
            if kind in new and isinstance(moment, Tensor) and moment.dim():
                block = new[kind][tuple(slice(size) for size in moment.shape)]
                if not torch.equal(block, moment.to(block)):
                    return Outcome("other moments", f"{name} {kind}")
    return Outcome("grown")


def make_file(whole: bytes, seed: int, path: Path) -> str:
    """Write the file that a seed stands for; returns what happened to it."""
    dice = random.Random(zlib.crc32(str(seed).encode()))
    kind = dice.choice([*CHANGES, "content", "record"])
    path.write_bytes(CHANGES[kind](whole, dice))
    return kind
