"""Object detection as pure functions: the loss on a batch, and the detections on a set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from examples.paper.detection.augment import Batch, augment, plain
from examples.paper.detection.boxes import expected_distances, from_distances, places
from examples.paper.detection.losses import Losses, detection_loss
from examples.paper.detection.suppression import Detections, suppress
from examples.paper.network import Network, TrainState
from examples.paper.parallel import batches, split

MOST_DETECTIONS = 300


class Images(NamedTuple):
    """A set of images on the device, with their boxes; see `examples.paper.detection.data.Images`."""

    images: UInt8[Array, "n size size channels"]
    boxes: Float[Array, "n slots 4"]
    labels: Int[Array, "n slots"]


def detect(network: Network, state: TrainState, images: Float[Array, "batch size size channels"]) -> Detections:
    """What is in each image."""
    predictions, _ = network.apply(state.params, state.batch_stats, images, train=False)
    boxes = from_distances(expected_distances(predictions.distances), *map(jnp.asarray, places(images.shape[1])))
    boxes = jnp.clip(boxes, 0.0, images.shape[1])
    own = lambda boxes, logits: suppress(boxes, jax.nn.sigmoid(logits), most=MOST_DETECTIONS)
    return jax.vmap(own)(boxes, predictions.classes)


def batch_of(key: Array, rows: Int[Array, " batch"], dataset: Images, *, augmented: bool, flip: bool) -> Batch:
    """So many images of a set, each with three others drawn at random to make a mosaic of, if there are to be any."""
    if not augmented:
        return plain(*(each[rows] for each in dataset))
    others_key, augment_key = jax.random.split(key)
    others = jax.random.randint(others_key, (len(rows), 3), 0, len(dataset.images))
    together = jnp.concatenate([rows[:, None], others], axis=1)
    return augment(augment_key, *(each[together] for each in dataset), flip=flip)


def loss(
    network: Network,
    augmented: bool,
    flip: bool,
    params: nnx.State,
    state: TrainState,
    inputs: tuple[Array, Array],
    dataset: Images,
) -> tuple[Float[Array, ""], tuple[Losses, dict[str, nnx.State]]]:
    """The loss on a batch: the rows and the key that `epoch_inputs` gives for the step."""
    rows, key = inputs
    batch = jax.tree.map(split, batch_of(key, rows, dataset, augmented=augmented, flip=flip))
    predictions, batch_stats = network.apply(params, state.batch_stats, batch.images, train=True)
    centres, strides = map(jnp.asarray, places(dataset.images.shape[1]))
    losses = detection_loss(predictions, centres, strides, batch.boxes, batch.labels)
    return losses.loss, (losses, {"batch_stats": batch_stats})


def detect_all(network: Network, batch_size: int, state: TrainState, dataset: Images) -> Detections:
    """What is found in every image of a set, in batches; the last one is filled up with images that do not count."""
    count = len(dataset.images)

    def found(rows: Int[Array, " batch"]) -> Detections:
        images = split(dataset.images[jnp.minimum(rows, count - 1)])
        return detect(network, state, images.astype(jnp.float32) / 255)

    everything = jax.lax.map(found, batches(count, batch_size))
    return jax.tree.map(lambda each: each.reshape(-1, *each.shape[2:])[:count], everything)
