"""Hyperparameters: made plain, compared, named."""

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from enum import Enum
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ABSENT = "(absent)"


PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


def to_plain(value: Any) -> Any:
    """Containers as plain ones (OmegaConf's resolved), NumPy's numbers as Python's, every other value as it is.

    >>> to_plain({"hidden_dims": [64, 64]})
    {'hidden_dims': [64, 64]}
    """
    if _is_config(value):
        return sys.modules["omegaconf"].OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    return type(value)(map(to_plain, value)) if type(value) in (list, tuple, set) else value


def find_fields(value: Any) -> dict[str, Any] | None:
    """The named parts of a mapping, a namespace or a dataclass; None for anything else.

    >>> find_fields(Namespace(width=8)), find_fields(8)
    ({'width': 8}, None)
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Namespace, SimpleNamespace)):
        return dict(vars(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def in_kind(value: Any, like: Any) -> Any:
    """A plain container as one of the kind of another, inside and out: an OmegaConf, a namespace, a dataclass.

    >>> in_kind({"model": {"width": 16}}, {"model": Namespace(width=8)})
    {'model': Namespace(width=16)}
    """
    if _is_config(like) and type(value) in (dict, list):
        return sys.modules["omegaconf"].OmegaConf.create(value)
    fields = find_fields(like)
    if fields is None or not isinstance(value, Mapping):
        return value
    content = {key: in_kind(item, fields.get(key)) for key, item in value.items()}
    if isinstance(like, Mapping):
        return type(like)(content)  # type: ignore[call-arg]
    if isinstance(like, (Namespace, SimpleNamespace)):
        return type(like)(**content)
    return dataclasses.replace(like, **content)


def is_plain(value: Any) -> bool:
    """Whether ``torch.load(weights_only=True)`` reads this value back.

    >>> is_plain([1, {"a": None}]), is_plain(print)
    (True, False)
    """
    if isinstance(value, Mapping):
        return type(value) is dict and all(is_plain(key) and is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple, set):
        return all(map(is_plain, value))
    return type(value) in PLAIN


def is_comparable(value: Any) -> bool:
    """Whether two values of this kind can be told apart: plain ones, enums, and fields that hold such.

    >>> is_comparable(Namespace(width=8)), is_comparable(print)
    (True, False)
    """
    return is_plain(_bare(value))


def find_hparams(module: nn.Module) -> dict[str, Any]:
    """The hyperparameters a module keeps (Lightning's `hparams`), as plain containers; empty when it keeps none."""
    return dict(to_plain(dict(getattr(module, "hparams", None) or {})))


def find_types(value: Any) -> set[type]:
    """The dataclasses and enums that a value is made of: what a file with such hyperparameters needs to be read.

    >>> from http import HTTPStatus
    >>> find_types({"codes": [HTTPStatus.OK]}) == {HTTPStatus}
    True
    """
    fields = find_fields(value)
    if fields is None:
        own: set[type] = {type(value)} if isinstance(value, Enum) else set()
        return own.union(*map(find_types, value if isinstance(value, (list, tuple, set)) else ()))
    own = {type(value)} if dataclasses.is_dataclass(value) else set()
    return own.union(*map(find_types, fields.values()))


def take_member(cls: Any, name: str) -> Enum:
    """What Python 3.11.0 to 3.11.3 asks ``getattr`` for in a pickled enum: a member by name, of nothing but an enum.

    >>> from http import HTTPStatus
    >>> take_member(HTTPStatus, "OK")
    <HTTPStatus.OK: 200>
    """
    if isinstance(cls, type) and issubclass(cls, Enum):
        return cls.__members__[name]
    raise UnpicklingError(f"Unsupported global: GLOBAL builtins.getattr, of {cls!r}, which is no enum")


def compare_hparams(source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each hyperparameter that differs, as (source's, target's); a list equals the tuple of the same items.

    Only plain values, enums and the fields of dataclasses are compared: other objects of equal meaning need not be
    equal.

    >>> compare_hparams({"hidden_dims": (64,), "lr": 0.1}, {"hidden_dims": [128], "lr": 0.1})
    {'hidden_dims': ((64,), [128])}
    """
    pairs = {key: (source.get(key, ABSENT), target.get(key, ABSENT)) for key in [*source, *target]}
    return {key: pair for key, pair in pairs.items() if all(map(is_comparable, pair)) and not _equal(*map(_bare, pair))}


def name_differences(differing: Mapping[str, tuple[Any, Any]], within: str = "") -> Iterator[str]:
    """Say every value that differs; of nested ones only the parts that do.

    >>> list(name_differences({"env": ({"id": "Old-v0", "n": 2}, {"id": "New-v0", "n": 2})}))
    ['env.id: Old-v0 in the checkpoint, New-v0 in the config.']
    """
    for key, pair in differing.items():
        had, has = map(_bare, pair)
        if isinstance(had, dict) and isinstance(has, dict):
            yield from name_differences(compare_hparams(had, has), f"{within}{key}.")
        else:
            yield f"{within}{key}: {had} in the checkpoint, {has} in the config."


def _is_config(value: Any) -> bool:
    omegaconf = sys.modules.get("omegaconf")  # who never imported it has none of its objects
    return omegaconf is not None and bool(omegaconf.OmegaConf.is_config(value))


def _bare(value: Any) -> Any:
    """A value as plain as it gets: an enum's own value, the fields of a dataclass as a dict."""
    value, fields = to_plain(value), find_fields(value)
    if isinstance(value, Enum):
        return _bare(value.value)
    if fields is not None and not isinstance(value, Mapping):
        value = fields
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return type(value)(map(_bare, value)) if type(value) in (list, tuple, set) else value


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return type(left) is type(right) and torch.equal(left, right)
    return bool(left is right or left == right)
