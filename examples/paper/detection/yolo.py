"""YOLOv8's network, from its published architecture (Jocher et al., 2023), in Flax.

Names are `layer` and the number that descriptions of the network give each of its layers, from the stem, 0, to the head,
22; 10, 11, 13, 14, 17 and 20, which double an image or join two, hold no parameters and are none. In a layer, `conv` and
`bn` are a convolution and the batch norm behind it, `cv1`, `cv2`, `m` the parts of a block, and in the head `cv2` has the
branches of boxes and `cv3` those of classes, three each, one for each stride.
"""

import math
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from examples.paper.detection.boxes import BINS, STRIDES
from examples.paper.detection.losses import Predictions
from examples.paper.errors import UserError
from examples.paper.vision.models.layers import Make

Model: TypeAlias = Literal["yolov8n"]
MOST_CHANNELS = 1024
_MULTIPLES = {"yolov8n": (0.33, 0.25)}
"""Of depth and of width."""
_NOMINAL_SIZE = 640
"""Of images, for the bias of classes."""
Image: TypeAlias = Float[Array, "batch height width channels"]


class ConvUnit(nnx.Module):
    """A convolution without a bias, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, window: int, make: Make, stride: int = 1):
        self.conv = make.conv(inputs, outputs, window, stride)
        self.bn = make.batch_norm(outputs, momentum=0.97, epsilon=1e-3)

    def __call__(self, x: Image) -> Image:
        return nnx.silu(self.bn(self.conv(x)))


class Bottleneck(nnx.Module):
    """Two 3x3 units, and what came in added, if there is a shortcut."""

    def __init__(self, channels: int, shortcut: bool, make: Make):
        self.cv1 = ConvUnit(channels, channels, 3, make)
        self.cv2 = ConvUnit(channels, channels, 3, make)
        self.shortcut = shortcut

    def __call__(self, x: Image) -> Image:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nnx.Module):
    """Half of the channels through bottlenecks one behind another; all that comes on the way is joined."""

    def __init__(self, inputs: int, outputs: int, count: int, shortcut: bool, make: Make):
        half = outputs // 2
        self.cv1 = ConvUnit(inputs, 2 * half, 1, make)
        self.cv2 = ConvUnit((2 + count) * half, outputs, 1, make)
        self.m = nnx.List([Bottleneck(half, shortcut, make) for _ in range(count)])

    def __call__(self, x: Image) -> Image:
        parts = jnp.split(self.cv1(x), 2, axis=-1)
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return self.cv2(jnp.concatenate(parts, axis=-1))


class SPPF(nnx.Module):
    """Three poolings of 5x5, one behind another, joined with what goes into them."""

    def __init__(self, channels: int, make: Make):
        self.cv1 = ConvUnit(channels, channels // 2, 1, make)
        self.cv2 = ConvUnit(channels // 2 * 4, channels, 1, make)

    def __call__(self, x: Image) -> Image:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(nnx.max_pool(parts[-1], (5, 5), strides=(1, 1), padding="SAME"))
        return self.cv2(jnp.concatenate(parts, axis=-1))


class Branch(nnx.Module):
    """Two 3x3 units and a 1x1 convolution with a bias."""

    def __init__(self, inputs: int, channels: int, outputs: int, bias: float, make: Make):
        self.unit1 = ConvUnit(inputs, channels, 3, make)
        self.unit2 = ConvUnit(channels, channels, 3, make)
        self.output = make.conv(channels, outputs, 1, use_bias=True)
        assert self.output.bias is not None
        self.output.bias[...] = jnp.full(outputs, bias)

    def __call__(self, x: Image) -> Image:
        return self.output(self.unit2(self.unit1(x)))


class Head(nnx.Module):
    """The decoupled head: for each stride a branch for the distances of a box's sides, and one for classes."""

    def __init__(self, inputs: tuple[int, ...], classes: int, make: Make):
        of_boxes = max(16, inputs[0] // 4, 4 * BINS)
        of_classes = max(inputs[0], min(classes, 100))
        rare = [math.log(5 / classes / (_NOMINAL_SIZE / stride) ** 2) for stride in STRIDES]  # few places hold an object
        self.cv2 = nnx.List([Branch(channels, of_boxes, 4 * BINS, 1.0, make) for channels in inputs])
        self.cv3 = nnx.List(
            [Branch(*each, make) for each in zip(inputs, [of_classes] * 3, [classes] * 3, rare, strict=True)]
        )

    def __call__(self, features: tuple[Image, ...]) -> Predictions:
        distances, classes = [], []
        for of_boxes, of_classes, x in zip(self.cv2, self.cv3, features, strict=True):
            flat = lambda y: y.reshape(len(y), -1, y.shape[-1]).astype(jnp.float32)
            distances.append(flat(of_boxes(x)))
            classes.append(flat(of_classes(x)))
        joined = jnp.concatenate(distances, axis=1)
        return Predictions(joined.reshape(*joined.shape[:2], 4, BINS), jnp.concatenate(classes, axis=1))


class YOLOv8(nnx.Module):
    """A backbone down to a 32nd of the image, a path aggregation neck, and a head without anchors over three strides."""

    def __init__(self, depth: float, width: float, channels: int, classes: int, make: Make):
        count = lambda blocks: max(round(blocks * depth), 1)
        sizes = [8 * math.ceil(min(size, MOST_CHANNELS) * width / 8) for size in (64, 128, 256, 512, 1024)]
        unit = lambda inputs, outputs: ConvUnit(inputs, outputs, 3, make, stride=2)
        block = lambda inputs, outputs, blocks, shortcut: C2f(inputs, outputs, count(blocks), shortcut, make)
        stem, second, third, fourth, fifth = sizes
        self.layer0 = unit(channels, stem)
        self.layer1 = unit(stem, second)
        self.layer2 = block(second, second, 3, True)
        self.layer3 = unit(second, third)
        self.layer4 = block(third, third, 6, True)
        self.layer5 = unit(third, fourth)
        self.layer6 = block(fourth, fourth, 6, True)
        self.layer7 = unit(fourth, fifth)
        self.layer8 = block(fifth, fifth, 3, True)
        self.layer9 = SPPF(fifth, make)
        self.layer12 = block(fourth + fifth, fourth, 3, False)
        self.layer15 = block(third + fourth, third, 3, False)
        self.layer16 = unit(third, third)
        self.layer18 = block(third + fourth, fourth, 3, False)
        self.layer19 = unit(fourth, fourth)
        self.layer21 = block(fourth + fifth, fifth, 3, False)
        self.layer22 = Head((third, fourth, fifth), classes, make)

    def __call__(self, images: Image) -> Predictions:
        x = self.layer2(self.layer1(self.layer0(images)))
        fine = self.layer4(self.layer3(x))
        middle = self.layer6(self.layer5(fine))
        coarse = self.layer9(self.layer8(self.layer7(middle)))
        middle = self.layer12(_joined(_doubled(coarse), middle))
        fine = self.layer15(_joined(_doubled(middle), fine))
        middle = self.layer18(_joined(self.layer16(fine), middle))
        coarse = self.layer21(_joined(self.layer19(middle), coarse))
        return self.layer22((fine, middle, coarse))


def create_model(
    name: str,
    *,
    width: float | None = None,
    depth: float | None = None,
    channels: int = 3,
    classes: int,
    image_size: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> YOLOv8:
    """Builds a network with float32 parameters.

    Args:
      name: `yolov8n`.
      width: multiplies channels, instead of the model's own 0.25; they are then rounded up to multiples of 8.
      depth: multiplies the number of bottlenecks in a block, instead of the model's own 0.33.
      channels: of the images.
      classes: of objects.
      image_size: height and width of the images.
      dtype: what it computes in.
      rngs: its `params` stream initializes the weights.

    Raises:
      UserError: no such model, or images that the largest stride does not divide.
    """
    if name not in _MULTIPLES:
        raise UserError(f"name={name!r} is no model; give one of {', '.join(_MULTIPLES)}.")
    if image_size % STRIDES[-1]:
        raise UserError(f"--image-size {image_size} must be a multiple of {STRIDES[-1]}, the network's largest stride.")
    own_depth, own_width = _MULTIPLES[name]
    depth, width = own_depth if depth is None else depth, own_width if width is None else width
    return YOLOv8(depth, width, channels, classes, Make(dtype, rngs))


def _doubled(x: Image) -> Image:
    """Twice as high and wide, each pixel four times."""
    return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "nearest")


def _joined(*images: Image) -> Image:
    return jnp.concatenate(images, axis=-1)
