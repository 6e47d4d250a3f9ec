"""Blocks as real projects write them, one mechanism each."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sequence() -> tuple[Tensor, ...]:
    return (randn(2, 7, 6),)


def image() -> tuple[Tensor, ...]:
    return (randn(2, 3, 8, 8),)


def sound() -> tuple[Tensor, ...]:
    return (randn(2, 3, 16),)


def volume() -> tuple[Tensor, ...]:
    return (randn(1, 2, 5, 5, 5),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0)),)


class Einsum(nn.Module):
    """Attention by einsum, heads in the weights' own dimensions."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(6, heads, size) / 3) for _ in range(3))
        self.o, self.size = nn.Parameter(torch.randn(heads, size, 3) / 3), size

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhs->bths", x, weight) for weight in (self.q, self.k, self.v))
        scores = torch.einsum("bths,buhs->bhtu", q, k) / math.sqrt(self.size)
        return torch.einsum("bhtu,buhs,hso->bto", scores.softmax(-1), v, self.o)


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self, width: int, groups: int = 2) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.middle, self.up = nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.out = nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.norm(self.down(x)))
        return self.out(torch.cat([self.up(F.silu(self.middle(skip))), skip], 1))


class Dense(nn.Module):
    """DenseNet: every layer reads all before it."""

    def __init__(self, growth: int, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + growth * i, growth, 3, padding=1) for i in range(layers)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(3 + growth * i) for i in range(layers)])
        self.out = nn.Linear(3 + growth * layers, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """MobileNet: expand, depthwise, squeeze-and-excite, project, add."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, inner, 1)
        self.bn, self.depth = nn.BatchNorm2d(inner), nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.squeeze, self.excite = nn.Linear(inner, 4), nn.Linear(4, inner)
        self.project, self.out = nn.Conv2d(inner, width, 1), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.depth(F.relu6(self.bn(self.expand(x)))))
        gate = self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()
        return self.out((x + self.project(y * gate[:, :, None, None])).amax((2, 3)))


class Grouped(nn.Module):
    """ResNeXt: a convolution in groups whose number grows."""

    def __init__(self, groups: int, size: int = 2) -> None:
        super().__init__()
        self.into, self.mix = nn.Conv2d(3, groups * size, 1), nn.Conv2d(groups * size, groups * size, 3, groups=groups)
        self.out = nn.Conv2d(groups * size, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self.into(x).relu()).relu())


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates and skips."""

    def __init__(self, width: int, skip: int) -> None:
        super().__init__()
        self.into = nn.Conv1d(3, width, 1)
        self.gates = nn.ModuleList([nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(3)])
        self.residuals = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(3)])
        self.skips = nn.ModuleList([nn.Conv1d(width, skip, 1) for _ in range(3)])
        self.out = nn.Conv1d(skip, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.into(x), 0
        for number, (gate, residual, skip) in enumerate(zip(self.gates, self.residuals, self.skips, strict=True)):
            left, right = gate(F.pad(x, (2**number, 0))).chunk(2, 1)
            y = left.tanh() * right.sigmoid()
            total = total + skip(y)
            x = x + residual(y)
        return self.out(total.relu())


class Volume(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.bn, self.out = nn.Conv3d(2, width, 3), nn.BatchNorm3d(width), nn.Linear(width * 27, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.first(x)).relu().flatten(1))


class Mixer(nn.Module):
    """MLP-Mixer: tokens and channels by turns."""

    def __init__(self, width: int, tokens: int, inner: int) -> None:
        super().__init__()
        self.into, self.norm, self.norm2 = nn.Linear(6, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.t1, self.t2 = nn.Linear(7, tokens), nn.Linear(tokens, 7)
        self.c1, self.c2, self.out = nn.Linear(width, inner), nn.Linear(inner, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.t2(F.gelu(self.t1(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.norm2(x))))
        return self.out(x.mean(1))


class Upsampler(nn.Module):
    """A transposed convolution in groups of `size` channels."""

    def __init__(self, groups: int, size: int) -> None:
        super().__init__()
        width = groups * size
        self.into, self.out = nn.Conv2d(3, width, 1), nn.Conv2d(2 * width, 2, 1)
        self.up = nn.ConvTranspose2d(width, 2 * width, 2, 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.into(x).relu()).relu())


class Cells(nn.Module):
    """A recurrent cell in a loop."""

    def __init__(self, cell: type[nn.RNNCellBase], width: int) -> None:
        super().__init__()
        self.cell, self.out, self.width = cell(6, width), nn.Linear(width, 3), width

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Projected(nn.Module):
    """An LSTM with a projection."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, width, proj_size=projection, batch_first=True), nn.Linear(projection, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Decoder(nn.Module):
    """torch's own decoder: self- and cross-attention."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(width, heads, inner, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2, nn.LayerNorm(width))
        self.left, self.right, self.out = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.out(self.decoder(self.left(x), self.right(x.flip(1)), tgt_mask=mask))


class Latents(nn.Module):
    """Perceiver: learned queries attend to the input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, width))
        self.into, self.norm = nn.Linear(6, width), nn.LayerNorm(width)
        self.attend, self.out = nn.MultiheadAttention(width, heads, batch_first=True), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.into(x))
        queries = self.latents.expand(len(x), -1, -1)
        return self.out(queries + self.attend(self.norm(queries), x, x, need_weights=False)[0])


class Experts(nn.Module):
    """A dense mixture: every expert runs, a softmax over experts weighs them."""

    def __init__(self, width: int, inner: int, experts: int = 3) -> None:
        super().__init__()
        self.into, self.gate, self.out = nn.Linear(6, width), nn.Linear(width, experts), nn.Linear(width, 3)
        self.up, self.down = (nn.Parameter(torch.randn(experts, *s) / 3) for s in ((width, inner), (inner, width)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        hidden = torch.einsum("btd,edf->btef", x, self.up).relu()
        each = torch.einsum("btef,efd->bted", hidden, self.down)
        return self.out(x + (self.gate(x).softmax(-1)[..., None] * each).sum(2))


class Adapter(nn.Module):
    """LoRA beside a frozen layer."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.into, self.base, self.out = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.base.requires_grad_(False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x).relu()
        return self.out((self.base(x) + 2.0 * self.up(self.down(x))).relu())


def weight_norm(width: int) -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, width))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(width, 3))


def weight_norm_reading(width: int) -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(width, 3))
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), layer)


def spectral_norm(width: int) -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, width))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(width, 3))


class Graph(nn.Module):
    """Message passing over a dense adjacency made of the features themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near, self.first, self.second = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.near(x)
        adjacency = (keys @ keys.transpose(1, 2)).sigmoid()
        degree = adjacency.sum(-1, keepdim=True).clamp(min=1e-6)
        return self.second((adjacency @ self.first(x) / degree).relu())


class Sets(nn.Module):
    """Deep sets: a sum over elements between two networks."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(6, inner), nn.ELU(), nn.Linear(inner, inner))
        self.rho = nn.Sequential(nn.Linear(inner, outer), nn.Mish(), nn.Linear(outer, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).sum(1))


class Words(nn.Module):
    """Tokens, positions and types; the vocabulary and the context may grow."""

    def __init__(self, width: int, vocabulary: int = 11, context: int = 8) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.kind = nn.Embedding(2, width)
        self.register_buffer("places", torch.arange(context), persistent=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        kinds = self.kind(torch.zeros_like(ids))
        return self.head(self.norm(self.token(ids) + self.position(self.places[: ids.shape[1]]) + kinds))


class Scan(nn.Module):
    """A selective state space, step by step."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 2 * width), nn.Linear(width, 3)
        self.a, self.d = nn.Parameter(torch.randn(width, state)), nn.Parameter(torch.ones(width))
        self.b, self.c, self.dt = nn.Linear(width, state), nn.Linear(width, state), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.into(x).chunk(2, -1)
        step, state, outputs = F.softplus(self.dt(x)), 0.0, []
        b, c = self.b(x), self.c(x)
        for t in range(x.shape[1]):
            decay = (step[:, t, :, None] * -self.a.exp()).exp()
            state = decay * state + step[:, t, :, None] * b[:, t, None] * x[:, t, :, None]
            outputs.append((state * c[:, t, None]).sum(-1) + self.d * x[:, t])
        return self.out(torch.stack(outputs, 1) * F.silu(gate))


class Shuffled(nn.Module):
    """Super-resolution by pixel shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.wide, self.out = nn.Conv2d(3, width, 3), nn.Conv2d(width, 4 * width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.pixel_shuffle(self.wide(self.into(x).relu()), 2))


class QKNorm(nn.Module):
    """Heads whose queries and keys are normalised."""

    def __init__(self, heads: int, size: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.out = nn.Linear(6, 3 * heads * size, bias=False), nn.Linear(heads * size, 3)
        self.nq, self.nk = nn.RMSNorm(size), nn.RMSNorm(size)
        self.table = nn.Parameter(torch.randn(heads, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], self.heads, 3 * self.size).transpose(1, 2).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(self.nq(q), self.nk(k), v, attn_mask=self.table)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Bilinear(nn.Module):
    """Feature crossing by an outer product."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, left), nn.Linear(6, right), nn.Linear(left * right, 3)

    def forward(self, x: Tensor) -> Tensor:
        outer = self.left(x)[..., :, None] * self.right(x).tanh()[..., None, :]
        return self.out(outer.flatten(-2))


class Written(nn.Module):
    """A buffer filled slice by slice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out, self.width = nn.Linear(6, width), nn.Linear(width, 3), width

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        filled = torch.zeros_like(hidden)
        for step in range(x.shape[1]):
            filled[:, step] = hidden[:, step].tanh()
        return self.out(filled)


@dataclass(frozen=True)
class Block:
    """A builder, two configurations, inputs, and the refusal that is right where it cannot grow."""

    build: Callable[..., nn.Module]
    source: tuple[Any, ...]
    target: tuple[Any, ...]
    inputs: Callable[[], tuple[Tensor, ...]] = sequence
    refused: str = ""
    outputs: bool = False

    def make(self) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        source, target = (self.build(*sizes).double() for sizes in (self.source, self.target))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in source.state_dict().items():
                if tensor.is_floating_point():
                    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.add_(0.3 * (noise.abs() if "var" in name else noise))
        return source, target, {"example_inputs": self.inputs(), "allow_output_growth": self.outputs}


def weightless(module: nn.Module) -> nn.Module:
    """A copy with parameters on the meta device and real buffers, as accelerate's init_empty_weights makes it."""
    module, made = copy.deepcopy(module), {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            setattr(part, name, made.setdefault(id(parameter), empty))
    return module


BLOCKS = {
    "einsum attention, heads": Block(Einsum, (2, 4), (3, 4)),
    "einsum attention, head size": Block(Einsum, (2, 4), (2, 6)),
    "U-Net, groups": Block(UNet, (4, 2), (6, 3), image),
    "U-Net, width of a group": Block(UNet, (4, 2), (8, 2), image),
    "DenseNet": Block(Dense, (4,), (6,), image),
    "DenseNet, depth": Block(Dense, (4, 2), (4, 3), image),
    "DenseNet, depth and growth rate": Block(Dense, (4, 2), (8, 4), image),
    "MobileNet": Block(Inverted, (4, 6), (6, 10), image),
    "ResNeXt, groups": Block(Grouped, (2,), (3,), image),
    "ResNeXt, from one group": Block(Grouped, (1,), (2,), image),
    "WaveNet": Block(WaveNet, (4, 5), (6, 8), sound),
    "Conv3d": Block(Volume, (3,), (5,), volume),
    "MLP-Mixer": Block(Mixer, (8, 5, 10), (16, 9, 14)),
    "MLP-Mixer, channels x1.5": Block(Mixer, (8, 5, 10), (12, 9, 14), refused="(?i)use a multiple of 8"),
    "depthwise upsampling": Block(Upsampler, (3, 1), (5, 1), image),
    "more groups upsampled": Block(Upsampler, (3, 2), (5, 2), image),
    "larger groups upsampled": Block(Upsampler, (3, 2), (3, 4), image),
    "LSTMCell in a loop": Block(Cells, (nn.LSTMCell, 5), (nn.LSTMCell, 8)),
    "GRUCell in a loop": Block(Cells, (nn.GRUCell, 5), (nn.GRUCell, 8)),
    "RNNCell in a loop": Block(Cells, (nn.RNNCell, 5), (nn.RNNCell, 8)),
    "LSTM with projection": Block(Projected, (6, 4), (9, 5)),
    "decoder": Block(Decoder, (8, 2, 12), (12, 3, 16)),
    "Perceiver": Block(Latents, (8, 2), (12, 3)),
    "dense experts": Block(Experts, (6, 8), (9, 12)),
    "more experts": Block(Experts, (6, 8, 3), (6, 8, 4), refused="_softmax.* takes a max over|shares"),
    "LoRA": Block(Adapter, (6, 2), (9, 3)),
    "weight_norm, written": Block(weight_norm, (8,), (12,)),
    "weight_norm, read": Block(weight_norm_reading, (8,), (12,)),
    "spectral_norm": Block(spectral_norm, (8,), (12,)),
    "graph": Block(Graph, (5,), (8,)),
    "deep sets": Block(Sets, (5, 6), (8, 9)),
    "words, width": Block(Words, (8,), (12,), tokens),
    "words, vocabulary": Block(Words, (8, 11), (8, 14), tokens, outputs=True),
    "words, context": Block(Words, (8, 11, 8), (8, 11, 12), tokens),
    "state space": Block(Scan, (5, 3), (8, 5)),
    "pixel shuffle": Block(Shuffled, (4,), (6,), image),
    "QK-norm, interleaved, relative table": Block(QKNorm, (2,), (3,)),
    "outer product": Block(Bilinear, (3, 4), (5, 6)),
    "a buffer written in slices": Block(Written, (5,), (8,)),
}
