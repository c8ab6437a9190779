"""Augmentation of images with boxes, on the device: mosaic, scale and shift, mirroring, colour. Boxes follow."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from examples.paper.detection.boxes import area
from examples.paper.detection.data import GRAY

SCALES = (0.5, 1.5)
SHIFT = 0.1
"""Of the image, either way."""
HUE, SATURATION, VALUE = 0.015, 0.7, 0.4
_LEAST_SHARE, _LEAST_SIDE = 0.2, 2.0


class Batch(NamedTuple):
    """Images, 0 to 1, and their boxes."""

    images: Float[Array, "batch size size channels"]
    boxes: Float[Array, "batch slots 4"]
    labels: Int[Array, "batch slots"]


def plain(images: UInt8[Array, "batch size size channels"], boxes: Array, labels: Array) -> Batch:
    """Without augmentation."""
    return Batch(images.astype(jnp.float32) / 255, boxes, labels)


def augment(
    key: Key[Array, ""],
    images: UInt8[Array, "batch 4 size size channels"],
    boxes: Float[Array, "batch 4 slots 4"],
    labels: Int[Array, "batch 4 slots"],
    *,
    flip: bool,
) -> Batch:
    """Each image alone or with three others as a mosaic, every other time, somewhat larger or smaller, and shifted.

    An image alone is scaled by 0.5 to 1.5 and shifted by a tenth of its size at most. In a mosaic four images meet with a
    corner each at a place in the middle half, all scaled by as much as before. Around them all is gray. A box is cut to what
    is seen of its image, and dropped where that is less than a fifth of it, or narrower than two pixels; of more than there
    are slots, the largest are kept. If `flip`, every other result is mirrored. Of images of three channels, hue changes by
    0.015 of a turn at most, and saturation and brightness by factors of up to 0.7 and 0.4 more or less than 1; of others,
    brightness does.
    """
    keys = jax.random.split(key, len(images))
    return jax.vmap(lambda *own: _one(*own, flip=flip))(keys, plain(images, boxes, labels).images, boxes, labels)


def _one(key: Array, images: Array, boxes: Array, labels: Array, *, flip: bool) -> Batch:
    size, slots = images.shape[1], boxes.shape[1]
    mosaic_key, centre_key, scale_key, shift_key, flip_key, colour_key = jax.random.split(key, 6)
    is_mosaic = jax.random.bernoulli(mosaic_key)
    scale = jax.random.uniform(scale_key, (), minval=SCALES[0], maxval=SCALES[1])
    centre = jax.random.uniform(centre_key, (2,), minval=0.25 * size, maxval=0.75 * size)
    shift = jax.random.uniform(shift_key, (2,), minval=-SHIFT * size, maxval=SHIFT * size)
    # A corner of each of four images lies at the centre; an image alone has its middle there, and takes all quarters.
    sides = jnp.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    offsets = jnp.where(is_mosaic, centre - (1 - sides) * size * scale, (size - size * scale) / 2 + shift)
    low = jnp.where(is_mosaic, sides * centre, 0.0)
    high = jnp.where(is_mosaic, centre + sides * (size - centre), size)
    used = is_mosaic | (jnp.arange(4) == 0)

    pixels = jnp.arange(size) + 0.5
    image = jnp.full(images.shape[1:], GRAY / 255)
    for own, offset, first, last, use in zip(images, offsets, low, high, used, strict=True):
        here = _within(pixels, first[1], last[1])[:, None] & _within(pixels, first[0], last[0])[None]
        sampled, there = _resampled(own, offset, scale)
        image = jnp.where((here & there & use)[..., None], sampled, image)

    placed = boxes * scale + jnp.tile(offsets, 2)[:, None]
    limits = lambda edge: jnp.tile(edge, 2)[:, None]
    cut = jnp.clip(placed, limits(jnp.maximum(low, 0.0)), limits(jnp.minimum(high, size)))
    seen = (area(cut) >= _LEAST_SHARE * area(placed)) & jnp.all(cut[..., 2:] - cut[..., :2] >= _LEAST_SIDE, axis=-1)
    boxes, labels = _largest(cut.reshape(-1, 4), labels.reshape(-1), (seen & (labels >= 0) & used[:, None]).ravel(), slots)
    if flip:
        mirrored = jax.random.bernoulli(flip_key)
        image = jnp.where(mirrored, image[:, ::-1], image)
        turned = jnp.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], axis=-1)
        boxes = jnp.where(mirrored & (labels >= 0)[:, None], turned, boxes)
    return Batch(_recoloured(colour_key, image), boxes, labels)


def _within(pixels: Array, low: Array, high: Array) -> Bool[Array, " size"]:
    return (pixels >= low) & (pixels < high)


def _resampled(image: Array, offset: Array, scale: Array) -> tuple[Array, Bool[Array, "size size"]]:
    """The image scaled and moved, between its pixels, and where it is at all."""
    size = len(image)
    sources = [(jnp.arange(size) + 0.5 - offset[axis]) / scale for axis in (1, 0)]
    ends = jnp.zeros(()), jnp.asarray(float(size))
    there = _within(sources[0], *ends)[:, None] & _within(sources[1], *ends)[None]
    for axis, source in enumerate(sources):
        image = _interpolated(image, source - 0.5, axis)
    return image, there


def _interpolated(image: Array, source: Float[Array, " size"], axis: int) -> Array:
    """Along an axis, between the two pixels on either side; beyond the ends, the last one."""
    source = jnp.clip(source, 0.0, image.shape[axis] - 1.0)
    below = jnp.floor(source).astype(jnp.int32)
    share = jnp.expand_dims(source - below, [other for other in range(image.ndim) if other != axis])
    above = jnp.minimum(below + 1, image.shape[axis] - 1)
    return (1 - share) * jnp.take(image, below, axis=axis) + share * jnp.take(image, above, axis=axis)


def _largest(boxes: Array, labels: Array, seen: Bool[Array, " boxes"], slots: int) -> tuple[Array, Array]:
    order = jnp.argsort(jnp.where(seen, -area(boxes), jnp.inf), stable=True)[:slots]
    seen = seen[order]
    return jnp.where(seen[:, None], boxes[order], 0.0), jnp.where(seen, labels[order], -1)


def _recoloured(key: Key[Array, ""], image: Float[Array, "size size channels"]) -> Float[Array, "size size channels"]:
    """Hue, saturation and value changed by a draw; a rotation of the hue is one about the gray axis."""
    hue, saturation, value = jax.random.uniform(key, (3,), minval=-1.0) * jnp.array([HUE, SATURATION, VALUE]) + jnp.array(
        [0.0, 1.0, 1.0]
    )
    if image.shape[-1] == 3:
        gray = image.mean(axis=-1, keepdims=True)
        angle = 2 * jnp.pi * hue
        along = jnp.ones(3) / jnp.sqrt(3.0)
        colour = image - gray
        turned = colour * jnp.cos(angle) + jnp.cross(jnp.broadcast_to(along, colour.shape), colour) * jnp.sin(angle)
        image = gray + saturation * turned
    return jnp.clip(image * value, 0.0, 1.0)
