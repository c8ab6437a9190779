"""Non-maximum suppression, with arrays of one size whatever is found."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from examples.paper.detection.boxes import intersection_over_union


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
