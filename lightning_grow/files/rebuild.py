"""The module that wrote a checkpoint, built again."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.errors import RefusedGrowth
from lightning_grow.files.as_built import find_as_built
from lightning_grow.files.hparams import in_kind
from lightning_grow.files.record import checkpoint_hparams, find_record
from lightning_grow.pair.input_names import INPUT_NAMES
from lightning_grow.pair.settings import AS_BUILT
from lightning_grow.private import EXAMPLE, tree_map
from lightning_grow.trace.names import align_names, find_tensors
from lightning_grow.trace.untouched import untouched_rng

Source = Callable[[dict[str, Any]], nn.Module]

WAYS_OUT = (
    "Three ways out: pass source= (a callable hparams -> nn.Module that builds the source) to ArchTransfer; "
    "convert the file first with lightning_grow.convert_checkpoint(path, target, out, source=...); "
    "or save the run again from a module that calls self.save_hyperparameters() and has GrowableMixin."
)


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

    # under strict_loading=False a part that the file leaves out by design (a frozen encoder) is the target's own
    lent = {} if getattr(target, "strict_loading", True) else find_tensors(nn.Module.state_dict(target, keep_vars=True))
    name = checkpoint.get("hparams_name")
    shapes = {key: tuple(item.shape) for key, item in find_tensors(state).items()}

    def build() -> nn.Module:
        return configure(build_module(target, hparams, source, name), shapes)

    module = _fill(build, state, lent)
    setattr(module, AS_BUILT, find_as_built(build, module, align_names(target.state_dict(), state)))
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
    return type(like)(**init_arguments(type(like), in_kind(hparams, getattr(like, "hparams", None)), hparams_name))


def _fill(build: Callable[[], nn.Module], state: Mapping[str, Any], lent: Mapping[str, Tensor]) -> nn.Module:
    """Build on the meta device; on the CPU where that fails or leaves a tensor that no state dict carries."""
    with untouched_rng():
        try:
            with torch.device("meta"):
                module = build()
            _assign(module, state, lent)
            if not _has_meta_tensors(module):
                return module
        except RefusedGrowth:
            raise
        except Exception:  # any code may run in an __init__; the CPU build below gives the true error
            pass
        try:
            with torch.device("cpu"):
                module = build()
        except Exception as error:
            raise RefusedGrowth(
                f"the checkpoint's module cannot be built from its hyperparameters "
                f"({type(error).__name__}: {error}). {WAYS_OUT}"
            ) from error
        _assign(module, state, lent)
        return module


def configure(module: nn.Module, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
    """Let a LightningModule make the layers that it makes in `configure_model`; returns the module.

    Args:
        module: As `__init__` left it.
        shapes: Of the tensors that it is to have: once they are there, what fails is the sharding, for want of a mesh.
    """
    configure_model: Callable[[], None] | None = getattr(module, "configure_model", None)
    try:
        if configure_model is not None:
            configure_model()
    except Exception:
        own = {name: tuple(item.shape) for name, item in module.named_parameters()}
        if not own or shapes is None or any(shapes.get(name) != shape for name, shape in own.items()):
            raise
    return module


def _assign(module: nn.Module, state: Mapping[str, Any], lent: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    state = align_names(state, own)
    lacking = {name: item for name, item in nn.Module.state_dict(module).items() if name not in state}
    for name in [name for name, item in lacking.items() if name in lent and lent[name].shape == item.shape]:
        copy = lent[name].detach().clone()
        if name in own:
            state[name] = copy
        else:  # the module leaves it out of its state dict
            trained = isinstance(lent[name], nn.Parameter)
            setattr(*_owner(module, name), nn.Parameter(copy, lent[name].requires_grad) if trained else copy)
    expected, given = (
        {name: tuple(item.shape) if isinstance(item, Tensor) else "no tensor" for name, item in items.items()}
        for items in (own, state)
    )
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
    module.load_state_dict(state, assign=True, strict=not lent)
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
    plain = [value for name, value in attributes if isinstance(value, Tensor) and name != EXAMPLE]
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


def init_arguments(cls: Any, hparams: Mapping[str, Any], hparams_name: str | None) -> dict[str, Any]:
    """Those hyperparameters that `__init__` takes; all in one argument where they were saved under its name."""
    _, *parameters = inspect.signature(cls.__init__).parameters.items()  # fully_shard gives the class a __new__
    kinds = {name: parameter.kind for name, parameter in parameters}
    open_end = inspect.Parameter.VAR_KEYWORD
    if hparams_name is not None and kinds.get(hparams_name, open_end) is not open_end:
        return {hparams_name: hparams}
    if open_end in kinds.values():
        return {key: value for key, value in hparams.items() if not key.startswith("_")}
    return {key: value for key, value in hparams.items() if key in kinds}
