"""Residual networks (He et al., 2016)."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from examples.paper.vision.models.layers import Make


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int, make: Make):
        self.conv1 = make.conv(in_channels, channels, 3, stride=stride)
        self.bn1 = make.batch_norm(channels)
        self.conv2 = make.conv(channels, channels, 3)
        self.bn2 = make.batch_norm(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, make)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels2"]:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        for module in self.shortcut:
            x = module(x)
        return nnx.relu(x + y)


class Bottleneck(nnx.Module):
    """A 3x3 convolution, which has the stride, between two of 1x1, and a shortcut as in a basic block."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int, make: Make):
        out_channels = self.expansion * channels
        self.conv1 = make.conv(in_channels, channels, 1)
        self.bn1 = make.batch_norm(channels)
        self.conv2 = make.conv(channels, channels, 3, stride=stride)
        self.bn2 = make.batch_norm(channels)
        self.conv3 = make.conv(channels, out_channels, 1)
        self.bn3 = make.batch_norm(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, make)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels2"]:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        for module in self.shortcut:
            x = module(x)
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """A residual network of four stages, each half as large and twice as wide as the one before."""

    halvings: ClassVar[int] = 3
    narrowest: ClassVar[int] = 64

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, ...],
        width: float,
        in_channels: int,
        num_classes: int,
        make: Make,
    ):
        channels = [round(64 * 2**stage * width) for stage in range(len(blocks))]
        self.conv1 = make.conv(in_channels, channels[0], 3)
        self.bn1 = make.batch_norm(channels[0])
        previous = channels[0]
        self.stages = len(blocks)
        for stage, (count, size) in enumerate(zip(blocks, channels, strict=True)):
            layer = []
            for index in range(count):
                layer.append(block(previous, size, 2 if stage > 0 and index == 0 else 1, make))
                previous = block.expansion * size
            setattr(self, f"layer{stage + 1}", nnx.List(layer))
        self.linear = make.linear(previous, num_classes)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        x = nnx.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x)
        return self.linear(x.mean(axis=(1, 2)))


def _shortcut(in_channels: int, channels: int, stride: int, make: Make) -> nnx.List:
    if stride == 1 and in_channels == channels:
        return nnx.List([])
    projection = make.conv(in_channels, channels, 1, stride=stride)
    return nnx.List([projection, make.batch_norm(channels)])
