"""One training run as pure functions: a state, an epoch, the detections on a set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

import tb_optax
from examples.paper.detection.augment import Batch, augment, plain
from examples.paper.detection.boxes import expected_distances, from_distances, places
from examples.paper.detection.losses import Losses, detection_loss
from examples.paper.detection.suppression import Detections, suppress
from examples.paper.network import Network, TrainState, epoch_inputs, take_step
from examples.paper.observations import Observations, observed_steps
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


def train_epoch(
    network: Network,
    tx: optax.GradientTransformationExtraArgs,
    layers: tb_optax.Layers,
    watched: tb_optax.Layer,
    batch_size: int,
    augmented: bool,
    flip: bool,
    state: TrainState,
    dataset: Images,
) -> tuple[TrainState, Losses, Observations]:
    """One pass over the training set, as `epoch_inputs` has it.

    The norms are those of `layers`; of `watched` there are copies of its kernel.
    """
    centres, strides = map(jnp.asarray, places(dataset.images.shape[1]))

    def step(state: TrainState, inputs: tuple[Array, Array]) -> tuple[TrainState, nnx.State, Losses]:
        rows, key = inputs
        batch = jax.tree.map(split, batch_of(key, rows, dataset, augmented=augmented, flip=flip))

        def loss_fn(params: nnx.State) -> tuple[Array, tuple[Losses, nnx.State]]:
            predictions, batch_stats = network.apply(params, state.batch_stats, batch.images, train=True)
            losses = detection_loss(predictions, centres, strides, batch.boxes, batch.labels)
            return losses.loss, (losses, batch_stats)

        return take_step(tx, state, loss_fn)

    inputs = epoch_inputs(state, len(dataset.images), batch_size)
    state, losses, observed = observed_steps(step, state, inputs, layers, watched)
    return state._replace(epoch=state.epoch + 1), losses, observed


def detect_all(network: Network, batch_size: int, state: TrainState, dataset: Images) -> Detections:
    """What is found in every image of a set, in batches; the last one is filled up with images that do not count."""
    count = len(dataset.images)

    def found(rows: Int[Array, " batch"]) -> Detections:
        images = split(dataset.images[jnp.minimum(rows, count - 1)])
        return detect(network, state, images.astype(jnp.float32) / 255)

    everything = jax.lax.map(found, batches(count, batch_size))
    return jax.tree.map(lambda each: each.reshape(-1, *each.shape[2:])[:count], everything)
