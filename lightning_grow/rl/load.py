"""Read an agent from a file, be it a Lightning checkpoint or plain actor and critic state dicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_grow.errors import CheckpointError
from lightning_grow.files.checkpoint import read_file
from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.normalizer import ObservationNormalizer

KEY = "lightning_grow.rl"
"""A PPO's own key in a checkpoint; everything under it is of plain types."""

PLAIN_NAMES = {
    "actor_state_dict": "actor",
    "policy": "actor",
    "critic_state_dict": "critic",
    "value": "critic",
    "actor.log_std": "log_std",
}


def read_agent(path: str | Path, hparams: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """Return a file's agent as a Lightning checkpoint of a PPO, whichever of the two it was.

    Args:
        path: A Lightning checkpoint, returned as it is, or a `torch.save`d dict of an `actor` and a `critic` state dict
            (or `actor_state_dict`, `policy`; `critic_state_dict`, `value`), each of linear layers as `ActorCritic`
            names them: `0.weight`, `0.bias`, `2.weight`, ... `hidden_dims`, `state_dim`, `activation`, `timestep` and
            `episode` may stand beside them.
        hparams: What a plain file does not say of its agent, as the hyperparameters of a PPO.
        rename: For a plain file with other names: beginning of a name (`policy_net.layers`) to ours (`actor`).

    Raises:
        CheckpointError: If the file cannot be read safely, or holds neither.
    """
    content = read_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict, came {type(content).__name__}.")
    if isinstance(content.get("state_dict"), Mapping):
        return content
    state = plain_state(content, rename)
    source_hparams = {**hparams, **plain_hparams(path, content, state)}
    check_names(path, state, source_hparams)
    weights = {f"agent.{name}": tensor for name, tensor in state.items()}
    if source_hparams["normalize_observations"]:
        rank_zero_warn(
            f"{path} has no observation statistics, and normalize_observations is on: the agent's inputs will drift "
            "away from what it was trained on. Build it with normalize_observations=False to keep what it has learnt."
        )
        statistics = ObservationNormalizer(source_hparams["state_dim"]).state_dict()
        weights |= {f"normalizer.{name}": tensor for name, tensor in statistics.items()}
    counters = {f"{name}s": torch.tensor(content[name]) for name in ("timestep", "episode") if name in content}
    return {"state_dict": weights, "hyper_parameters": source_hparams, KEY: {"statistics": counters, "run": None}}


def plain_state(content: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of all state dicts in a plain file, under the names `ActorCritic` gives them.

    >>> list(plain_state({"policy": {"0.bias": torch.zeros(2)}, "episode": 3}, rename={}))
    ['actor.0.bias']
    """
    parts = {key: part if isinstance(part, Mapping) else {"": part} for key, part in content.items()}
    tensors = {
        f"{key}.{name}".removesuffix("."): tensor
        for key, part in parts.items()
        for name, tensor in part.items()
        if isinstance(tensor, Tensor)
    }
    return {replace_start(replace_start(name, rename), PLAIN_NAMES): tensor for name, tensor in tensors.items()}


def replace_start(name: str, rename: Mapping[str, str]) -> str:
    """Replace the longest beginning of a dotted name that `rename` has.

    >>> replace_start("policy.net.0.weight", {"policy": "critic", "policy.net": "actor"})
    'actor.0.weight'
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        start = ".".join(parts[:count])
        if start in rename:
            return ".".join([part for part in (rename[start], *parts[count:]) if part])
    return name


def plain_hparams(path: str | Path, content: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the sizes off the actor's weights, and hold what the file says of them against it."""
    weights = [tensor for name, tensor in state.items() if name.startswith("actor.") and tensor.ndim == 2]
    if not weights:
        raise CheckpointError(
            f"{path}: expected a Lightning checkpoint or a dict with an 'actor' and a 'critic' state dict,"
            f" found the keys {sorted(map(str, content))[:8]}. Pass rename={{<their name>: 'actor', ...}}."
        )
    sizes = [weights[0].shape[1], *(weight.shape[0] for weight in weights)]
    found = {"state_dim": sizes[0], "hidden_dims": sizes[1:-1]}
    said = {
        "state_dim": content.get("state_dim", sizes[0]),
        "hidden_dims": list(content.get("hidden_dims", sizes[1:-1])),
    }
    if said != found:
        raise CheckpointError(f"{path} says {said}, but its actor's weights have {found}. The file contradicts itself.")
    activation = {"activation": content["activation"]} if "activation" in content else {}
    return {**found, **activation, "action_dim": sizes[-1], "continuous": "log_std" in state, "shared_trunk": False}


def check_names(path: str | Path, state: Mapping[str, Tensor], hparams: Mapping[str, Any]) -> None:
    """Refuse a plain file whose names or shapes are not those of the `ActorCritic` that its sizes make."""
    names = ("state_dim", "action_dim", "continuous", "hidden_dims")
    expected = ActorCritic(**{name: hparams[name] for name in names}).state_dict()
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (state, expected)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{path}: expected the tensors {shapes[1]}, found {shapes[0]}."
            " Pass rename={<beginning of their name>: <beginning of ours>}, e.g. {'actor.network': 'actor'}."
        )
