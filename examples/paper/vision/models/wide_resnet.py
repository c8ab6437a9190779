"""Wide residual networks (Zagoruyko and Komodakis, 2016), as the authors' code has them.

That code differs from the paper of these networks: every convolution has a bias, the second one of a block has the stride,
and the last batch norm has a momentum of 0.9 where PyTorch's default is 0.1.
"""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from examples.paper.vision.models.layers import Make


class WideBlock(nnx.Module):
    """Two 3x3 convolutions, each behind its norm, and a shortcut from before the first norm."""

    def __init__(self, in_channels: int, channels: int, stride: int, make: Make):
        self.bn1 = make.batch_norm(in_channels)
        self.conv1 = make.conv(in_channels, channels, 3, use_bias=True)
        self.bn2 = make.batch_norm(channels)
        self.conv2 = make.conv(channels, channels, 3, stride=stride, use_bias=True)
        self.shortcut = nnx.List([])
        if stride != 1 or in_channels != channels:
            self.shortcut = nnx.List([make.conv(in_channels, channels, 1, stride=stride, use_bias=True)])

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels2"]:
        y = self.conv1(nnx.relu(self.bn1(x)))
        y = self.conv2(nnx.relu(self.bn2(y)))
        for module in self.shortcut:
            x = module(x)
        return x + y


class WideResNet(nnx.Module):
    """A WideResNet-`depth`-`widening` of three stages; `depth` is 4 more than a multiple of 6."""

    halvings: ClassVar[int] = 2
    narrowest: ClassVar[int] = 16

    def __init__(self, depth: int, widening: int, width: float, in_channels: int, num_classes: int, make: Make):
        previous = round(16 * width)
        self.conv1 = make.conv(in_channels, previous, 3, use_bias=True)
        self.stages = 3
        for stage in range(self.stages):
            size = round(16 * 2**stage * widening * width)
            layer = []
            for index in range((depth - 4) // 6):
                layer.append(WideBlock(previous, size, 2 if stage > 0 and index == 0 else 1, make))
                previous = size
            setattr(self, f"layer{stage + 1}", nnx.List(layer))
        self.bn1 = make.batch_norm(previous, momentum=0.1)
        self.linear = make.linear(previous, num_classes)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        x = self.conv1(x)
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x)
        return self.linear(nnx.relu(self.bn1(x)).mean(axis=(1, 2)))
