"""ResNet, VGG and WideResNet for small images, as the paper trained them.

The CIFAR variants: a 3x3 stem and no first pooling; VGG with batch norm and one linear head. All average over the whole
image before the head, so images may be of any size that the strides leave something of. Names are those of the authors'
PyTorch code with `/` for `.` (`layer1/0/conv1`), and so are the initialization, the padding (1 on every side of a 3x3
window; `SAME` would pad a strided one unevenly) and the batch norms' momentum and epsilon.
"""

from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.paper.errors import UserError
from examples.paper.vision.models.layers import Make
from examples.paper.vision.models.resnet import BasicBlock, Bottleneck, ResNet
from examples.paper.vision.models.vgg import VGG
from examples.paper.vision.models.wide_resnet import WideResNet

Model: TypeAlias = Literal["resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "vgg19", "wrn16-8", "wrn28-6"]
_MODELS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "resnet18": (ResNet, (BasicBlock, (2, 2, 2, 2))),
    "resnet34": (ResNet, (BasicBlock, (3, 4, 6, 3))),
    "resnet50": (ResNet, (Bottleneck, (3, 4, 6, 3))),
    "resnet101": (ResNet, (Bottleneck, (3, 4, 23, 3))),
    "vgg16": (VGG, ((2, 2, 3, 3, 3),)),
    "vgg19": (VGG, ((2, 2, 4, 4, 4),)),
    "wrn16-8": (WideResNet, (16, 8)),
    "wrn28-6": (WideResNet, (28, 6)),
}
MODELS = tuple(_MODELS)


def create_model(
    name: str,
    *,
    width: float = 1.0,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: DTypeLike = jnp.float32,
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
      UserError: no such model, images too small for its strides, or a width that leaves it without channels.
    """
    if name not in _MODELS:
        raise UserError(f"name={name!r} is no model; give one of {', '.join(MODELS)}.")
    family, shape = _MODELS[name]
    height, breadth, channels = image_shape
    least = 2**family.halvings
    if min(height, breadth) < least:
        raise UserError(f"{name} halves its images down from {least}x{least} at least; these are {height}x{breadth}.")
    if round(family.narrowest * width) < 1:
        raise UserError(f"width={width} leaves {name} without channels; give at least {1 / family.narrowest}.")
    return family(*shape, width, channels, num_classes, Make(jnp.dtype(dtype), rngs))
