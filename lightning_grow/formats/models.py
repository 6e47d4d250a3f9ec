"""The two models of a growth, built from what a command line can say: a file, a class, and what changes."""

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from lightning_grow.errors import CheckpointError, RefusedGrowth, WrongSetting
from lightning_grow.files.hparams import to_plain
from lightning_grow.files.rebuild import configure, init_arguments, rebuild_source
from lightning_grow.files.record import checkpoint_hparams, restore_attributes
from lightning_grow.formats.pretrained import make_inputs, make_target, read_pretrained, run
from lightning_grow.formats.weights import Kind, Weights
from lightning_grow.options import GrowthOptions
from lightning_grow.trace.names import align_names


@dataclass(frozen=True)
class Described:
    """What a user says of two models.

    Args:
        model: The class, as ``module:Class``; a Hugging Face folder knows it.
        was: Arguments of the source that the file does not keep.
        changes: Arguments of the target that differ from the source's.
        inputs: Example inputs, as `parse_input` reads them; a module's `example_input_array` where there are none.
    """

    model: str = ""
    was: Mapping[str, Any] | None = None
    changes: Mapping[str, Any] | None = None
    inputs: Sequence[str] = ()


def make_source(weights: Weights, path: Path, described: Described, like: nn.Module | None = None) -> nn.Module:
    """Build the model that has these weights; of a Lightning checkpoint `like` is the target.

    Raises:
        CheckpointError: The weights are not those of the model.
        RefusedGrowth: The model cannot be built.
    """
    if weights.kind is Kind.HUGGINGFACE:
        return read_pretrained(path)  # type: ignore[no-any-return]
    cls, hparams = find_class(described.model), _hparams(weights, described)
    if weights.kind is Kind.LIGHTNING:
        target = like if like is not None else _build(cls, hparams, weights)
        source = rebuild_source(
            target, weights.content, align_names(weights.content["state_dict"], target.state_dict())
        )
        restore_attributes(source, weights.content)
        return source
    source = _build(cls, hparams, weights)
    try:
        source.load_state_dict(weights.state)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} are not those of {described.model} with {_shown(hparams)}: {error}. Say with --was "
            "what the model was built with."
        ) from error
    return source


def make_bigger(weights: Weights, source_path: Path, described: Described) -> nn.Module:
    """Build the target with its own initial values.

    Raises:
        RefusedGrowth: It cannot be built.
        WrongSetting: It has no such argument.
    """
    changes = described.changes or {}
    if weights.kind is Kind.HUGGINGFACE:
        return make_target(read_pretrained(source_path), changes, seed=0)  # type: ignore[no-any-return]
    cls = find_class(described.model)
    return _build(cls, _changed(_hparams(weights, described), changes, cls), weights)


def make_options(source: nn.Module, described: Described, weights: Weights) -> GrowthOptions:
    """What the two models are compared on."""
    if described.inputs:
        return {"example_inputs": tuple(map(parse_input, described.inputs))}
    if weights.kind is Kind.HUGGINGFACE:
        return {"example_inputs": make_inputs(source), "forward": run}
    return {}


def find_class(name: str) -> Any:
    """Import ``module:Class``, from the working directory too.

    Raises:
        WrongSetting: There is none.

    >>> find_class("torch.nn:Linear")
    <class 'torch.nn.modules.linear.Linear'>
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        raise WrongSetting(f"Expected --model module:Class, the class that wrote the weights, but got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise WrongSetting(f"--model {name} cannot be imported from {os.getcwd()}: {error}.") from error


def parse_settings(items: Sequence[str]) -> dict[str, Any]:
    """``name=value`` with a value as in YAML.

    Raises:
        WrongSetting: An item is none.

    >>> parse_settings(["hidden_dims=[256, 256]", "lr=1e-3", "norm=null", "body.kind=relu"])
    {'hidden_dims': [256, 256], 'lr': 0.001, 'norm': None, 'body.kind': 'relu'}
    """
    settings = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise WrongSetting(f"Expected name=value, but got {item!r}.")
        try:
            settings[name] = to_plain(OmegaConf.from_dotlist([f"value={value}"]).value)
        except (OmegaConfBaseException, ValueError) as error:
            raise WrongSetting(f"Expected {name} to be a value as in YAML, but got {value!r} ({error}).") from error
    return settings


def parse_input(text: str) -> Tensor:
    """An example input: a shape, of random numbers, or with ``:n`` of whole numbers below n.

    Raises:
        WrongSetting: It is none.

    >>> parse_input("2x3").shape, parse_input("2x8:50").dtype
    (torch.Size([2, 3]), torch.int64)
    """
    sizes, _, below = text.partition(":")
    try:
        shape = [int(size) for size in sizes.split("x")]
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, int(below), shape, generator=generator) if below else _randn(shape, generator)
    except (ValueError, RuntimeError) as error:
        raise WrongSetting(
            f"Expected an input as 4x64, or 4x16:50 for whole numbers below 50, but got {text!r}."
        ) from error


def _randn(shape: list[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _hparams(weights: Weights, described: Described) -> dict[str, Any]:
    saved = checkpoint_hparams(weights.content) if weights.kind is Kind.LIGHTNING else {}
    return {**saved, **(described.was or {})}


def _changed(hparams: Mapping[str, Any], changes: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """Hyperparameters with some changed, each by its dotted path."""
    content: dict[str, Any] = to_plain(dict(hparams))
    takes = inspect.signature(cls).parameters
    for name, value in changes.items():
        first, *rest = name.split(".")
        if first not in content and first not in takes:
            raise WrongSetting(f"{cls.__name__} has no argument {first!r}. It takes: {', '.join(takes)}.")
        part: dict[str, Any] = content
        for key in (first, *rest)[:-1]:
            part = part.setdefault(key, {})
        part[(first, *rest)[-1]] = value
    return content


def _build(cls: Any, hparams: Mapping[str, Any], weights: Weights) -> nn.Module:
    try:
        return configure(cls(**init_arguments(cls, hparams, weights.content.get("hparams_name"))))
    except Exception as error:  # of any code
        raise RefusedGrowth(
            f"{cls.__name__} cannot be built with {_shown(hparams)} ({type(error).__name__}: {error}). Say with --was "
            "what the file's model was built with, and with --set what differs now."
        ) from error


def _shown(hparams: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in hparams.items()) or "no arguments"
