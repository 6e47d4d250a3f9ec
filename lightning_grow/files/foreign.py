"""What other programs save in files, and the way that works for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

WAY = "Build the small module, give it the weights, and grow it in memory:"
GROW = "lightning_grow.grow(small, big)."


def describe(content: Any) -> str:
    """Say what a file holds that Lightning did not write, and what to do with it.

    >>> describe({"model": {}})
    "expected a dict with a 'state_dict', found a dict with the keys ['model']. Pass a file that ModelCheckpoint or ..."
    """
    if not isinstance(content, Mapping):
        return _expected(f"a {type(content).__name__}")
    keys = sorted(map(str, content))[:8]
    if "state_dict" in content:
        return _expected(f"a {type(content['state_dict']).__name__} under 'state_dict'")
    if _is_state(content):
        return f"it holds weights alone. {WAY} small.load_state_dict(torch.load(path)); {GROW}"
    inside = next((key for key, item in content.items() if _is_state(item)), None)
    if inside is None:
        return _expected(f"a dict with the keys {keys}")
    return (
        f"it holds weights under {inside!r}, as other programs write them. {WAY} "
        f"small.load_state_dict(torch.load(path)[{inside!r}]); {GROW}"
    )


def describe_file(path: str | Path) -> str:
    """The way for a file that torch cannot read; empty where nothing is known of it.

    >>> describe_file("model.bin")
    ''
    """
    if Path(path).suffix != ".safetensors":
        return ""
    load = "small.load_state_dict(safetensors.torch.load_file(path))"
    return f"{path} is a safetensors file: weights alone. {WAY} {load}; {GROW}"


def _expected(found: str) -> str:
    return (
        f"expected a dict with a 'state_dict', found {found}. "
        "Pass a file that ModelCheckpoint or trainer.save_checkpoint wrote."
    )


def _is_state(item: Any) -> bool:
    return isinstance(item, Mapping) and bool(item) and all(isinstance(value, Tensor) for value in item.values())
