"""Image classification as pure functions: the loss on a batch, and an evaluation."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

import tb_optax
from examples.paper.network import Network, TrainState
from examples.paper.parallel import batches, split
from examples.paper.vision.augment import crop_and_flip, normalize


class Images(NamedTuple):
    """A set of images on the device, and what they are normalized by."""

    images: UInt8[Array, "n h w c"]
    labels: Int[Array, " n"]
    mean: Float[Array, " c"]
    std: Float[Array, " c"]


class EpochMetrics(NamedTuple):
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


def paper_layers(
    network: Network, params: nnx.State, batch_stats: nnx.State, images: jax.ShapeDtypeStruct, **kwargs: Any
) -> tb_optax.Layers:
    """The layers as the authors' code balances them: the norm of a projection shortcut keeps the base learning rate.

    In WideResNets, whose norms stand before the convolutions, a norm takes the scale of the convolution in front of it
    all the same; the released code pairs names there, and so gives it that of the one behind.
    """
    forward = lambda params, images: network.apply(params, batch_stats, images, train=False)[0]
    found = tb_optax.trace_layers(forward, params, images, **kwargs)
    own = lambda layer: tuple(path for path in layer.follows if path.startswith(f"{layer.name}/"))  # its bias
    bare = lambda layer: dataclasses.replace(layer, follows=own(layer)) if "/shortcut/" in layer.name else layer
    return tb_optax.Layers(map(bare, found), found.left_out)


def loss(
    network: Network, flip: bool, params: nnx.State, state: TrainState, inputs: tuple[Array, Array], dataset: Images
) -> tuple[Float[Array, ""], tuple[EpochMetrics, dict[str, nnx.State]]]:
    """The loss on a batch: the rows and the key that `epoch_inputs` gives for the step."""
    rows, key = inputs
    rows = split(rows)
    images = split(normalize(crop_and_flip(key, dataset.images[rows], flip=flip), dataset.mean, dataset.std))
    logits, batch_stats = network.apply(params, state.batch_stats, images, train=True)
    labels = dataset.labels[rows]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (EpochMetrics(loss, jnp.mean(logits.argmax(-1) == labels)), {"batch_stats": batch_stats})


def evaluate(network: Network, batch_size: int, state: TrainState, dataset: Images) -> EpochMetrics:
    """Mean loss and accuracy on a set, in batches; the last one is filled up with images that do not count."""
    images, labels, mean, std = dataset
    count = len(images)

    def totals(rows: Int[Array, " batch"]) -> EpochMetrics:
        counted = rows < count
        rows = split(jnp.minimum(rows, count - 1))
        batch = split(normalize(images[rows], mean, std))
        logits, _ = network.apply(state.params, state.batch_stats, batch, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        total = lambda values: jnp.sum(jnp.where(counted, values, 0.0))
        return EpochMetrics(total(losses), total(logits.argmax(-1) == labels[rows]))

    return jax.tree.map(lambda values: values.sum() / count, jax.lax.map(totals, batches(count, batch_size)))
