"""Boxes as arrays: `x1, y1, x2, y2` in pixels, the upper left corner and the lower right one."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

STRIDES = (8, 16, 32)
BINS = 16
"""Of a side's distance from a place, in strides: 0 to 15."""
_TINY = 1e-7


def places(image_size: int) -> tuple[Float[np.ndarray, "places 2"], Float[np.ndarray, " places"]]:
    """Where boxes are predicted from, the centres of the cells of each stride's grid, and the stride of each.

    Row by row, the finest grid first.
    """
    centres, strides = [], []
    for stride in STRIDES:
        ticks = (np.arange(image_size // stride) + 0.5) * stride
        rows, columns = np.meshgrid(ticks, ticks, indexing="ij")
        centres.append(np.stack([columns.ravel(), rows.ravel()], axis=-1))
        strides.append(np.full(len(ticks) ** 2, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


def expected_distances(logits: Float[Array, "*places 4 bins"]) -> Float[Array, "*places 4"]:
    """The mean of each side's distribution over the bins, in strides."""
    bins = jnp.arange(logits.shape[-1], dtype=logits.dtype)
    return jnp.sum(jax.nn.softmax(logits, axis=-1) * bins, axis=-1)


def from_distances(
    distances: Float[Array, "*batch places 4"], centres: Float[Array, "places 2"], strides: Float[Array, " places"]
) -> Float[Array, "*batch places 4"]:
    """The boxes whose left, upper, right and lower sides are so many strides away from the places."""
    pixels = distances * strides[:, None]
    return jnp.concatenate([centres - pixels[..., :2], centres + pixels[..., 2:]], axis=-1)


def to_distances(
    boxes: Float[Array, "*batch places 4"], centres: Float[Array, "places 2"], strides: Float[Array, " places"]
) -> Float[Array, "*batch places 4"]:
    """The inverse of `from_distances`; negative where a place lies outside its box."""
    return jnp.concatenate([centres - boxes[..., :2], boxes[..., 2:] - centres], axis=-1) / strides[:, None]


def area(boxes: Float[Array, "*boxes 4"]) -> Float[Array, "*boxes"]:
    """Zero where a side is."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def intersection_over_union(ours: Float[Array, "*#boxes 4"], theirs: Float[Array, "*#boxes 4"]) -> Float[Array, "*boxes"]:
    """Of each box with its partner; shapes broadcast. Two boxes without an area share none of it."""
    corners = jnp.maximum(ours[..., :2], theirs[..., :2]), jnp.minimum(ours[..., 2:], theirs[..., 2:])
    shared = area(jnp.concatenate(corners, axis=-1))
    return shared / (area(ours) + area(theirs) - shared + _TINY)


def complete_iou(predicted: Float[Array, "*#boxes 4"], true: Float[Array, "*#boxes 4"]) -> Float[Array, "*boxes"]:
    """IoU less how far the centres are apart and how far the aspect ratios are (Zheng et al., 2020): at most 1, above -2.

    `IoU - d² / c² - a v`: `d` between the centres, `c` the diagonal of the box around both, `v` the squared difference of
    `atan(width / height)` times `4 / π²`, and `a = v / (1 - IoU + v)`, through which no gradient flows.
    """
    iou = intersection_over_union(predicted, true)
    around = jnp.maximum(predicted[..., 2:], true[..., 2:]) - jnp.minimum(predicted[..., :2], true[..., :2])
    centre = lambda boxes: (boxes[..., :2] + boxes[..., 2:]) / 2
    apart = jnp.sum((centre(predicted) - centre(true)) ** 2, axis=-1)
    diagonal = jnp.sum(around**2, axis=-1) + _TINY
    difference = (4 / math.pi**2) * (_aspect(predicted) - _aspect(true)) ** 2
    weight = jax.lax.stop_gradient(difference / (1 - iou + difference + _TINY))
    return iou - apart / diagonal - weight * difference


def _aspect(boxes: Float[Array, "*boxes 4"]) -> Float[Array, "*boxes"]:
    width, height = (boxes[..., axis + 2] - boxes[..., axis] for axis in range(2))
    return jnp.arctan(width / (height + _TINY))


def inside(centres: Float[Array, "places 2"], boxes: Float[Array, "*boxes 4"]) -> Bool[Array, "*boxes places"]:
    """Whether each place lies inside each box, not on its border."""
    low = centres > boxes[..., None, :2]
    high = centres < boxes[..., None, 2:]
    return jnp.all(low & high, axis=-1)


class Detections(NamedTuple):
    """What is found in each image, by descending score; what is not found has the score 0 and the label -1."""

    boxes: Float[Array, "*images found 4"]
    scores: Float[Array, "*images found"]
    labels: Int[Array, "*images found"]


def suppress(
    boxes: Float[Array, "places 4"],
    scores: Float[Array, "places classes"],
    *,
    most: int,
    least_score: float = 0.001,
    most_overlap: float = 0.7,
) -> Detections:
    """The detections of an image: of boxes of one class that overlap, only the best.

    Of all pairs of a box and a class, the `most` with the highest scores are looked at in turn; one whose box overlaps with
    one of the same class that has been kept, by more than `most_overlap`, is dropped.

    Args:
      boxes: predicted.
      scores: probabilities.
      most: how many are looked at, and how many are found at most.
      least_score: what is not above it, is not looked at.
      most_overlap: IoU.
    """
    classes = scores.shape[1]
    best, index = jax.lax.top_k(scores.ravel(), min(most, scores.size))
    candidates, labels = boxes[index // classes], index % classes
    overlap = intersection_over_union(candidates[:, None], candidates[None])
    rivals = (overlap > most_overlap) & (labels[:, None] == labels[None])

    def look(place: Int[Array, ""], kept: Array) -> Array:
        earlier = jnp.arange(len(kept)) < place
        return kept.at[place].set(kept[place] & ~jnp.any(rivals[place] & kept & earlier))

    kept = jax.lax.fori_loop(0, len(best), look, best > least_score)
    order = jnp.argsort(~kept, stable=True)
    kept = kept[order]
    return Detections(
        jnp.where(kept[:, None], candidates[order], 0.0),
        jnp.where(kept, best[order], 0.0),
        jnp.where(kept, labels[order], -1),
    )
