"""A 2-D convolution whose gradients are fast inside a loop on CPU.

XLA's CPU compiler brings convolutions into the layout of its fast routine in a program's entry only, not in the body of
a loop (JAX issue 12868), and the gradients of a convolution are not in that layout: inside `lax.scan`, an epoch of a
ResNet took ten times as long. Here they are written in that layout. Other platforms get JAX's own gradients.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def conv_general_dilated(
    lhs: Float[Array, "batch height width inputs"],
    rhs: Float[Array, "window_height window_width inputs outputs"],
    window_strides: Pair,
    padding: Any,
    **kwargs: Any,
) -> Float[Array, "batch height2 width2 outputs"]:
    """`jax.lax.conv_general_dilated` as `nnx.Conv` calls it for 2-D images, undilated and ungrouped.

    Raises:
      NotImplementedError: it is dilated or grouped.
    """
    for name in ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count"):
        value = kwargs.get(name)
        if value is not None and np.any(np.asarray(value) != 1):
            raise NotImplementedError(
                f"{name}={value}: this convolution is written for 1; without conv_general_dilated, nnx.Conv takes JAX's own."
            )
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    return _convolve(tuple(window_strides), tuple(map(tuple, padding)), lhs, rhs)


def _plain(strides: Pair, padding: Padding, images: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_LAYOUT)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(strides: Pair, padding: Padding, images: Array, kernel: Array) -> Array:
    return _plain(strides, padding, images, kernel)


def _forward(strides: Pair, padding: Padding, images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _plain(strides, padding, images, kernel), (images, kernel)


def _backward(strides: Pair, padding: Padding, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    def own(images: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return (
            _image_gradient(strides, padding, images.shape, kernel, gradient),
            _kernel_gradient(strides, padding, images, kernel.shape, gradient),
        )

    def default(images: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_plain, strides, padding), images, kernel)[1](gradient)

    return jax.lax.platform_dependent(*saved, gradient, cpu=own, default=default)


_convolve.defvjp(_forward, _backward)


def _image_gradient(strides: Pair, padding: Padding, shape: tuple[int, ...], kernel: Array, gradient: Array) -> Array:
    """The gradient, spread out by the strides, convolved with the kernel turned round."""
    pads = []
    for axis in range(2):
        low = kernel.shape[axis] - 1 - padding[axis][0]
        spread = (gradient.shape[axis + 1] - 1) * strides[axis] + 1
        pads.append((low, shape[axis + 1] + kernel.shape[axis] - 1 - spread - low))
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return jax.lax.conv_general_dilated(gradient, turned, (1, 1), pads, lhs_dilation=strides, dimension_numbers=_LAYOUT)


def _kernel_gradient(strides: Pair, padding: Padding, images: Array, shape: tuple[int, ...], gradient: Array) -> Array:
    """The images convolved with the gradient, the batch summed over in the place of channels."""
    pads = []
    for axis in range(2):
        low = padding[axis][0]
        spread = (gradient.shape[axis + 1] - 1) * strides[axis] + 1
        pads.append((low, shape[axis] - 1 + spread - images.shape[axis + 1] - low))
    result = jax.lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        (1, 1),
        pads,
        rhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    return jnp.transpose(result, (1, 2, 0, 3))
