"""Networks of many fields, each small: world models, tables, series, fields, flows, graphs, segmentation, diffusion."""

import torch
import torch.nn.functional as F
from blocks import Block, image, randn, sequence
from torch import Tensor, nn


def vectors() -> tuple[Tensor, ...]:
    return (randn(3, 6),)


def with_condition() -> tuple[Tensor, ...]:
    return randn(3, 6), randn(3, 4)


def noisy_image() -> tuple[Tensor, ...]:
    return randn(2, 3, 8, 8), torch.tensor([3, 7])


class WorldModel(nn.Module):
    """Dreamer's recurrent state: a GRU, and categorical latents with straight-through gradients."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.encoder, self.latents, self.width = nn.Sequential(nn.Linear(6, width), nn.ELU()), latents, width
        self.cell, self.prior = nn.GRUCell(width + 4 * latents, width), nn.Linear(width, 4 * latents)
        self.decoder = nn.Linear(width + 4 * latents, 6)

    def forward(self, x: Tensor) -> Tensor:
        state, latent, outputs = x.new_zeros(len(x), self.width), x.new_zeros(len(x), 4 * self.latents), []
        for step in x.unbind(1):
            state = self.cell(torch.cat([self.encoder(step), latent], -1), state)
            logits = self.prior(state).view(-1, self.latents, 4)
            shares = logits.softmax(-1)
            latent = (F.one_hot(logits.argmax(-1), 4).to(x) + shares - shares.detach()).flatten(1)
            outputs.append(self.decoder(torch.cat([state, latent], -1)))
        return torch.stack(outputs, 1)


class NBeats(nn.Module):
    """Doubly residual blocks: each takes its backcast off the input and adds its forecast."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        forecast = x.new_zeros(len(x), 4)
        for block in self.blocks:
            out = block(x)
            x, forecast = x - out[:, :6], forecast + out[:, 6:]
        return forecast


class TableTransformer(nn.Module):
    """FT-Transformer: every column is a token."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, width)), nn.Parameter(torch.randn(6, width))
        self.token, self.out = nn.Parameter(torch.randn(1, 1, width)), nn.Linear(width, 2)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", norm_first=True, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        columns = x[..., None] * self.weight + self.bias
        return self.out(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), columns], 1))[:, 0])


class RadianceField(nn.Module):
    """NeRF: sines and cosines of the input, which come in again half way."""

    def __init__(self, width: int, frequencies: int = 4) -> None:
        super().__init__()
        size = 6 + 12 * frequencies
        self.layers = nn.ModuleList([nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width + size, width)])
        self.color, self.frequencies = nn.Linear(width, 3), frequencies

    def forward(self, x: Tensor) -> Tensor:
        encoded = torch.cat([x, *(f(x * 2.0**k) for k in range(self.frequencies) for f in (torch.sin, torch.cos))], -1)
        hidden = encoded
        for number, layer in enumerate(self.layers):
            hidden = layer(torch.cat([hidden, encoded], -1) if number == 2 else hidden).relu()
        return self.color(hidden).sigmoid()


class HyperNetwork(nn.Module):
    """One network makes the weights of another."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, width * 7))
        self.out, self.width = nn.Linear(width, 2), width

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        made = self.maker(condition)
        weight, bias = made[:, : self.width * 6].view(-1, self.width, 6), made[:, self.width * 6 :]
        return self.out((torch.bmm(weight, x[..., None])[..., 0] + bias).tanh())


class SlotAttention(nn.Module):
    """Slots compete for positions, and are updated by a GRU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slots, self.into, self.norm = (
            nn.Parameter(torch.randn(1, 3, width)),
            nn.Linear(6, width),
            nn.LayerNorm(width),
        )
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.cell, self.out, self.width = nn.GRUCell(width, width), nn.Linear(width, 4), width

    def forward(self, x: Tensor) -> Tensor:
        hidden, slots = self.norm(self.into(x)), self.slots.expand(len(x), -1, -1)
        for _ in range(2):
            shares = (self.k(hidden) @ self.q(slots).transpose(1, 2) * self.width**-0.5).softmax(-1) + 1e-8
            update = (shares / shares.sum(1, keepdim=True)).transpose(1, 2) @ self.v(hidden)
            slots = self.cell(update.flatten(0, 1), slots.reshape(-1, self.width)).view_as(slots)
        return self.out(slots)


class Splines(nn.Module):
    """A Kolmogorov-Arnold layer: a function of its own on every edge."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(width, 6, 5) / 3), nn.Parameter(torch.randn(2, width, 5) / 3)
        self.register_buffer("grid", torch.linspace(-2, 2, 5))

    def bumps(self, x: Tensor) -> Tensor:
        return torch.exp(-((x[..., None] - self.grid) ** 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("big,dig->bd", self.bumps(x), self.first)
        return torch.einsum("bdg,odg->bo", self.bumps(hidden), self.second)


class Flow(nn.Module):
    """Affine couplings with the log-determinant."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 6)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, -1)
        total = x.new_zeros(len(x))
        for layer in self.layers:
            scale, shift = layer(first).chunk(2, -1)
            first, second = second * scale.tanh().exp() + shift, first
            total = total + scale.tanh().sum(-1)
        return torch.cat([first, second], -1), total


class LinearAttention(nn.Module):
    """RWKV's time mix: a token shift, decays, and a result written step by step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 3)
        self.mix, self.decay, self.bonus = (nn.Parameter(torch.rand(width)) for _ in range(3))
        self.k, self.v, self.r, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        hidden = self.norm(x)
        mixed = hidden * self.mix + F.pad(hidden, (0, 0, 1, -1)) * (1 - self.mix)
        k, v, r = self.k(mixed), self.v(mixed), self.r(hidden).sigmoid()
        above, below, result = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), torch.empty_like(v)
        for step in range(x.shape[1]):
            now = (self.bonus + k[:, step]).exp()
            result[:, step] = (above + now * v[:, step]) / (below + now + 1e-6)
            above = (-self.decay).exp() * above + k[:, step].exp() * v[:, step]
            below = (-self.decay).exp() * below + k[:, step].exp()
        return self.out(x + self.o(r * result))


class Segmenter(nn.Module):
    """As nnU-Net writes it: instance norms, LeakyReLUs in place, a skip, outputs at two scales."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def block(into: int, out: int, stride: int = 1) -> nn.Module:
            conv = nn.Conv2d(into, out, 3, stride, 1)
            return nn.Sequential(conv, nn.InstanceNorm2d(out, affine=True), nn.LeakyReLU(0.01, inplace=True))

        self.first, self.down, self.last = block(3, width), block(width, 2 * width, 2), block(2 * width, width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.heads = nn.ModuleList([nn.Conv2d(width, 2, 1), nn.Conv2d(2 * width, 2, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        skip = self.first(x)
        deep = self.down(skip)
        return [self.heads[0](self.last(torch.cat([self.up(deep), skip], 1))), self.heads[1](deep)]


class Denoiser(nn.Module):
    """A diffusion U-Net: the time as sines, residual blocks that it shifts, attention at the lower scale."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))
        self.into, self.down, self.up = (
            nn.Conv2d(3, width, 3, 1, 1),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        )
        self.shift, self.inner = nn.Linear(width, width), nn.Conv2d(width, width, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(2, width), nn.GroupNorm(2, 2 * width)])
        self.attention, self.out = nn.MultiheadAttention(2 * width, heads, batch_first=True), nn.Conv2d(2 * width, 3, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.exp(-torch.arange(4, dtype=x.dtype))
        moment = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        hidden = self.into(x)
        hidden = hidden + self.inner(F.silu(self.norms[0](hidden)) + self.shift(moment)[:, :, None, None])
        low = self.down(hidden)
        tokens = self.norms[1](low).flatten(2).transpose(1, 2)
        low = low + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(low.shape)
        return self.out(torch.cat([self.up(low), hidden], 1))


class Queries(nn.Module):
    """A detection head: learned queries, positions by row and column, boxes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.patches, self.boxes = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 4)
        self.rows, self.columns = (nn.Parameter(torch.rand(4, width // 2)) for _ in range(2))
        self.queries = nn.Parameter(torch.rand(5, width))
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, heads, 2 * width, 0.0, norm_first=True, batch_first=True), 1
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.rows[:, None].repeat(1, 4, 1), self.columns[None].repeat(4, 1, 1)
        memory = self.patches(x).flatten(2).transpose(1, 2) + torch.cat([columns, rows], -1).flatten(0, 1)
        return self.boxes(self.decoder(self.queries.expand(len(x), -1, -1), memory)).sigmoid()


class Quantiser(nn.Module):
    """A codebook: the nearest code, with a straight-through gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.codes, self.out = nn.Linear(6, width), nn.Embedding(5, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        code = self.codes(torch.cdist(hidden, self.codes.weight).argmin(-1))
        return self.out(hidden + (code - hidden).detach())


class Spectral(nn.Module):
    """A Fourier layer over the sequence, complex weights per frequency and unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, width), nn.Linear(width, 3)
        self.filter = nn.Parameter(torch.randn(4, width, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        turned = torch.fft.rfft(hidden, dim=1) * torch.view_as_complex(self.filter)
        return self.out(hidden + torch.fft.irfft(turned, n=x.shape[1], dim=1))


class Bottlenecks(nn.Module):
    """YOLO's C2f: halves, then what each bottleneck adds to the last part, all read at once."""

    def __init__(self, width: int, count: int, shortcut: bool = True) -> None:
        super().__init__()
        self.into, self.out, self.shortcut = nn.Conv2d(3, 2 * width, 1), nn.Conv2d((2 + count) * width, 4, 1), shortcut
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, width, 1)
            )
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        read = list(self.into(x).chunk(2, 1))
        for part in self.parts:
            read.append(part(read[-1]) + (read[-1] if self.shortcut else 0))
        return self.out(torch.cat(read, 1))


class DenseBlock(nn.Module):
    """Every layer reads all before it from a list; what is read next is a list of the same beginning."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(3, width, 1), nn.Conv2d((1 + count) * width, 4, 1)
        self.parts = nn.ModuleList(nn.Conv2d((1 + number) * width, width, 3, 1, 1) for number in range(count))

    def forward(self, x: Tensor) -> Tensor:
        read = [self.into(x)]
        for part in self.parts:
            read.append(part(torch.cat(read, 1)).tanh())
        return self.out(torch.cat(read, 1).relu())


class Positional(nn.Module):
    """A depthwise filter beside its input, before a norm over the channels that is written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.filter = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.gain, self.out = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.filter(x)
        spread = (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return self.out((x - x.mean(1, keepdim=True)) / spread * self.gain)


class Windows(nn.Module):
    """Two streams that are joined, cut into windows, told apart and put back in every layer."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(3, width, 1), nn.Linear(width, 4)
        self.parts = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x).flatten(2).mT
        first, rest = x[:, :4], x[:, 4:]
        for part in self.parts:
            windows = rest.roll(7, 1).unflatten(1, (2, 5, 2, 3)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
            joined = torch.cat([first.unsqueeze(2), windows], 2)
            joined = joined + part(joined)
            first, windows = joined[:, :, 0], joined[:, :, 1:]
            rest = windows.unflatten(1, (2, 2)).unflatten(3, (5, 3)).transpose(2, 3).flatten(1, 4).roll(-7, 1)
        return self.out(torch.cat([first, rest], 1))


class SetAttention(nn.Module):
    """Set Transformer's attention: heads split off the features and put one after the other along the batch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.out = heads, nn.Linear(heads * width, 6)
        self.queries, self.keys, self.values = (nn.Linear(6, heads * width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.queries, self.keys, self.values)
        queries, keys, values = (torch.cat(layer(x).chunk(self.heads, 2), 0) for layer in layers)
        mixed = torch.softmax(queries @ keys.transpose(1, 2), -1) @ values
        return x + self.out(torch.cat(mixed.split(len(x), 0), 2))


class Joined(nn.Module):
    """The upward half of a diffusion U-Net: groups of a norm that reach across what is joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.side, self.out = (
            nn.Conv2d(3, 2 * width, 1),
            nn.Conv2d(3, width, 1),
            nn.Conv2d(3 * width, 4, 1),
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, size) for size in (2 * width, width, 3 * width))

    def forward(self, x: Tensor) -> Tensor:
        hidden, side = F.silu(self.norms[0](self.into(x))), self.side(x)
        side = side + F.silu(self.norms[1](side))
        return self.out(F.silu(self.norms[2](torch.cat([hidden, side], 1))))


FAMILIES = {
    "groups across a concatenation": Block(Joined, (8,), (16,), image),
    "groups across a concatenation, x3": Block(Joined, (8,), (24,), image),
    "groups across a concatenation, x1.5": Block(
        Joined, (8,), (12,), image, refused="takes its statistics over .* Use a multiple of 2"
    ),
    "set attention, heads": Block(SetAttention, (3, 2), (3, 4)),
    "set attention, width of heads": Block(SetAttention, (3, 2), (5, 2)),
    "windows of two streams, depth": Block(Windows, (8, 1), (8, 3), image),
    "windows of two streams, depth and width": Block(Windows, (8, 1), (16, 3), image),
    "depthwise positions": Block(Positional, (4,), (8,), image),
    "dense lists, depth": Block(DenseBlock, (4, 2), (4, 4), image),
    "dense lists, depth and width": Block(DenseBlock, (4, 2), (6, 3), image),
    "C2f, bottlenecks": Block(Bottlenecks, (4, 1), (4, 3), image),
    "C2f, bottlenecks and width": Block(Bottlenecks, (4, 1), (8, 2), image),
    "C2f without shortcuts, bottlenecks": Block(Bottlenecks, (4, 1, False), (4, 2, False), image),
    "NeRF, frequencies": Block(RadianceField, (8,), (8, 6), vectors),
    "world model, width": Block(WorldModel, (8, 3), (12, 3)),
    "world model, latents": Block(WorldModel, (8, 3), (8, 5)),
    "N-BEATS, width": Block(NBeats, (8, 2), (12, 2), vectors),
    "N-BEATS, blocks": Block(NBeats, (8, 2), (8, 3), vectors),
    "FT-Transformer, width x2": Block(TableTransformer, (8, 2, 1), (16, 4, 1), vectors),
    "FT-Transformer, depth": Block(TableTransformer, (8, 2, 1), (8, 2, 2), vectors),
    "NeRF": Block(RadianceField, (8,), (12,), vectors),
    "hypernetwork, hidden": Block(HyperNetwork, (5, 8), (5, 12), with_condition),
    "hypernetwork, width": Block(HyperNetwork, (5, 8), (8, 8), with_condition),
    "slot attention": Block(SlotAttention, (8,), (16,)),
    "Kolmogorov-Arnold": Block(Splines, (6,), (10,), vectors),
    "normalising flow": Block(Flow, (6,), (10,), vectors),
    "RWKV's time mix": Block(LinearAttention, (6,), (12,)),
    "nnU-Net": Block(Segmenter, (4,), (8,), image),
    "nnU-Net, x1.5": Block(Segmenter, (4,), (6,), image),
    "diffusion U-Net": Block(Denoiser, (8,), (16,), noisy_image),
    "diffusion U-Net, heads": Block(Denoiser, (8,), (16, 4), noisy_image),
    "detection head": Block(Queries, (8, 2), (16, 4), image),
    "vector quantiser": Block(Quantiser, (6,), (10,)),
    "Fourier layer": Block(Spectral, (6,), (10,), sequence),
}
