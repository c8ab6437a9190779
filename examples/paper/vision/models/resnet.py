"""Residual networks (He et al., 2016)."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from examples.paper.vision.models.layers import batch_norm, conv, linear


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = conv(in_channels, channels, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(channels, dtype=dtype, rngs=rngs)
        self.shortcut = _shortcut(in_channels, channels, stride, dtype, rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels2"]:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        for module in self.shortcut:
            x = module(x)
        return nnx.relu(x + y)


class Bottleneck(nnx.Module):
    """A 3x3 convolution, which has the stride, between two of 1x1, and a shortcut as in a basic block."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        out_channels = self.expansion * channels
        self.conv1 = conv(in_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(channels, dtype=dtype, rngs=rngs)
        self.conv3 = conv(channels, out_channels, 1, dtype=dtype, rngs=rngs)
        self.bn3 = batch_norm(out_channels, dtype=dtype, rngs=rngs)
        self.shortcut = _shortcut(in_channels, out_channels, stride, dtype, rngs)

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
        *,
        width: float,
        in_channels: int,
        num_classes: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        channels = [round(64 * 2**stage * width) for stage in range(len(blocks))]
        self.conv1 = conv(in_channels, channels[0], 3, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(channels[0], dtype=dtype, rngs=rngs)
        previous = channels[0]
        self.stages = len(blocks)
        for stage, (count, size) in enumerate(zip(blocks, channels, strict=True)):
            layer = []
            for index in range(count):
                layer.append(block(previous, size, 2 if stage > 0 and index == 0 else 1, dtype, rngs))
                previous = block.expansion * size
            setattr(self, f"layer{stage + 1}", nnx.List(layer))
        self.linear = linear(previous, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        x = nnx.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x)
        return self.linear(x.mean(axis=(1, 2)))


def _shortcut(in_channels: int, channels: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.List:
    if stride == 1 and in_channels == channels:
        return nnx.List([])
    projection = conv(in_channels, channels, 1, stride=stride, dtype=dtype, rngs=rngs)
    return nnx.List([projection, batch_norm(channels, dtype=dtype, rngs=rngs)])
