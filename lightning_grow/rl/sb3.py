"""Stable-Baselines3's files as plain agents: the policy in its zip, and the statistics that VecNormalize pickles."""

import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_grow.errors import CheckpointError
from lightning_grow.files.checkpoint import read_file

POLICY, DATA = "policy.pth", "data"
PARTS = {"mlp_extractor.policy_net": "actor", "mlp_extractor.value_net": "critic"}
HEADS = {"action_net": "actor", "value_net": "critic"}
ARRAYS = {
    *((module, name) for module in ("numpy", "numpy.dtypes") for name in ("ndarray", "dtype", "Float64DType")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""What an array's pickle names: nothing but these is imported."""


def is_sb3(path: str | Path) -> bool:
    """Whether a file is an archive that Stable-Baselines3 saved."""
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {POLICY, DATA} <= set(archive.namelist())


def read_sb3(path: str | Path) -> dict[str, Any]:
    """Read the policy of a PPO or A2C with an `MlpPolicy`; neither the environment nor the optimizer is read.

    Args:
        path: The zip that `model.save` wrote.

    Returns:
        A plain agent: `actor`, `critic`, `log_std` of continuous actions, `activation`, `timestep`.

    Raises:
        CheckpointError: It is damaged, or the policy is of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            data = json.loads(archive.read(DATA))
            state = read_file(archive.extract(POLICY, folder))
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Copy it again.") from error
    if not isinstance(state, Mapping) or not {f"{head}.weight" for head in HEADS} <= state.keys():
        raise CheckpointError(f"{path} holds no actor-critic of Stable-Baselines3 (PPO or A2C with an MlpPolicy).")
    if strange := sorted({name.split(".")[0] for name in state} - {"log_std", "mlp_extractor", *HEADS}):
        raise CheckpointError(
            f"{path}: its policy has {', '.join(strange)} beside its layers (an encoder of images, a memory). Only an "
            "MlpPolicy of plain observations can be taken over."
        )
    agent: dict[str, Any] = {part: dict(_layers(state, part)) for part in ("actor", "critic")}
    return {
        **agent,
        **({"log_std": state["log_std"]} if "log_std" in state else {}),
        "activation": _activation(data),
        "timestep": int(data.get("num_timesteps", 0)),
    }


def _layers(state: Mapping[str, Tensor], part: str) -> list[tuple[str, Tensor]]:
    """The tensors of one network under the names of one Sequential, whose last layer stands apart in the file."""
    (inner,), (head,) = ([name for name, own in names.items() if own == part] for names in (PARTS, HEADS))
    layers = [(name.removeprefix(f"{inner}."), item) for name, item in state.items() if name.startswith(f"{inner}.")]
    last = max((int(name.split(".")[0]) for name, _ in layers), default=-2) + 2
    return [*layers, *((f"{last}.{kind}", state[f"{head}.{kind}"]) for kind in ("weight", "bias"))]


def _activation(data: Mapping[str, Any]) -> str:
    """What stands between the layers, from the text beside the pickles: Tanh, unless `policy_kwargs` say otherwise."""
    said = str((data.get("policy_kwargs") or {}).get("activation_fn", "Tanh"))
    name = said.rstrip("'>").split(".")[-1].lower()
    return {"leakyrelu": "leaky_relu"}.get(name, name)


def read_vec_normalize(path: str | Path) -> dict[str, Tensor]:
    """Read the observation statistics that `VecNormalize.save` pickled, and run no code that may be in the file.

    Returns:
        `mean`, `var` and `count`, float32, one number a feature.

    Raises:
        CheckpointError: It is no such file, or normalises in a way that this library does not.
    """
    try:
        found = _Reader(io.BytesIO(Path(path).read_bytes())).load()
    except Exception as error:  # a pickle that is damaged, or none, can fail in any way
        raise CheckpointError(f"{path} cannot be read as a VecNormalize ({type(error).__name__}: {error}).") from error
    statistics, settings = getattr(getattr(found, "obs_rms", None), "__dict__", {}), getattr(found, "__dict__", {})
    arrays = {name: np.asarray(statistics[name], dtype=np.float32) for name in ("mean", "var") if name in statistics}
    if len(arrays) < 2 or any(item.ndim != 1 for item in arrays.values()) or not settings.get("norm_obs", True):
        raise CheckpointError(f"{path} holds no statistics of plain observations (VecNormalize with norm_obs=True).")
    wanted = {"clip_obs": 10.0, "epsilon": 1e-8}
    if other := {name: settings[name] for name, value in wanted.items() if settings.get(name, value) != value}:
        raise CheckpointError(
            f"{path} normalises with {other}, and this library with {wanted}: observations would differ."
        )
    tensors = {name: torch.from_numpy(item) for name, item in arrays.items()}
    return {**tensors, "count": torch.full_like(tensors["mean"], float(statistics.get("count", 1.0)))}


class _Bare:
    """Stands for every object in a pickle: what it holds, without its class."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _Reader(pickle.Unpickler):
    """Makes arrays, and of everything else a bare stand-in: nothing that a file names is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in ARRAYS else _Bare
