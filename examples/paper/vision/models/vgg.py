"""VGG (Simonyan and Zisserman, 2015)."""

from collections.abc import Callable
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from examples.paper.vision.models.layers import Make

_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nnx.Module):
    """VGG with batch norm and one linear layer; `convolutions` are counted by stage."""

    halvings: ClassVar[int] = 5
    narrowest: ClassVar[int] = 64

    def __init__(self, convolutions: tuple[int, ...], width: float, in_channels: int, num_classes: int, make: Make):
        features: list[nnx.Module | Callable[[Array], Array]] = []  # numbered as in the authors' code: ReLU and pools count
        previous = in_channels
        for count, channels in zip(convolutions, _CHANNELS, strict=True):
            size = round(channels * width)
            for _ in range(count):
                features.append(make.conv(previous, size, 3, use_bias=True))
                features += [make.batch_norm(size), nnx.relu]
                previous = size
            features.append(_max_pool)
        self.features = nnx.List(features)
        self.classifier = make.linear(previous, num_classes)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        for feature in self.features:
            x = feature(x)
        return self.classifier(x.mean(axis=(1, 2)))  # one pixel, for images of 32x32


def _max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels"]:
    return nnx.max_pool(x, (2, 2), strides=(2, 2))
