"""Model pairs that share one mechanism each: `Pair` holds a small and a big configuration of one builder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, WIDER, TWICE = 8, 12, 16


def features(batch: int = 5, size: int = 6) -> tuple[Tensor, ...]:
    return (torch.randn(batch, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


def sequence() -> tuple[Tensor, ...]:
    return (torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


def image() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0)),)


def stack(*widths: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False, bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    size = 6
    for width in widths:
        layers += [nn.Linear(size, width, bias=bias), *([nn.LayerNorm(width)] if norm else []), activation()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 3, bias=bias))


class TwoHeads(nn.Module):
    """A shared trunk, a policy and a value head, a state-independent log_std and a normaliser in buffers."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.trunk = nn.Sequential(
            nn.Linear(6, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, width), nn.Tanh()
        )
        self.policy, self.value = nn.Linear(width, 2), nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.trunk((x - self.mean) / (self.var + 1e-8).sqrt())
        return self.policy(hidden), self.value(hidden), self.log_std.expand(len(x), 2)


class Streams(nn.Module):
    """Two growing streams side by side."""

    def __init__(self, first: int, second: int, swap: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.swap = nn.Linear(6, first), nn.Linear(6, second), swap
        self.out = nn.Linear(first + second, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x).tanh(), self.second(x).relu()]
        return self.out(torch.cat(parts[::-1] if self.swap else parts, -1))


class Norm(nn.Module):
    """A normalised stream of a given scale between two linear layers."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module], scale: float = 1.0) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(6, width), norm(width), nn.Linear(width, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.scale * self.into(x)))


class HandRMS(nn.Module):
    """x / rms(x) with a gain of the form 1 + w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2) * (1 + self.weight)


class HandLayer(nn.Module):
    """A LayerNorm from mean and squares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-2) * self.weight + self.bias


class Residual(nn.Module):
    """SimBa: pre-norm residual blocks."""

    def __init__(self, width: int, inner: int, depth: int = 2) -> None:
        super().__init__()
        self.into = nn.Linear(6, width)
        block = lambda: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))  # noqa: E731
        self.blocks = nn.ModuleList([block() for _ in range(depth)])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(self.norm(x))


class Tied(nn.Module):
    """A head that reads with the embedding that writes, behind a (1 + w) norm and an embedding scaled by sqrt(d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.norm, self.width = nn.Embedding(11, width), HandRMS(width), width
        self.mix = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.width**0.5
        return F.linear(self.norm(x + self.mix(self.norm(x))), self.embed.weight)


class Convolution(nn.Module):
    """Convolutions with BatchNorm and a flatten in either order."""

    def __init__(self, channels: int, last: bool = False) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, channels, 3, bias=False), nn.BatchNorm2d(channels)
        self.second, self.last = nn.Conv2d(channels, 2 * channels, 3), last
        self.out = nn.Linear(2 * channels * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.bn(self.first(x)).relu()).relu()
        return self.out((x.permute(0, 2, 3, 1) if self.last else x).flatten(1))


class Recurrent(nn.Module):
    """A recurrent layer with a head on every step."""

    def __init__(self, cell: type[nn.RNNBase], width: int, **options: Any) -> None:
        super().__init__()
        self.rnn = cell(6, width, batch_first=True, **options)
        self.out = nn.Linear((2 if options.get("bidirectional") else 1) * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Attention(nn.Module):
    """Grouped-query attention in a pre-norm residual stream, the scale written out."""

    def __init__(self, width: int = 8, groups: int = 2, heads: int = 2, size: int = 4) -> None:
        super().__init__()
        self.groups, self.heads, self.size = groups, heads, size
        self.into, self.norm = nn.Linear(6, width), nn.LayerNorm(width)
        self.q = nn.Linear(width, groups * heads * size)
        self.kv = nn.Linear(width, 2 * groups * size)
        self.o, self.out = nn.Linear(groups * heads * size, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        batch, steps, _ = x.shape
        q = self.q(self.norm(x)).view(batch, steps, self.groups * self.heads, self.size).transpose(1, 2)
        k, v = self.kv(self.norm(x)).view(batch, steps, 2, self.groups, self.size).permute(2, 0, 3, 1, 4)
        k, v = (item.repeat_interleave(self.heads, 1) for item in (k, v))
        mixed = ((q @ k.transpose(-1, -2)) * self.size**-0.5).softmax(-1) @ v
        return self.out(x + self.o(mixed.transpose(1, 2).reshape(batch, steps, -1)))


class Encoder(nn.Module):
    """torch's own encoder."""

    def __init__(self, width: int = 8, heads: int = 2, inner: int = 12, layers: int = 2, pre: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, inner, dropout=0.1, batch_first=True, norm_first=pre)
        self.into = nn.Linear(6, width)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.into(x))[:, 0])


class SummedLast(nn.Module):
    """A width that a sum at the end wants to grow by zeros, around one that a norm wants to grow by copies."""

    def __init__(self, width: int, grouped: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(6, grouped)
        self.norm, self.out = nn.GroupNorm(2, grouped), nn.Linear(grouped, 3)

    def forward(self, x: Tensor) -> Tensor:
        added = self.first(x)
        return self.out(self.norm(self.second(x))) + added.sum(-1, keepdim=True)


class Gated(nn.Module):
    """A gated layer, its halves in one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(6, 2 * width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.glu(self.both(x)))


@dataclass(frozen=True)
class Pair:
    """Two configurations of one builder."""

    build: Callable[..., nn.Module]
    source: tuple[Any, ...]
    target: tuple[Any, ...]
    inputs: Callable[[], tuple[Tensor, ...]] = features
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
        """A trained-looking source (no weight or statistic at its initial value), a fresh target, inputs."""
        torch.manual_seed(0)
        source, target = (self.build(*sizes, **self.options).to(dtype) for sizes in (self.source, self.target))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in source.state_dict().items():
                if tensor.is_floating_point():
                    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(dtype)
                    tensor.add_(0.3 * (noise.abs() if "var" in name else noise))
        inputs = tuple(item.to(dtype) if item.is_floating_point() else item for item in self.inputs())
        return source, target, inputs


def _norm(kind: Callable[[int], nn.Module], width: int, scale: float = 1.0) -> Pair:
    return Pair(Norm, (WIDTH, kind, scale), (width, kind, scale))


def layer_norm(width: int) -> nn.Module:
    return nn.LayerNorm(width)


def rms_norm(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-2)


PAIRS = {
    "relu": Pair(stack, (8, 8), (12, 10)),
    "tanh": Pair(stack, (8, 8), (12, 10), options={"activation": nn.Tanh}),
    "gelu": Pair(stack, (8, 8), (16, 10), options={"activation": nn.GELU}),
    "silu without bias": Pair(stack, (8, 8), (12, 16), options={"activation": nn.SiLU, "bias": False}),
    "sigmoid": Pair(stack, (8, 8), (12, 10), options={"activation": nn.Sigmoid}),
    "norms between": Pair(stack, (8, 8), (12, 16), options={"norm": True}),
    "deeper, earliest": Pair(stack, (8,), (8, 8)),
    "deeper by two": Pair(stack, (8,), (8, 8, 8)),
    "deeper by two, wider": Pair(stack, (8,), (12, 12, 12)),
    "deeper, keeps the last": Pair(stack, (12, 8), (12, 12, 8)),
    "deeper and wider": Pair(stack, (8, 8), (12, 12, 10)),
    "two heads": Pair(TwoHeads, (8,), (13,)),
    "dropout": Pair(TwoHeads, (8, 0.5), (12, 0.5)),
    "zeros around copies": Pair(SummedLast, (4, 4), (6, 8)),
    "streams": Pair(Streams, (4, 6), (6, 9)),
    "streams swapped": Pair(Streams, (4, 6, True), (6, 9, True)),
    "one stream": Pair(Streams, (4, 6), (4, 9)),
    "LayerNorm x1.5": _norm(layer_norm, WIDER),
    "LayerNorm x2": _norm(layer_norm, TWICE),
    "LayerNorm of a stream of scale 1e-3": _norm(layer_norm, WIDER, 1e-3),
    "RMSNorm x1.5": _norm(rms_norm, WIDER),
    "RMSNorm of a stream of scale 1e-3": _norm(rms_norm, WIDER, 1e-3),
    "hand-written RMSNorm": _norm(HandRMS, WIDER),
    "hand-written LayerNorm": _norm(HandLayer, WIDER),
    "residual stream": Pair(Residual, (8, 12), (11, 16)),
    "residual depth": Pair(Residual, (8, 12, 2), (8, 14, 4)),
    "tied head, scaled embedding": Pair(Tied, (8,), (11,), tokens),
    "convolution": Pair(Convolution, (4,), (6,), image),
    "channels last": Pair(Convolution, (4, True), (6, True), image),
    "LSTM": Pair(Recurrent, (nn.LSTM, 5), (nn.LSTM, 8), sequence, {"num_layers": 2}),
    "GRU both ways": Pair(Recurrent, (nn.GRU, 5), (nn.GRU, 8), sequence, {"bidirectional": True}),
    "more groups of heads": Pair(Attention, (8, 2, 2, 4), (8, 3, 2, 4), sequence),
    "more heads in a group": Pair(Attention, (8, 2, 2, 4), (8, 2, 3, 4), sequence),
    "larger heads": Pair(Attention, (8, 2, 2, 4), (11, 2, 2, 6), sequence),
    "pre-norm encoder": Pair(Encoder, (8, 2, 12, 2), (12, 3, 20, 3), sequence),
    "post-norm encoder, doubled": Pair(Encoder, (8, 2, 12, 2, False), (16, 4, 24, 2, False), sequence),
    "gated": Pair(Gated, (5,), (8,)),
}
