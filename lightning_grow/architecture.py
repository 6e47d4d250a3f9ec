"""What a checkpoint says about the module that wrote it, and that module built again."""

import dataclasses
import inspect
import random
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_grow.checkpoint import KEY
from lightning_grow.errors import RefusedGrowth

Source = Callable[[dict[str, Any]], nn.Module]
ATTRIBUTES = "_lightning_grow_attributes"
INPUT_NAMES = "_lightning_grow_input_names"
"""On a module built again from a checkpoint: the names recorded there. Those of its class may be of newer code."""
ABSENT = "(absent)"
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)

WAYS_OUT = (
    "Three ways out: pass source= (a callable hparams -> nn.Module that builds the source) to ArchTransfer; "
    "convert the file first with lightning_grow.convert_checkpoint(path, target, out, source=...); "
    "or save the run again from a module that calls self.save_hyperparameters() and has GrowableMixin."
)


def record_architecture(
    checkpoint: dict[str, Any], module: nn.Module, optimizers: Iterable[Optimizer] = (), schedulers: Iterable[Any] = ()
) -> None:
    """Write under our key what a later, bigger resume must know: plain types only.

    Args:
        checkpoint: The checkpoint being saved, changed in place.
        module: The module it belongs to.
        optimizers: Its optimizers; the names of their parameters are recorded group by group.
        schedulers: Its learning-rate schedulers; what they are is recorded.
    """
    optimizers = list(optimizers)
    record = {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "hparams": {key: value for key, value in find_hparams(module).items() if is_plain(value)},
        "shapes": {name: list(tensor.shape) for name, tensor in find_tensors(module.state_dict()).items()},
        "optimizers": [find_param_names(module, optimizer) for optimizer in optimizers],
        "optimizer_classes": [type(optimizer).__name__ for optimizer in optimizers],
        "schedulers": list(map(scheduler_kind, schedulers)),
        "input_names": find_input_names(module),
    }
    ours = {"version": 1, "architecture": record, "attributes": getattr(module, ATTRIBUTES, {})}
    checkpoint[KEY] = {**checkpoint.get(KEY, {}), **{key: value for key, value in ours.items() if value}}


def restore_attributes(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Set the attributes that an earlier growth had to change (a norm's eps): no state dict carries them.

    Args:
        module: Changed in place, and remembers them for its next checkpoint.
        checkpoint: Keeps them under our key, by dotted name.
    """
    attributes = dict(checkpoint.get(KEY, {}).get("attributes") or {})
    for name, value in attributes.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)
    if attributes:
        setattr(module, ATTRIBUTES, attributes)


def find_record(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture recorded under our key; empty where the library was not there at save time."""
    return dict(checkpoint.get(KEY, {}).get("architecture", {}))


def find_input_names(module: nn.Module) -> list[str] | None:
    """The names of a module's inputs, as it gives them or as its checkpoint recorded them; None without any."""
    names = getattr(module, INPUT_NAMES, None) or getattr(module, "input_names", None)
    return list(map(str, names)) if isinstance(names, Iterable) and not isinstance(names, str) else None


def find_param_names(module: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The parameter names of each group, in the optimizer's order; "" for a tensor that is not in the module."""
    names = {id(parameter): strip_compiled(name) for name, parameter in module.named_parameters()}
    return [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]


def scheduler_kind(scheduler: Any) -> str:
    """A scheduler's class, and the classes of the schedulers within it.

    >>> optimizer = torch.optim.SGD([torch.zeros(1)])
    >>> constant = torch.optim.lr_scheduler.ConstantLR(optimizer)
    >>> scheduler_kind(torch.optim.lr_scheduler.ChainedScheduler([constant]))
    'ChainedScheduler(ConstantLR)'
    """
    within = ", ".join(map(scheduler_kind, getattr(scheduler, "_schedulers", ())))
    return type(scheduler).__name__ + (f"({within})" if within else "")


def find_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; extra state (any object) is left out."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def strip_compiled(name: str) -> str:
    """A parameter's name without the prefix that ``torch.compile`` puts on submodules.

    >>> strip_compiled("net._orig_mod.0.weight")
    'net.0.weight'
    """
    return name.replace("_orig_mod.", "")


def align_names(state: Mapping[str, Any], like: Iterable[str]) -> dict[str, Any]:
    """The same state under the names of `like` where the two differ by a compiled prefix only.

    >>> align_names({"net._orig_mod.0.weight": 1}, ["net.0.weight"])
    {'net.0.weight': 1}
    """
    names = {strip_compiled(name): name for name in like}
    return {names.get(strip_compiled(name), name): value for name, value in state.items()}


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


def checkpoint_hparams(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters the checkpoint was written under.

    What we recorded at save time wins: `load_from_checkpoint(path, hidden_dims=...)` overwrites `hyper_parameters`
    before any hook runs.
    """
    saved = to_plain(dict(checkpoint.get("hyper_parameters") or {}))
    return {**saved, **find_record(checkpoint).get("hparams", {})}


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
    for key, (had, has) in differing.items():
        if isinstance(had, dict) and isinstance(has, dict):
            yield from name_differences(compare_hparams(had, has), f"{within}{key}.")
        else:
            yield f"{within}{key}: {had} in the checkpoint, {has} in the config."


def rebuild_source(
    target: nn.Module, checkpoint: Mapping[str, Any], state: Mapping[str, Any], source: Source | None = None
) -> nn.Module:
    """Build the module that wrote the checkpoint and give it the checkpoint's weights, without copying them.

    Args:
        target: The module being resumed; the source is of its class unless `source` builds it.
        checkpoint: Where the hyperparameters are read from.
        state: The source's state dict.
        source: Builds the source from the hyperparameters, instead of the target's class.

    Returns:
        The source, in evaluation mode or training mode and in the float type as the target is.

    Raises:
        RefusedGrowth: There is nothing to build it from, or what was built does not fit the weights.
    """
    hparams = checkpoint_hparams(checkpoint)
    if source is None and not hparams:
        raise RefusedGrowth(f"the checkpoint holds no hyperparameters, so its module cannot be built again. {WAYS_OUT}")

    module = _fill(lambda: build_module(target, hparams, source, checkpoint.get("hparams_name")), state)
    _match_float_type(module, target)
    _match_example_inputs(module, target)
    if names := find_record(checkpoint).get("input_names"):
        setattr(module, INPUT_NAMES, names)
    return module.train(target.training)


def build_module(
    like: nn.Module, hparams: Mapping[str, Any], source: Source | None = None, hparams_name: str | None = None
) -> nn.Module:
    """Build a new module of the same class from hyperparameters, or by `source`, which takes them as a dict.

    Args:
        like: Gives the class, and the kinds of containers that its hyperparameters are.
        hparams: The hyperparameters; those that `__init__` does not take are left out.
        source: Builds the module instead.
        hparams_name: The argument that takes all of them, where they were saved under one name.
    """
    if source is not None:
        return source(dict(hparams))
    return type(like)(**_init_arguments(type(like), in_kind(hparams, getattr(like, "hparams", None)), hparams_name))


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch back as they were."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def _fill(build: Callable[[], nn.Module], state: Mapping[str, Any]) -> nn.Module:
    """Build on the meta device; on the CPU where that fails or leaves a tensor that no state dict carries."""
    with untouched_rng():
        try:
            with torch.device("meta"):
                module = configure(build())
            _assign(module, state)
            if not _has_meta_tensors(module):
                return module
        except RefusedGrowth:
            raise
        except Exception:  # any code may run in an __init__; the CPU build below gives the true error
            pass
        try:
            with torch.device("cpu"):
                module = configure(build())
        except Exception as error:
            raise RefusedGrowth(
                f"the checkpoint's module cannot be built from its hyperparameters "
                f"({type(error).__name__}: {error}). {WAYS_OUT}"
            ) from error
        _assign(module, state)
        return module


def configure(module: nn.Module) -> nn.Module:
    """Let a LightningModule make the layers that it makes in `configure_model`; returns the module."""
    configure_model: Callable[[], None] | None = getattr(module, "configure_model", None)
    if configure_model is not None:
        configure_model()
    return module


def _assign(module: nn.Module, state: Mapping[str, Any]) -> None:
    own = module.state_dict()
    state = align_names(state, own)
    expected = {name: tuple(tensor.shape) for name, tensor in find_tensors(own).items()}
    given = {name: tuple(tensor.shape) for name, tensor in find_tensors(state).items()}
    wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise RefusedGrowth(
            f"the module built from the checkpoint's hyperparameters is not the one that wrote its weights: "
            f"{len(wrong)} tensors differ, e.g. {name!r} is {given.get(name, 'absent')} in the checkpoint and "
            f"{expected.get(name, 'absent')} in the module. Hyperparameters that load_from_checkpoint(...) overwrites "
            f"are lost for files written without GrowableMixin. {WAYS_OUT}"
        )
    tied = _find_tied(module)
    for first, *others in tied:
        if apart := [name for name in others if first in state and not torch.equal(state[name], state[first])]:
            raise RefusedGrowth(
                f"'{apart[0]}' and '{first}' are one tensor in the module built from the checkpoint's hyperparameters, "
                f"and two different ones in the checkpoint. {WAYS_OUT}"
            )
    module.load_state_dict(state, assign=True)
    for first, *others in tied:  # assigned name by name, they have come apart
        for name in others:
            setattr(*_owner(module, name), getattr(*_owner(module, first)))


def _find_tied(module: nn.Module) -> list[list[str]]:
    """The names of every parameter and buffer that has several."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    ):
        names[id(tensor)].append(name)
    return [found for found in names.values() if len(found) > 1]


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _has_meta_tensors(module: nn.Module) -> bool:
    """Whether a buffer outside the state dict, or a plain tensor attribute, was left without values."""
    attributes = (item for child in module.modules() for item in vars(child).items())
    plain = [value for name, value in attributes if isinstance(value, Tensor) and name != "_example_input_array"]
    return any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers(), *plain])


def _match_float_type(source: nn.Module, target: nn.Module) -> None:
    """Bring the source to the target's one float type, for what runs in another rounds otherwise."""
    own, wanted = (
        {item.dtype for item in module.parameters() if item.is_floating_point()} for module in (source, target)
    )
    if len(wanted) != 1 or own == wanted == {torch.get_default_dtype()}:
        return
    dtype = wanted.pop()
    source.to(dtype)
    inputs = tree_map(lambda leaf: _cast(leaf, dtype), getattr(source, "example_input_array", None))
    setattr(source, "example_input_array", inputs)  # noqa: B010 - a plain attribute, which nn.Module's type denies


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _match_example_inputs(source: nn.Module, target: nn.Module) -> None:
    """Give a source that was built on meta real example inputs: the target's where they are of the same shapes."""
    given = getattr(source, "example_input_array", None)
    if given is None:
        return
    wanted = getattr(target, "example_input_array", None)
    shapes = tree_map(lambda leaf: (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf, (given, wanted))
    inputs = wanted if shapes[0] == shapes[1] else tree_map(_materialize, given)
    setattr(source, "example_input_array", inputs)  # noqa: B010 - a plain attribute, which nn.Module's type denies


def _materialize(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_meta:
        return leaf
    if not leaf.is_floating_point():
        return torch.zeros_like(leaf, device="cpu")
    return torch.randn(leaf.shape, dtype=leaf.dtype, generator=torch.Generator().manual_seed(0))


def _init_arguments(cls: type, hparams: Mapping[str, Any], hparams_name: str | None) -> dict[str, Any]:
    """Those hyperparameters that `__init__` takes; all in one argument where they were saved under its name."""
    kinds = {name: parameter.kind for name, parameter in inspect.signature(cls).parameters.items()}
    open_end = inspect.Parameter.VAR_KEYWORD
    if hparams_name is not None and kinds.get(hparams_name, open_end) is not open_end:
        return {hparams_name: hparams}
    if open_end in kinds.values():
        return {key: value for key, value in hparams.items() if not key.startswith("_")}
    return {key: value for key, value in hparams.items() if key in kinds}


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
