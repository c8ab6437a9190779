"""Image classification as the paper has it: `VISION` is all that runs, sweeps and reports know of it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

import tb_optax
from examples.paper.domain import Domain, Measure, Training
from examples.paper.network import Network, TrainState, epoch_inputs, initial_state, split_model, steps_of_epoch
from examples.paper.parallel import batches, replicate, split
from examples.paper.report import style
from examples.paper.vision.data import Dataset, load_dataset
from examples.paper.vision.methods import create_optimizer, create_schedule
from examples.paper.vision.models import create_model
from examples.paper.vision.settings import Settings

_PADDING = 4


class Images(NamedTuple):
    """A set of images on the device, and what they are normalized by."""

    images: UInt8[Array, "n h w c"]
    labels: Int[Array, " n"]
    mean: Float[Array, " c"]
    std: Float[Array, " c"]


class Metrics(NamedTuple):
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


def load(settings: Settings) -> Dataset:
    """Raises UserError where there is no such data set."""
    return load_dataset(settings.dataset, settings.data_dir, settings.train_split, settings.test_split)


def build(
    settings: Settings,
    dataset: Dataset,
    mesh: Mesh,
    create_optimizer: Callable[..., optax.GradientTransformationExtraArgs] = create_optimizer,
) -> Training:
    """The epochs of a network on a data set; `create_optimizer` as in `examples.paper.vision.methods`.

    Raises:
      UserError: the model does not fit the images, or a batch is more than all of them.
    """
    steps = steps_of_epoch(len(dataset.train_images), settings.batch_size)
    image_shape = dataset.train_images.shape[1:]

    # As one program, and with keys of the kind that compiles fast: four seconds instead of twenty on CPU.
    @nnx.jit
    def create_from(key: Key[Array, ""]) -> nnx.Module:
        return create_model(
            settings.model,
            width=settings.width,
            num_classes=dataset.num_classes,
            image_shape=image_shape,
            dtype=jnp.dtype(settings.dtype),
            rngs=nnx.Rngs(key),
        )

    create = lambda seed: create_from(jax.random.key(seed, impl="rbg"))
    network, params, batch_stats = split_model(create, mesh)
    example = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    layers = partial(paper_layers, network, params, batch_stats, example)
    balanced, weights = layers(first_and_last=settings.ends), layers(min_eigenvalues=2, first_and_last=True)
    schedule = create_schedule(settings, steps)
    tx = create_optimizer(settings, schedule, steps, balanced, weights)
    put = partial(replicate, mesh=mesh)
    statistics = put(dataset.mean), put(dataset.std)

    return Training(
        init=partial(initial_state, create, tx),
        inputs=partial(epoch_inputs, settings.batch_size),
        loss=partial(loss, network, dataset.flip),
        evaluate=partial(evaluate, network, settings.batch_size),
        tx=tx,
        data=Images(put(dataset.train_images), put(dataset.train_labels), *statistics),
        held_out_data=Images(put(dataset.test_images), put(dataset.test_labels), *statistics),
        balanced=balanced,
        weights=weights,
        schedule=schedule,
        steps=steps,
    )


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
) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, nnx.State]]]:
    """The loss on a batch: the rows and the key that `epoch_inputs` gives for the step."""
    rows, key = inputs
    rows = split(rows)
    images = split(normalize(crop_and_flip(key, dataset.images[rows], flip=flip), dataset.mean, dataset.std))
    logits, batch_stats = network.apply(params, state.batch_stats, images, train=True)
    labels = dataset.labels[rows]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (Metrics(loss, jnp.mean(logits.argmax(-1) == labels)), {"batch_stats": batch_stats})


def evaluate(network: Network, batch_size: int, state: TrainState, dataset: Images) -> Metrics:
    """Mean loss and accuracy on a set, in batches; the last one is filled up with images that do not count."""
    images, labels, mean, std = dataset
    count = len(images)

    def totals(rows: Int[Array, " batch"]) -> Metrics:
        counted = rows < count
        rows = split(jnp.minimum(rows, count - 1))
        batch = split(normalize(images[rows], mean, std))
        logits, _ = network.apply(state.params, state.batch_stats, batch, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        total = lambda values: jnp.sum(jnp.where(counted, values, 0.0))
        return Metrics(total(losses), total(logits.argmax(-1) == labels[rows]))

    return jax.tree.map(lambda values: values.sum() / count, jax.lax.map(totals, batches(count, batch_size)))


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


VISION = Domain(
    "vision",
    Settings,
    load,
    build,
    measure=Measure("test_accuracy", "test accuracy", percent=True, higher_is_better=True),
    metrics=("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    data=("dataset", "train_split", "test_split"),
    style=style.VISION,
)
