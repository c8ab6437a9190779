"""Augmentation and normalization, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

_PADDING = 4


def normalize(
    images: UInt8[Array, "batch height width channels"], mean: Float[Array, " channels"], std: Float[Array, " channels"]
) -> Float[Array, "batch height width channels"]:
    return (images / jnp.float32(255) - mean) / std


def crop_and_flip(
    key: Key[Array, ""], images: UInt8[Array, "batch height width channels"], *, flip: bool
) -> UInt8[Array, "batch height width channels"]:
    """Shifts each image by up to 4 pixels each way, with zeros from outside, and mirrors every other one if `flip`."""
    crop_key, flip_key = jax.random.split(key)
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * _PADDING + 1)
    crop = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))
    images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
