"""Read an agent from a file, be it a Lightning checkpoint or plain actor and critic state dicts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_grow.errors import CheckpointError, WrongSetting
from lightning_grow.files.checkpoint import read_file
from lightning_grow.files.rebuild import rebuild_source
from lightning_grow.grow import grow_in_place
from lightning_grow.options import GrowthOptions, Options, check_options
from lightning_grow.report import TransferReport
from lightning_grow.rl.actor_critic import ActorCritic
from lightning_grow.rl.normalizer import ObservationNormalizer
from lightning_grow.rl.sb3 import is_sb3, read_sb3, read_vec_normalize
from lightning_grow.strategies import Strategy

KEY = "lightning_grow.rl"
"""A PPO's own key in a checkpoint; everything under it is of plain types."""

OWN_NAMES = ("actor", "critic", "trunk", "actor_head", "critic_head", "log_std")
PLAIN_NAMES = {
    **dict.fromkeys(("actor_state_dict", "policy", "policy_state_dict"), "actor"),
    **dict.fromkeys(("critic_state_dict", "value", "value_state_dict"), "critic"),
    **dict.fromkeys(("model", "model_state_dict", "agent", "agent_state_dict"), ""),
    "actor.log_std": "log_std",
}


def read_agent(
    path: str | Path,
    hparams: Mapping[str, Any],
    rename: Mapping[str, str],
    vec_normalize: str | Path | None = None,
) -> dict[str, Any]:
    """Return a file's agent as a Lightning checkpoint of a PPO, whichever of the two it was.

    Args:
        path: A Lightning checkpoint, returned as it is, or a `torch.save`d dict of an `actor` and a `critic` state dict
            (or `actor_state_dict`, `policy`, ...; `critic_state_dict`, `value`, ...), each of linear layers as
            `ActorCritic` names them: `0.weight`, `0.bias`, `2.weight`, ...; or of one state dict (`model_state_dict`,
            `policy_state_dict`, ...) with the names of a whole `ActorCritic`, a `trunk` with two heads included.
            `hidden_dims`, `state_dim`, `activation`, `timestep`, `episode` and `metrics` may stand beside them. Or the
            zip of a PPO or A2C of Stable-Baselines3, with an `MlpPolicy`.
        hparams: What a plain file does not say of its agent, as the hyperparameters of a PPO.
        rename: Beginning of a name of ours (`actor`) to that of the file's (`policy_net.layers`), where they differ.
        vec_normalize: What Stable-Baselines3's `VecNormalize.save` wrote: the statistics of a plain file's agent.

    Raises:
        CheckpointError: If the file cannot be read safely, or holds neither.
        WrongSetting: If `rename` is for a plain file and has a name that no agent has.
    """
    content = read_sb3(path) if is_sb3(path) else read_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict, came {type(content).__name__}.")
    if isinstance(state := content.get("state_dict"), Mapping):
        ours = {theirs: own for own, theirs in rename.items()}
        return {**content, "state_dict": {replace_start(name, ours): tensor for name, tensor in state.items()}}
    state = plain_state(content, plain_names(rename))
    source_hparams = {**hparams, **plain_hparams(path, content, state)}
    parts = hparams["action_dim"]
    if not isinstance(parts, int) and sum(parts) == source_hparams["action_dim"]:
        source_hparams["action_dim"] = parts  # which of them a file's logits belong to is in none of its weights
    check_names(path, state, source_hparams)
    weights = {f"agent.{name}": tensor for name, tensor in state.items()}
    if "activation" not in content and source_hparams["hidden_dims"]:
        rank_zero_warn(
            f"{path} does not say which activation its layers have; it is taken to be {hparams['activation']}, as this "
            "agent's. If it is another one, build the agent with that: PPO(..., activation=...)."
        )
    if vec_normalize is not None:
        statistics = read_vec_normalize(vec_normalize)
        check_statistics(vec_normalize, statistics, source_hparams)
        weights |= {f"normalizer.{name}": tensor for name, tensor in statistics.items()}
    elif source_hparams["normalize_observations"]:
        rank_zero_warn(
            f"{path} has no observation statistics, and normalize_observations is on: the agent's inputs will drift "
            "away from what it was trained on. Build it with normalize_observations=False to keep what it has learnt."
        )
        statistics = ObservationNormalizer(source_hparams["state_dim"]).state_dict()
        weights |= {f"normalizer.{name}": tensor for name, tensor in statistics.items()}
    counters = {f"{name}s": torch.tensor(content[name]) for name in ("timestep", "episode") if name in content}
    own = {"statistics": counters, "run": None, "metrics": content.get("metrics", {})}
    return {"state_dict": weights, "hyper_parameters": source_hparams, KEY: own}


def check_statistics(path: str | Path, statistics: Mapping[str, Tensor], hparams: Mapping[str, Any]) -> None:
    """Refuse statistics of other observations than the agent's, or for an agent that would not use them."""
    if not hparams["normalize_observations"]:
        raise WrongSetting(f"{path} has observation statistics; build the agent with normalize_observations=True.")
    if len(statistics["mean"]) != hparams["state_dim"]:
        raise CheckpointError(
            f"{path} has statistics of {len(statistics['mean'])} features, and the policy reads {hparams['state_dim']}."
        )


def grow_from_file(
    agent: LightningModule, path: str | Path, options: Options, vec_normalize: str | Path | None = None
) -> tuple[TransferReport, dict[str, Any]]:
    """Grow the agent in a file into this one.

    Args:
        agent: A PPO, changed in place.
        path: See `read_agent`.
        options: Of the growth; `rename` is from this agent's names to the file's.
        vec_normalize: See `read_agent`.

    Returns:
        What was done to each tensor, and what the file has under `KEY`.
    """
    checkpoint = read_agent(path, agent.hparams, options.rename or {}, vec_normalize)
    source = rebuild_source(agent, checkpoint, checkpoint["state_dict"])
    report = grow_in_place(source, agent, replace(options, rename=None))  # the file's names are ours by now
    return report, checkpoint.get(KEY, {})


def transfer_options(options: GrowthOptions, transfer_strategy: str | Strategy | None) -> Options:
    """Check the options of a `load_with_transfer`, whose strategy has two names.

    Raises:
        TypeError: There is no such option, or a strategy under both names.
    """
    if transfer_strategy is not None:
        if "strategy" in options:
            raise TypeError("load_with_transfer got a strategy and a transfer_strategy, which mean the same.")
        options["strategy"] = transfer_strategy
    return check_options(options, "load_with_transfer", "transfer_strategy", "device", "vec_normalize")


def plain_names(rename: Mapping[str, str]) -> dict[str, str]:
    """Return beginnings of a plain file's names -> ours as `ActorCritic` has them, whose PPO has "agent." before them.

    >>> plain_names({"agent.actor": "policy_net.layers"})
    {'policy_net.layers': 'actor'}
    >>> plain_names({"policy_net.layers": "actor"})
    Traceback (most recent call last):
    lightning_grow.errors.WrongSetting: Expected rename to map this agent's names (actor, critic, trunk, actor_head, ...
    """
    ours = {theirs: own.removeprefix("agent.") for own, theirs in rename.items()}
    for theirs, own in ours.items():
        if not is_own(own):
            raise WrongSetting(
                f"Expected rename to map this agent's names ({', '.join(OWN_NAMES)}) to the file's, but got {own!r}. "
                f"Pass rename={{<beginning of ours>: <beginning of theirs>}}, e.g. {{{theirs!r}: {own!r}}}."
            )
    return ours


def is_own(name: str) -> bool:
    """Whether a name begins as `ActorCritic`'s do."""
    return name.split(".")[0] in OWN_NAMES


def plain_state(content: Mapping[str, Any], ours: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of all state dicts in a plain file, under the names `ActorCritic` gives them.

    >>> list(plain_state({"policy": {"0.bias": torch.zeros(2)}, "episode": 3}, ours={}))
    ['actor.0.bias']
    >>> list(plain_state({"policy": {"trunk.0.bias": torch.zeros(2)}}, ours={}))
    ['trunk.0.bias']
    """
    parts = {key: part if isinstance(part, Mapping) else {"": part} for key, part in content.items()}
    return {
        own_name(key, name, ours): tensor
        for key, part in parts.items()
        for name, tensor in part.items()
        if isinstance(tensor, Tensor)
    }


def own_name(key: str, name: str, ours: Mapping[str, str]) -> str:
    """The name that `ActorCritic` has for a tensor: the one in its state dict if that begins as ours do."""
    renamed = replace_start(f"{key}.{name}".removesuffix("."), ours)
    if renamed == f"{key}.{name}" and key not in OWN_NAMES and is_own(name):
        return name
    return replace_start(renamed, PLAIN_NAMES)


def replace_start(name: str, starts: Mapping[str, str]) -> str:
    """Replace the longest beginning of a dotted name that `starts` has.

    >>> replace_start("policy.net.0.weight", {"policy": "critic", "policy.net": "actor"})
    'actor.0.weight'
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        start = ".".join(parts[:count])
        if start in starts:
            return ".".join([part for part in (starts[start], *parts[count:]) if part])
    return name


def plain_hparams(path: str | Path, content: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the sizes off the policy's weights, and hold what the file says of them against it."""
    shared = any(name.startswith("trunk.") for name in state)
    policy = ("trunk.", "actor_head.") if shared else ("actor.",)
    weights = [tensor for name, tensor in state.items() if name.startswith(policy) and tensor.ndim == 2]
    if not weights:
        raise CheckpointError(
            f"{path}: expected a Lightning checkpoint, or a dict with an 'actor' and a 'critic' state dict or one of a "
            f"whole agent, found the keys {sorted(map(str, content))[:8]}. Pass rename={{'actor': <their name>, ...}}."
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
    return {**found, **activation, "action_dim": sizes[-1], "continuous": "log_std" in state, "shared_trunk": shared}


def check_names(path: str | Path, state: Mapping[str, Tensor], hparams: Mapping[str, Any]) -> None:
    """Refuse a plain file whose names or shapes are not those of the `ActorCritic` that its sizes make."""
    names = ("state_dim", "action_dim", "continuous", "hidden_dims", "shared_trunk")
    expected = ActorCritic(**{name: hparams[name] for name in names}).state_dict()
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (state, expected)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{path}: expected the tensors {shapes[1]}, found {shapes[0]}."
            " Pass rename={<beginning of ours>: <beginning of theirs>}, e.g. {'actor': 'actor.network'}."
        )
