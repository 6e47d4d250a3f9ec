"""What stands in a checkpoint has the types that its readers take for granted."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from lightning_grow.errors import CheckpointError

SECTIONS: dict[str, Any] = {
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "state_dict": dict[str, Any],
    "optimizer_states": list[dict[Any, Any]],
    "lr_schedulers": list[dict[Any, Any]],
    "callbacks": dict[str | type, Any],  # of a class itself before Lightning 1.5
    "loops": dict[str, Any],
    "hyper_parameters": dict[str, Any],
    "hparams_name": str | None,
}
OPTIMIZER: dict[str, Any] = {"state": dict[Any, dict[Any, Any]], "param_groups": list[dict[Any, Any]]}
RATES: dict[str, Any] = dict.fromkeys(("lr", "initial_lr", "max_lr", "min_lr"), int | float | Tensor)
OURS: dict[str, Any] = {
    "version": int,
    "architecture": dict[str, Any],
    "attributes": dict[str, bool | int | float],
    "tape": str | None,
    "pending": dict[str, dict[str, list[int]]],
}
ARCHITECTURE: dict[str, Any] = {
    "class": str,
    "hparams": dict[str, Any],
    "shapes": dict[str, list[int]],
    "optimizers": list[list[list[str]]],
    "optimizer_classes": list[str],
    "schedulers": list[str],
    "input_names": list[str] | None,
}


def check_sections(checkpoint: Mapping[str, Any], key: str, path: str | Path) -> None:
    """Refuse a checkpoint with something under a key that cannot be what the key is for.

    Args:
        checkpoint: As it was read.
        key: The library's own.
        path: Named in the error.

    Raises:
        CheckpointError: It names every such place, what is expected there and what came.
    """
    wrong = [f"{name!r} is a key, and should be a name" for name in checkpoint if not isinstance(name, str)]
    wrong += _wrong(checkpoint, {**SECTIONS, key: dict[str, Any]}, "")
    if not wrong:
        ours = checkpoint.get(key, {})
        wrong += _wrong(ours, OURS, f"[{key!r}]")
        wrong += () if wrong else _wrong(ours.get("architecture", {}), ARCHITECTURE, f"[{key!r}]['architecture']")
        for index, state in enumerate(checkpoint.get("optimizer_states", ())):
            wrong += _wrong_optimizer(state, f"['optimizer_states'][{index}]")
        wrong += _wrong_weights(checkpoint["state_dict"])
        wrong += _wrong_version(checkpoint.get("pytorch-lightning_version", "0"))
    if wrong:
        raise CheckpointError(
            f"{path} holds what no checkpoint holds: {'; '.join(wrong[:5])}. It was damaged, or changed by a program: "
            "resume from an earlier checkpoint."
        )


def _wrong(section: Mapping[str, Any], kinds: Mapping[str, Any], place: str) -> Iterator[str]:
    for key, kind in kinds.items():
        empty = get_origin(kind) is list and isinstance(section.get(key), Mapping) and not section[key]  # as good as []
        if key in section and not empty and not fits(section[key], kind):
            yield f"{place}[{key!r}] is {_found(section[key])}, and should be {_name(kind)}"


def _wrong_optimizer(state: Mapping[str, Any], place: str) -> Iterator[str]:
    yield from _wrong(state, OPTIMIZER, place)
    if "param_groups" in state and "state" not in state:
        yield f"{place}['state'] is missing"
    groups = state.get("param_groups")
    if not fits(groups, list[dict[Any, Any]]):
        return
    for number, group in enumerate(groups or ()):
        if not fits(group.get("params"), list[int | str]):
            yield f"{place}['param_groups'][{number}]['params'] is {_found(group.get('params'))}, and should be a list"
        yield from _wrong(group, RATES, f"{place}['param_groups'][{number}]")


def _wrong_weights(state: Mapping[str, Any]) -> Iterator[str]:
    for name, item in state.items():
        if isinstance(item, Tensor) and (item.layout != torch.strided or item.is_quantized or item.is_meta):
            kind = "quantised" if item.is_quantized else "without content" if item.is_meta else str(item.layout)
            yield f"['state_dict'][{name!r}] is {kind}, and should be a dense tensor"


def _wrong_version(version: str) -> Iterator[str]:
    try:
        Version(version)
    except InvalidVersion:
        yield f"['pytorch-lightning_version'] is {version!r}, and should be a version"


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind, inside and out.

    >>> fits({"a": [1, 2]}, dict[str, list[int]]), fits({"a": [1, "2"]}, dict[str, list[int]])
    (True, False)
    """
    if kind is Any:
        return True
    inside = get_args(kind)
    if isinstance(kind, UnionType):
        return any(fits(value, part) for part in inside)
    if get_origin(kind) is list:
        return isinstance(value, (list, tuple)) and all(fits(item, inside[0]) for item in value)
    if get_origin(kind) is dict:
        pairs = value.items() if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and all(fits(key, inside[0]) and fits(item, inside[1]) for key, item in pairs)
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is int)


def _name(kind: Any) -> str:
    return "None" if kind is NoneType else kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _found(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
