"""Which places are to predict which box: task-aligned assignment (Feng et al., TOOD, ICCV 2021)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from examples.paper.detection.boxes import complete_iou, inside

CANDIDATES = 10
SCORE_POWER = 0.5
OVERLAP_POWER = 6.0


class Targets(NamedTuple):
    """What an image's places are to say."""

    positive: Bool[Array, " places"]
    box: Float[Array, "places 4"]
    """Of positive places; else any."""
    label: Int[Array, " places"]
    score: Float[Array, " places"]
    """Of the label: 0 where a place is not positive, and at most 1."""


def assign(
    scores: Float[Array, "places classes"],
    predicted: Float[Array, "places 4"],
    centres: Float[Array, "places 2"],
    boxes: Float[Array, "slots 4"],
    labels: Int[Array, " slots"],
) -> Targets:
    """The targets of one image; no gradient flows through them.

    A place is the better aligned with a box the larger `score^0.5 overlap^6` is: its score of the box's class, and the
    complete IoU of the box that it predicts, 0 where that is negative. Each box takes the ten best aligned of the places
    inside it; a place that several boxes take goes to the one it overlaps most. A place's target score is its alignment,
    such that a box's best has the largest overlap that any of the box's places has. A box between all places has none.

    Args:
      scores: probabilities.
      predicted: boxes.
      centres: of the places.
      boxes: the true ones. One without an area has no place inside it.
      labels: of the boxes; below 0 of an empty slot.
    """
    scores, predicted = jax.lax.stop_gradient((scores, predicted))
    possible = inside(centres, boxes) & (labels >= 0)[:, None]
    overlap = jnp.where(possible, jnp.maximum(complete_iou(predicted[None], boxes[:, None]), 0.0), 0.0)
    own_scores = jnp.take(scores, jnp.maximum(labels, 0), axis=1).T
    alignment = jnp.where(possible, own_scores**SCORE_POWER * overlap**OVERLAP_POWER, 0.0)

    _, best = jax.lax.top_k(jnp.where(possible, alignment, -1.0), min(CANDIDATES, len(centres)))
    slots = jnp.arange(len(boxes))
    taken = jnp.zeros(alignment.shape, bool).at[slots[:, None], best].set(True) & possible
    slot = jnp.argmax(jnp.where(taken, overlap, -1.0), axis=0)
    taken = taken & (slots[:, None] == slot)

    alignment, overlap = (jnp.where(taken, values, 0.0) for values in (alignment, overlap))
    most = jnp.max(alignment, axis=1, keepdims=True)
    # Where all alignments of a box are zero (no overlap yet, or too little for float32), so are its target scores.
    relative = jnp.where(most > 0, alignment / jnp.where(most > 0, most, 1.0), 0.0)
    score = jnp.max(relative * jnp.max(overlap, axis=1, keepdims=True), axis=0)
    return Targets(jnp.any(taken, axis=0), boxes[slot], jnp.maximum(labels[slot], 0), score)
