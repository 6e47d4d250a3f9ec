"""What an agent remembers of an episode: a recurrent layer, stepped at play and replayed whole when it learns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_grow.errors import WrongSetting
from lightning_grow.private import no_onednn

State = tuple[Tensor, ...]
"""What is remembered in each environment, each `(num_envs, hidden_size)`: (hidden, cell), (hidden,), or () of none."""

_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "lstm": (nn.LSTM, ("hidden", "cell")),
    "gru": (nn.GRU, ("hidden",)),
}


@dataclass(frozen=True)
class Past:
    """What sequences are to be read after.

    Args:
        state: At the first step of each sequence.
        begins: Whether an episode begins with a step, which then remembers nothing, bool `(sequences, steps)`.
    """

    state: State
    begins: Tensor


class Memory(nn.Module):
    """A recurrent layer whose weights are orthogonal and whose biases are 0, as CleanRL's.

    What an episode begins with are buffers, all 0: the running states of environments have their names and shapes in a
    checkpoint, and so they grow with them.

    Args:
        kind: "lstm" or "gru".
        features: Length of what it reads.
        hidden_size: Length of what it remembers, and gives.

    Raises:
        WrongSetting: There is no such kind, or a size is below 1.

    References: Hochreiter and Schmidhuber, "Long short-term memory" (1997); Cho et al., "Learning phrase
    representations using RNN encoder-decoder" (2014); Huang et al., "The 37 implementation details of PPO" (2022),
    LSTM details 1 to 5.

    >>> memory = Memory("gru", features=3, hidden_size=8)
    >>> memory(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, kind: str = "lstm", features: int = 0, hidden_size: int = 128) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise WrongSetting(f"no memory of the kind {kind!r}. Known: {', '.join(_KINDS)}.")
        if hidden_size < 1:
            raise WrongSetting(f"Expected the memory's hidden_size to be at least 1, but got {hidden_size}.")
        layer, self.names = _KINDS[kind]
        self.layer: nn.RNNBase = layer(features, hidden_size, batch_first=True)
        for parameter in self.layer.parameters():
            nn.init.orthogonal_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
        for name in self.names:
            self.register_buffer(name, torch.zeros(hidden_size))

    @property
    def begun(self) -> State:
        """What an episode begins with, each `(hidden_size,)`."""
        return tuple(getattr(self, name) for name in self.names)

    def forward(self, features: Tensor, past: Past | None = None) -> Tensor:
        """Read whole sequences.

        Args:
            features: `(sequences, steps, features)`.
            past: What came before, and where episodes begin; each sequence is an episode from its begin when None.

        Returns:
            `(sequences, steps, hidden_size)`.
        """
        if past is None:
            begun = tuple(part.expand(len(features), -1) for part in self.begun)
            return self._read(features, begun)
        pieces = cut(past.begins)
        state = tuple(
            torch.where(pieces.is_begun, begun, part[pieces.sequences])
            for begun, part in zip(self.begun, past.state, strict=True)
        )
        padded = features.new_zeros(len(pieces.sequences), pieces.longest, features.shape[-1])
        read = self._read(padded.index_put(pieces.places, features.flatten(0, 1)), state)
        return read[pieces.places].reshape(*past.begins.shape, -1)

    def _read(self, features: Tensor, state: State) -> Tensor:
        on_cpu = features.device.type == "cpu"
        narrow = on_cpu and (torch.is_autocast_enabled("cpu") or features.dtype is not torch.float32)
        with no_onednn() if narrow else nullcontext():  # it has no narrow LSTM for a CPU without such instructions
            read: Tensor = self.layer(features, _in_layers(state))[0]
        return read

    def step(self, features: Tensor, state: State) -> Tensor:
        """Read one step, `(num_envs, features)`, after a state, which becomes the next one in place."""
        cell: Any = torch.lstm_cell if len(state) > 1 else torch.gru_cell
        after = cell(features, _plain(state), *self.layer.all_weights[0])
        for part, new in zip(state, after if len(state) > 1 else (after,), strict=True):
            part.copy_(new)
        return state[0]


def _in_layers(state: State) -> Any:
    """A state as torch's layers take it."""
    return _plain(tuple(part.unsqueeze(0) for part in state))


def _plain(state: State) -> Any:
    return state if len(state) > 1 else state[0]


@dataclass(frozen=True)
class Pieces:
    """Sequences cut where episodes begin; side by side, padded to the longest, one call of a layer reads them all.

    Attributes:
        places: Of all steps, sequence by sequence: the number of its piece, and its position there.
        longest: Steps of the longest piece.
        sequences: Which sequence each piece is of.
        is_begun: Whether an episode begins with it, `(pieces, 1)`; else it goes on from the sequence's state.
    """

    places: tuple[Tensor, Tensor]
    longest: int
    sequences: Tensor
    is_begun: Tensor


def cut(begins: Tensor) -> Pieces:
    """Cut sequences where episodes begin.

    Args:
        begins: Bool `(sequences, steps)`.

    >>> pieces = cut(torch.tensor([[False, False, True], [True, False, False]]))
    >>> pieces.places, pieces.sequences
    ((tensor([0, 0, 1, 2, 2, 2]), tensor([0, 1, 0, 0, 1, 2])), tensor([0, 0, 1]))
    """
    steps = torch.arange(begins.shape[1], device=begins.device)
    is_first = begins | (steps == 0)
    position = (steps - torch.where(is_first, steps, 0).cummax(1).values).flatten()
    piece = is_first.flatten().cumsum(0) - 1
    firsts = is_first.flatten().nonzero().squeeze(1)
    is_begun = begins.flatten()[firsts].unsqueeze(1)
    return Pieces((piece, position), int(position.max()) + 1, firsts // begins.shape[1], is_begun)


def make_memory(features: int, settings: Mapping[str, Any]) -> Memory:
    """Return the memory of these settings.

    Args:
        features: Length of what it reads.
        settings: `{"kind": "lstm", "hidden_size": 128}`.

    Raises:
        WrongSetting: There is no such kind or setting.
    """
    if strange := settings.keys() - {"kind", "hidden_size"}:
        raise WrongSetting(f"A memory has a kind and a hidden_size, but got {', '.join(sorted(strange))}.")
    return Memory(features=features, **settings)
