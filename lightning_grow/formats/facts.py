"""What is in a checkpoint, without its tensors' content."""

import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from lightning_grow.files.metadata import read_metadata
from lightning_grow.files.record import checkpoint_hparams, find_record
from lightning_grow.folding import folded, grouped, pattern
from lightning_grow.formats.weights import Kind, Weights, find_kind, read_weights
from lightning_grow.report import format_shape


@dataclass(frozen=True)
class Facts:
    """What a checkpoint holds.

    Args:
        kind: What it is.
        tensors: The shape and type of every weight, by name.
        parameters: Entries of all weights.
        architecture: The class that wrote it, where that is recorded.
        hyperparameters: As saved, or a folder's config.
        progress: Epoch, steps, versions.
        callbacks: Those with a state in the file.
        optimizers: One line each.
        imports: What would have to be imported to load it: code that `weights_only` does not run.
        others: What else stands in it.
    """

    kind: str
    tensors: dict[str, tuple[tuple[int, ...], str]]
    parameters: int
    architecture: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    callbacks: list[str] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings."""
        tensors = {name: {"shape": list(shape), "dtype": kind} for name, (shape, kind) in self.tensors.items()}
        return {**asdict(self), "tensors": tensors}

    def __rich__(self) -> Group:
        """Return the facts as two tables: what it is, and the parameters, equal layers as one row."""
        about = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in self._lines():
            about.add_row(name, value)
        table = Table(title=f"{self.parameters:,} entries in {len(self.tensors)} tensors")
        table.add_column("module", overflow="fold")
        for title in ("tensors", "entries"):
            table.add_column(title, justify="right", overflow="fold")
        for name, tensors, count in self._modules():
            table.add_row(name, tensors, f"{count:,}")
        return Group(about, table)

    def _lines(self) -> list[tuple[str, str]]:
        lines = [("kind", self.kind), ("architecture", self.architecture)]
        lines += [(name, str(value)) for name, value in self.progress.items()]
        lines += [(f"  {name}", str(value)) for name, value in _flat(self.hyperparameters, "")]
        lines += [("optimizer", line) for line in self.optimizers]
        lines += [("callbacks", ", ".join(self.callbacks)), ("also holds", ", ".join(self.others))]
        lines.append(("would import", ", ".join(self.imports) or "nothing"))
        return [(name, value) for name, value in lines if value]

    def _modules(self) -> list[tuple[str, str, int]]:
        """Every module with tensors of its own: its name, their shapes, all entries; alike ones of a list together."""
        own: dict[str, list[str]] = {}
        for name in self.tensors:
            own.setdefault(name.rpartition(".")[0], []).append(name)
        shown = {
            module: ", ".join(f"{name.rpartition('.')[2]} {format_shape(self.tensors[name][0])}" for name in names)
            for module, names in own.items()
        }
        rows = []
        for modules in grouped([((pattern(module), shown[module]), module) for module in own]):
            shapes = [self.tensors[name][0] for module in modules for name in own[module]]
            rows.append((folded(modules) or "(itself)", shown[modules[0]], sum(map(_count, shapes))))
        return rows


def inspect_checkpoint(path: Path, key: str = "") -> Facts:
    """Say what a file or a folder holds; no tensor's content is read, and no code in it is run.

    Raises:
        CheckpointError: It cannot be read without running code, or is none.
    """
    weights = read_weights(path, key, data=False)
    tensors = {
        name: (tuple(item.shape), str(item.dtype).removeprefix("torch.")) for name, item in weights.state.items()
    }
    content = weights.content
    facts: dict[str, Any] = {"imports": find_imports(path)}
    if weights.kind is Kind.HUGGINGFACE:
        facts |= {"architecture": ", ".join(content.get("architectures") or []), "hyperparameters": content}
    elif weights.kind is Kind.LIGHTNING:
        facts |= _lightning(weights)
    elif weights.key:
        facts["others"] = weights.beside
    is_told = weights.kind is Kind.TORCH and weights.key
    kind = weights.kind.value + (f", weights under {weights.key!r}" if is_told else "")
    return Facts(kind, tensors, sum(_count(shape) for shape, _ in tensors.values()), **facts)


def find_imports(path: Path) -> list[str]:
    """What a file's pickle names beside what torch trusts: it would be imported, and run, with weights_only=False."""
    kind = find_kind(path)
    if kind is Kind.DISTRIBUTED:
        read_metadata(path)  # refuses what names anything else
        return []
    if kind is not Kind.TORCH:
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # not an archive: read by weights_only alone
        return []


def _lightning(weights: Weights) -> dict[str, Any]:
    content, record = weights.content, find_record(weights.content)
    names = {"epoch": "epoch", "global_step": "step", "pytorch-lightning_version": "Lightning"}
    known = {*names, "state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops", "hyper_parameters"}
    classes = [*record.get("optimizer_classes", []), *[""] * len(content.get("optimizer_states", []))]
    return {
        "architecture": record.get("class", ""),
        "hyperparameters": checkpoint_hparams(content),
        "progress": {shown: content[name] for name, shown in names.items() if name in content},
        "callbacks": [str(name).split("{")[0] for name in content.get("callbacks", {})],
        "optimizers": list(map(_optimizer, classes, content.get("optimizer_states", []))),
        "others": sorted(str(name) for name in content.keys() - known if not str(name).startswith("hparams_")),
    }


def _optimizer(name: str, state: Mapping[str, Any]) -> str:
    groups, states = state.get("param_groups", []), state.get("state", {})
    kinds = Counter(kind for item in states.values() for kind in item)
    rates = ", ".join(f"{group['lr']:g}" for group in groups if isinstance(group.get("lr"), (int, float)))
    held = f"states of {len(states)} parameters ({', '.join(kinds)})" if states else "no states"
    return f"{name or 'of an unknown class'}: {held}" + (f", learning rate {rates}" if rates else "")


def _flat(content: Mapping[str, Any], place: str) -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in content.items():
        path = f"{place}.{name}".strip(".")
        lines += _flat(value, path) if isinstance(value, Mapping) and value else [(path, value)]
    return lines


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
