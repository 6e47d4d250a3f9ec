"""A Hugging Face folder grown into another one: config, weights, and what else lies there."""

import difflib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.errors import CheckpointError, RefusedGrowth, WrongSetting
from lightning_grow.extras import extra
from lightning_grow.formats.weights import read_json
from lightning_grow.grow import grow_in_place
from lightning_grow.options import GrowthOptions, check_options
from lightning_grow.report import TransferReport
from lightning_grow.trace.untouched import untouched_rng

WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "*.h5", "*.msgpack", "*.onnx", "config.json")
"""What is written anew, or belongs to the source's weights in yet another format."""

ENCODERS = ("encoder_last_hidden_state",)
"""Outputs that pass on what is inside the model."""

LENGTH, IMAGE, SOUND = 12, 224, 16_000
"""Of example texts, of example images where a config gives no size, and of example sounds."""


def grow_pretrained(
    folder: str | Path, out: str | Path, *, options: GrowthOptions | None = None, **config: Any
) -> TransferReport:
    """Grow a Hugging Face folder into a bigger one that `from_pretrained` loads.

    Both models stand in memory while they are compared. No code from the folder is run.

    Args:
        folder: With a config.json and safetensors weights, sharded or not.
        out: The folder to write, whole or not at all: a new or an empty one. It gets the source's other files too (the
            tokenizer's).
        options: Those of `grow`; the example inputs are made from the config when it gives none.
        **config: What changes in config.json: ``n_embd=1024, n_head=16``; of a part of it
            ``**{"text_config.hidden_size": 64}``.

    Returns:
        The report of the growth.

    Raises:
        CheckpointError: The folder cannot be read, or `out` cannot be written.
        RefusedGrowth: The growth cannot be done; nothing was written.
        WrongSetting: The config has no such entry, or an option a value that nothing can be made of.
        MissingExtra: transformers is not installed.
    """
    checked = check_options(options or {}, "grow_pretrained", "folder", "out")
    folder, out = Path(folder), Path(out)
    check_out(out)
    source = read_pretrained(folder)
    target = make_target(source, config, checked.seed)
    if checked.example_inputs is None:
        checked = replace(checked, example_inputs=make_inputs(source))
    if checked.forward is None:
        checked = replace(checked, forward=run)
    with without_cache(source, target):
        report = grow_in_place(source, target, checked)
    if report.attributes:
        raise RefusedGrowth(
            f"attributes would change ({', '.join(report.attributes)}), which no config.json keeps. Leave "
            "allow_attribute_changes=False."
        )
    if getattr(source, "generation_config", None) is not None:
        target.generation_config = source.generation_config
    skipped = write_pretrained(target, folder, out)
    notes = [f"Folders inside are not copied: {', '.join(skipped)}."] if skipped else []
    return replace(report, notes=(*report.notes, *notes))


def check_out(out: Path) -> None:
    """Refuse to write where something lies.

    Raises:
        CheckpointError: `out` is a file, or a folder with something in it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there already. Pass another name: nothing is overwritten.")


def read_pretrained(folder: Path) -> Any:
    """Load the model in a folder, on the CPU and in the type that it was saved in.

    Raises:
        CheckpointError: It cannot be loaded by transformers itself, or its weights are not all of the model's.
    """
    content = read_json(folder / "config.json")
    names = content.get("architectures") or []
    with extra("huggingface"):
        import transformers
    architecture = getattr(transformers, names[0], None) if names else transformers.AutoModel
    if architecture is None:
        raise CheckpointError(
            f"{folder} holds a {names[0]}, which transformers {transformers.__version__} does not have: it needs code "
            "of its own. Load it yourself, and grow it in memory: lightning_grow.grow(small, big)."
        )
    try:
        loaded = architecture.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # of files that may hold anything
        reason = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(f"{folder} cannot be loaded ({type(error).__name__}: {reason[:200]}).") from error
    model, found = loaded
    for kind, way in (("missing", "Save the whole model"), ("unexpected", "Load it by the class that wrote it")):
        if lacking := sorted(found[f"{kind}_keys"]):
            raise CheckpointError(
                f"{folder}: {len(lacking)} weights are {kind} for a {type(model).__name__}, e.g. {lacking[0]!r}. {way}."
            )
    return model.eval()


def make_target(source: Any, changes: Mapping[str, Any], seed: int) -> Any:
    """Build the bigger model with its class's own initial values.

    Raises:
        RefusedGrowth: The class takes no such sizes.
    """
    config = change_config(source.config, changes)
    _check_image(source.config, config)
    shown = ", ".join(f"{name}={value!r}" for name, value in changes.items())
    with untouched_rng(), _made_in(source.dtype):  # not cast afterwards: frequencies stay in float32
        torch.manual_seed(seed)
        try:
            target: nn.Module = type(source)(config)
        except Exception as error:  # of a class that was given sizes that do not go together
            raise RefusedGrowth(
                f"{type(source).__name__} cannot be built with {shown} ({type(error).__name__}: {error})."
            ) from error
    return target.eval()


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _check_image(config: Any, changed: Any) -> None:
    old, new = (getattr(item, "image_size", None) for item in (config, changed))
    if old != new:
        raise RefusedGrowth(
            f"image_size {old} -> {new}: each patch has a position embedding, and resampled ones are not exact. Keep "
            "image_size and pass interpolate_pos_encoding=True to the model's forward, which takes bigger images; or "
            "resample the embeddings first, train on bigger images until the model is good again, save it, and grow "
            "that folder."
        )


def change_config(config: Any, changes: Mapping[str, Any]) -> Any:
    """A config with some entries changed; lists that its class makes from the numbers (a type a layer) follow them.

    Raises:
        WrongSetting: It has no such entry.
    """
    content = config.to_dict()
    for name, value in changes.items():
        *path, last = name.split(".")
        part, owner = content, config
        for key in path:
            part, owner = part.get(key) or {}, getattr(owner, key, None)
        last = getattr(owner, "attribute_map", {}).get(last, last)
        if last not in part:
            near = difflib.get_close_matches(last, part, n=3, cutoff=0.4)
            raise WrongSetting(
                f"the config has no entry {name!r}. Did you mean one of {', '.join(near) or sorted(part)}?"
            )
        part[last] = value
    named = {name.split(".")[-1] for name in changes}
    return type(config).from_dict(_without_made(config, content, named))


def _without_made(config: Any, content: dict[str, Any], named: set[str]) -> dict[str, Any]:
    """Leave out lists of the source's that its class would have made by itself."""
    lists = [key for key, value in content.items() if isinstance(value, list) and value and key not in named]
    bare = {key: value for key, value in config.to_dict().items() if key not in lists}
    made = type(config).from_dict(bare).to_dict() if lists else {}
    parts = {
        key: _without_made(getattr(config, key), dict(value), named)
        for key, value in content.items()
        if isinstance(value, dict) and hasattr(getattr(config, key, None), "to_dict")
    }
    return {key: parts.get(key, value) for key, value in content.items() if key not in lists or made.get(key) != value}


def make_inputs(model: Any) -> dict[str, Tensor]:
    """Example inputs for a model, by the name of its main one: tokens, an image, a sound; and tokens for a decoder."""
    config, name = model.config, model.main_input_name
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.dtype)

    def tokens() -> Tensor:
        limits = (_find(config, name) for name in ("max_position_embeddings", "n_positions", "max_target_positions"))
        length = min(LENGTH, *(limit for limit in limits if limit), LENGTH)
        return torch.randint(0, _find(config, "vocab_size") or 2, (2, length), generator=generator)

    def image() -> Tensor:
        size = _find(config, "image_size") or IMAGE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return draw(2, _find(config, "num_channels") or 3, height, width)

    def spectrum() -> Tensor:
        return draw(2, _find(config, "num_mel_bins") or 80, 2 * (_find(config, "max_source_positions") or 1500))

    makers = {"pixel_values": image, "input_values": lambda: draw(2, SOUND), "input_features": spectrum}
    inputs = {name: makers.get(name, tokens)()}
    if getattr(config, "vision_config", None) is not None and name != "pixel_values":
        inputs["pixel_values"] = image()
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens()
    return inputs


def _find(config: Any, name: str) -> Any:
    """An entry of a config or of a part of it."""
    parts = [config, *(getattr(config, f"{kind}_config", None) for kind in ("text", "vision", "audio"))]
    return next((value for part in parts if (value := getattr(part, name, None)) is not None), None)


def run(model: nn.Module, *args: Any, **inputs: Any) -> dict[str, Any]:
    """What a model is for: its outputs, without the encoder's own, whose width is inside the model."""
    return {name: value for name, value in model(*args, **inputs).items() if name not in ENCODERS}


@contextmanager
def without_cache(*models: Any) -> Iterator[None]:
    """Compare outputs without the caches that a transformer's forward returns beside them."""
    every: list[Any] = [getattr(model, "config", None) for model in models]
    configs = [config for config in every if hasattr(config, "use_cache")]
    kept = [config.use_cache for config in configs]
    try:
        for config in configs:
            config.use_cache = False
        yield
    finally:
        for config, value in zip(configs, kept, strict=True):
            config.use_cache = value


def write_pretrained(model: Any, source: Path, out: Path) -> list[str]:
    """Write a model's folder, whole or not at all, with the source's other files, and read its weights back.

    Returns:
        The folders inside the source's, which are left out.

    Raises:
        CheckpointError: There is no room or no permission, or what is read back differs.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            made = Path(place) / out.name
            model.save_pretrained(made)
            others = [item for item in sorted(source.iterdir()) if not any(map(item.match, WEIGHTS))]
            for item in others:
                if item.is_file() and not (made / item.name).exists():
                    shutil.copy2(item, made)
            _read_back(model, made)
            if out.exists():
                out.rmdir()  # an empty one
            made.rename(out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({error}). Make room, or write to another place.") from error
    return [item.name for item in others if item.is_dir()]


def _read_back(model: Any, folder: Path) -> None:
    expected, got = model.state_dict(), read_pretrained(folder).state_dict()
    differing = [name for name, item in expected.items() if name not in got or not torch.equal(item, got[name])]
    if differing or expected.keys() != got.keys():
        raise CheckpointError(
            f"transformers does not read back what it wrote: {len(differing)} weights differ, e.g. {differing[:1]}. "
            "Report this model; nothing was written."
        )
