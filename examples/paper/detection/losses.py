"""What YOLOv8 minimizes, of boxes, their sides and classes, and which places are to predict which box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from examples.paper.detection.boxes import BINS, complete_iou, expected_distances, from_distances, inside, to_distances

CANDIDATES = 10
SCORE_POWER = 0.5
OVERLAP_POWER = 6.0
BOX_GAIN, DISTRIBUTION_GAIN, CLASS_GAIN = 7.5, 1.5, 0.5


class Predictions(NamedTuple):
    """What the network says at every place."""

    distances: Float[Array, "batch places 4 bins"]
    """Logits of the distances of a box's sides, in strides."""
    classes: Float[Array, "batch places classes"]
    """Logits, of each class for itself."""


class Losses(NamedTuple):
    """The loss, and its parts with their gains."""

    loss: Float[Array, ""]
    box: Float[Array, ""]
    distribution: Float[Array, ""]
    classes: Float[Array, ""]


def detection_loss(
    predictions: Predictions,
    centres: Float[Array, "places 2"],
    strides: Float[Array, " places"],
    boxes: Float[Array, "batch slots 4"],
    labels: Int[Array, "batch slots"],
) -> Losses:
    """The losses of a batch, each a sum over places, divided by the sum of the target scores, or by 1 if that is less.

    - box: `1 - complete IoU`, of positive places, weighted by their target scores; gain 7.5.
    - distribution: the distribution focal loss (Li et al., 2020) of positive places, weighted likewise: the cross-entropy
      with the two bins beside the true distance, in proportion; the mean over the four sides; gain 1.5.
    - classes: binary cross-entropy with the target scores, of all places and classes; gain 0.5.

    Args:
      predictions: of the batch, float32.
      centres: of the places.
      strides: of the places.
      boxes: the true ones, as in `assign`.
      labels: likewise.
    """
    decoded = from_distances(expected_distances(predictions.distances), centres, strides)
    own = lambda logits, predicted, boxes, labels: assign(jax.nn.sigmoid(logits), predicted, centres, boxes, labels)
    targets: Targets = jax.vmap(own)(predictions.classes, decoded, boxes, labels)
    weights = jnp.where(targets.positive, targets.score, 0.0)
    total = jnp.maximum(weights.sum(), 1.0)
    # Other places' boxes are any: nothing of them may reach the loss or its gradient, not even an overflow.
    true = jnp.where(targets.positive[..., None], targets.box, jax.lax.stop_gradient(decoded))
    box = jnp.sum(weights * (1 - complete_iou(decoded, true))) / total
    distances = jnp.clip(to_distances(true, centres, strides), 0.0, BINS - 1 - 0.01)
    distribution = jnp.sum(weights * distribution_focal_loss(predictions.distances, distances).mean(axis=-1)) / total
    wanted = jax.nn.one_hot(targets.label, predictions.classes.shape[-1]) * weights[..., None]
    classes = jnp.sum(optax.sigmoid_binary_cross_entropy(predictions.classes, wanted)) / total
    parts = BOX_GAIN * box, DISTRIBUTION_GAIN * distribution, CLASS_GAIN * classes
    return Losses(sum(parts, jnp.zeros(())), *parts)


def distribution_focal_loss(
    logits: Float[Array, "*sides bins"], distances: Float[Array, "*sides"]
) -> Float[Array, "*sides"]:
    """Cross-entropy with the bins below and above each distance, which is to be at least 0 and below the last bin."""
    below = jnp.floor(distances).astype(jnp.int32)
    share = distances - below
    log_likelihood = jax.nn.log_softmax(logits, axis=-1)
    of = lambda bins: jnp.take_along_axis(log_likelihood, bins[..., None], axis=-1)[..., 0]
    return -((1 - share) * of(below) + share * of(below + 1))


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
