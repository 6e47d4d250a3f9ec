"""From images to features: convolutional encoders, which grow by filters, by blocks and by frames."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_grow.errors import WrongSetting

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Encoder(nn.Module):
    """Features of images `(..., height, width, channels)`; bytes are scaled to [0, 1].

    Args:
        body: From `(batch, channels, height, width)` to maps of any size.
        shape: (height, width, channels) of an image.
        features: Length of what comes out.

    Raises:
        WrongSetting: The images are too small for the body.
    """

    def __init__(self, body: nn.Sequential, shape: Sequence[int], features: int) -> None:
        super().__init__()
        height, width, channels = shape
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                maps = body(torch.zeros(1, channels, height, width)).numel()
        except RuntimeError as error:
            raise WrongSetting(
                f"The encoder does not take images of {height} x {width}: {error}. Use smaller kernels or strides."
            ) from error
        self.body, self.out = body, orthogonal(nn.Linear(maps, features))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, `(..., features)`."""
        pixels = images / 255 if images.dtype == torch.uint8 else images
        maps = self.body(pixels.to(self.out.weight.dtype).flatten(0, -4).movedim(-1, -3))
        features: Tensor = self.out(maps.flatten(1)).relu()
        return features.reshape(*images.shape[:-3], -1)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), whose last convolution may be 0: then it changes nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (orthogonal(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape."""
        change: Tensor = self.second(self.first(maps.relu()).relu())
        return maps + change


def nature_cnn(
    shape: Sequence[int],
    channels: Sequence[int] = (32, 64, 64),
    kernels: Sequence[int] = (8, 4, 3),
    strides: Sequence[int] = (4, 2, 1),
    features: int = 512,
) -> Encoder:
    """Convolutions with ReLU; with other kernels and strides for other images (MinAtar: channels [16], 3, 1).

    Args:
        shape: (height, width, channels) of an image.
        channels: Filters of each layer.
        kernels: Size of each layer's kernel.
        strides: Of each layer.
        features: Length of what comes out.

    References: Mnih et al., "Human-level control through deep reinforcement learning" (2015).

    >>> nature_cnn((84, 84, 4))(torch.zeros(2, 84, 84, 4, dtype=torch.uint8)).shape
    torch.Size([2, 512])
    """
    layers: list[nn.Module] = []
    sizes = [shape[-1], *channels]
    for fan_in, fan_out, kernel, stride in zip(sizes, channels, kernels, strides, strict=False):
        layers += [orthogonal(nn.Conv2d(fan_in, fan_out, kernel, stride)), nn.ReLU()]
    return Encoder(nn.Sequential(*layers), shape, features)


def impala_cnn(
    shape: Sequence[int], channels: Sequence[int] = (16, 32, 32), blocks: int = 2, features: int = 256
) -> Encoder:
    """Stages of a convolution, a pooling and residual blocks.

    Args:
        shape: (height, width, channels) of an image.
        channels: Filters of each stage.
        blocks: Residual blocks of each stage; more of them is how it gets deeper.
        features: Length of what comes out.

    References: Espeholt et al., "IMPALA" (2018), figure 3, the larger network.

    >>> impala_cnn((16, 16, 3))(torch.zeros(2, 16, 16, 3)).shape
    torch.Size([2, 256])
    """
    stages: list[nn.Module] = []
    for fan_in, fan_out in zip([shape[-1], *channels], channels, strict=False):
        pooled = [orthogonal(nn.Conv2d(fan_in, fan_out, 3, padding=1)), nn.MaxPool2d(3, 2, 1)]
        stages.append(nn.Sequential(*pooled, *(Residual(fan_out) for _ in range(blocks))))
    return Encoder(nn.Sequential(*stages, nn.ReLU()), shape, features)


ENCODERS: dict[str, Callable[..., Encoder]] = {"nature_cnn": nature_cnn, "impala_cnn": impala_cnn}


def make_encoder(shape: Sequence[int], settings: Mapping[str, Any]) -> Encoder:
    """Return the encoder of that `kind`, with its other settings as arguments.

    Args:
        shape: (height, width, channels) of an image.
        settings: `{"kind": "nature_cnn", "channels": [32, 64, 64]}`.

    Raises:
        WrongSetting: There is no such kind, or it has no such argument.
    """
    arguments = {name: value for name, value in settings.items() if name != "kind"}
    make = ENCODERS.get(settings.get("kind", ""))
    if make is None:
        raise WrongSetting(f"no encoder named {settings.get('kind')!r}. Known: {', '.join(ENCODERS)}.")
    try:
        return make(shape, **arguments)
    except TypeError as error:
        raise WrongSetting(f"encoder {settings['kind']}: {error}.") from error


def orthogonal(layer: Layer, gain: float = math.sqrt(2)) -> Layer:
    """Return the layer with an orthogonal weight of that gain and no bias yet."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
