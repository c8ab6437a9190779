"""ResNet and VGG for small images, as the paper trained them.

The CIFAR variants: a 3x3 stem and no first pooling; VGG with batch norm and one linear head. Names are those of the
authors' PyTorch code with `/` for `.` (`layer1/0/conv1`), and so are the initialization, the padding (1 on every side of
a 3x3 window; `SAME` would pad a strided one unevenly) and the batch norms' momentum and epsilon.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from examples.vision.convolution import conv_general_dilated

_RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
_VGG_CHANNELS = {
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "vgg19": ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}
MODELS = (*_RESNET_BLOCKS, *_VGG_CHANNELS)


def create_model(
    name: str,
    *,
    width: float = 1.0,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Builds a model with float32 parameters.

    Args:
      name: one of `MODELS`.
      width: multiplies every number of channels.
      num_classes: size of the output.
      image_shape: height, width and channels of the images.
      dtype: what it computes in.
      rngs: its `params` stream initializes the weights.

    Raises:
      ValueError: images too small for the model's strides, or a width that leaves it without channels.
    """
    height, breadth, channels = image_shape
    least = 8 if name in _RESNET_BLOCKS else 32
    if min(height, breadth) < least:
        raise ValueError(f"{name} halves its images down from {least}x{least} at least; these are {height}x{breadth}.")
    if round(64 * width) < 1:
        raise ValueError(f"width={width} leaves {name} without channels; give at least {1 / 64}.")
    if name in _RESNET_BLOCKS:
        return ResNet(_RESNET_BLOCKS[name], width, channels, num_classes, dtype, rngs)
    return VGG(_VGG_CHANNELS[name], width, channels, num_classes, dtype, rngs)


class ResNet(nnx.Module):
    """A residual network of basic blocks (He et al., 2016)."""

    def __init__(
        self, blocks: tuple[int, ...], width: float, in_channels: int, num_classes: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        channels = [round(64 * 2**stage * width) for stage in range(len(blocks))]
        self.conv1 = _conv3x3(in_channels, channels[0], dtype=dtype, rngs=rngs)
        self.bn1 = _batch_norm(channels[0], dtype, rngs)
        previous = channels[0]
        self.stages = len(blocks)
        for stage, (count, size) in enumerate(zip(blocks, channels, strict=True)):
            layer = []
            for index in range(count):
                layer.append(BasicBlock(previous, size, 2 if stage > 0 and index == 0 else 1, dtype, rngs))
                previous = size
            setattr(self, f"layer{stage + 1}", nnx.List(layer))
        self.linear = _linear(previous, num_classes, dtype, rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        x = nnx.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x)
        return self.linear(x.mean(axis=(1, 2)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = _conv3x3(in_channels, channels, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = _batch_norm(channels, dtype, rngs)
        self.conv2 = _conv3x3(channels, channels, dtype=dtype, rngs=rngs)
        self.bn2 = _batch_norm(channels, dtype, rngs)
        self.shortcut = nnx.List([])
        if stride != 1 or in_channels != channels:
            projection = nnx.Conv(
                in_channels,
                channels,
                (1, 1),
                strides=stride,
                padding="VALID",
                use_bias=False,
                kernel_init=_kernel_init,
                conv_general_dilated=conv_general_dilated,
                dtype=dtype,
                rngs=rngs,
            )
            self.shortcut = nnx.List([projection, _batch_norm(channels, dtype, rngs)])

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels2"]:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        for module in self.shortcut:
            x = module(x)
        return nnx.relu(x + y)


class VGG(nnx.Module):
    """VGG with batch norm and one linear layer (Simonyan and Zisserman, 2015)."""

    def __init__(
        self,
        stages: tuple[tuple[int, ...], ...],
        width: float,
        in_channels: int,
        num_classes: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        features: list[nnx.Module | Callable[[Array], Array]] = []  # numbered as in the authors' code: ReLU and pools count
        previous = in_channels
        for stage in stages:
            for channels in stage:
                size = round(channels * width)
                features.append(_conv3x3(previous, size, use_bias=True, dtype=dtype, rngs=rngs))
                features += [_batch_norm(size, dtype, rngs), nnx.relu]
                previous = size
            features.append(_max_pool)
        self.features = nnx.List(features)
        self.classifier = _linear(previous, num_classes, dtype, rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        for feature in self.features:
            x = feature(x)
        return self.classifier(x.mean(axis=(1, 2)))  # one pixel, for images of 32x32


_kernel_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(±1/√fan_in), PyTorch's default


def _bias_init(fan_in: int) -> Callable[..., Array]:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


def _conv3x3(
    in_channels: int, channels: int, *, stride: int = 1, use_bias: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        channels,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=use_bias,
        kernel_init=_kernel_init,
        bias_init=_bias_init(9 * in_channels),
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        rngs=rngs,
    )


def _batch_norm(channels: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def _linear(in_features: int, features: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        in_features, features, kernel_init=_kernel_init, bias_init=_bias_init(in_features), dtype=dtype, rngs=rngs
    )


def _max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels"]:
    return nnx.max_pool(x, (2, 2), strides=(2, 2))
