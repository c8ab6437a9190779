"""Object detection (the paper's Appendix G): `DETECTION` is all that runs, sweeps and reports know of it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

import tb_optax
from examples.paper.balance import LayersOrFn, with_tempbalance
from examples.paper.detection.augment import Batch, augment, plain
from examples.paper.detection.average_precision import evaluate
from examples.paper.detection.boxes import Detections, expected_distances, from_distances, places, suppress
from examples.paper.detection.data import DetectionSet, Images, load_detection_set
from examples.paper.detection.losses import Losses, detection_loss
from examples.paper.detection.pretrained import load_weights
from examples.paper.detection.settings import Settings
from examples.paper.detection.yolo import create_model
from examples.paper.domain import Domain, Measure, Training
from examples.paper.network import (
    Network,
    TrainState,
    epoch_cosine,
    epoch_inputs,
    initial_state,
    split_model,
    steps_of_epoch,
)
from examples.paper.parallel import batches, replicate, split
from examples.paper.report import style

MOST_DETECTIONS = 300


def load(settings: Settings) -> DetectionSet:
    """Raises UserError where there is no such data set."""
    return load_detection_set(
        *(settings.dataset, settings.data_dir, settings.train_split, settings.test_split),
        *(settings.image_size, settings.slots),
    )


def build(settings: Settings, dataset: DetectionSet, mesh: Mesh) -> Training:
    """The epochs of a network on a data set.

    Raises:
      UserError: the model does not fit the images, the weights do not fit the model, or a batch is more than all images.
    """
    steps = steps_of_epoch(len(dataset.train.images), settings.batch_size)

    @nnx.jit
    def create_from(key: Key[Array, ""]) -> nnx.Module:
        return create_model(
            settings.model,
            width=settings.width,
            depth=settings.depth,
            channels=dataset.train.images.shape[-1],
            classes=len(dataset.classes),
            image_size=settings.image_size,
            dtype=jnp.dtype(settings.dtype),
            rngs=nnx.Rngs(key),
        )

    def create(seed: int) -> nnx.Module:
        model = create_from(jax.random.key(seed, impl="rbg"))
        if settings.weights is None:
            return model
        graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
        params, batch_stats, _ = load_weights(settings.weights, params, batch_stats)
        return nnx.merge(graphdef, params, batch_stats)

    network, params, batch_stats = split_model(create, mesh)
    example = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), jnp.float32)
    layers = partial(find_layers, network, params, batch_stats, example)
    balanced = layers(min_eigenvalues=settings.min_eigenvalues, first_and_last=settings.ends)
    schedule = epoch_cosine(settings.learning_rate, settings.epochs, steps)
    tx = create_optimizer(settings, schedule, steps, balanced)
    train_data, test_data = (Images(*(replicate(each, mesh) for each in part)) for part in (dataset.train, dataset.test))

    return Training(
        init=partial(initial_state, create, tx),
        inputs=partial(epoch_inputs, settings.batch_size),
        loss=partial(loss, network, settings.augment, dataset.flip),
        evaluate=partial(detect_all, network, settings.batch_size),
        tx=tx,
        data=train_data,
        held_out_data=test_data,
        balanced=balanced,
        weights=layers(min_eigenvalues=2, first_and_last=True),
        schedule=schedule,
        steps=steps,
        summarize=lambda found: evaluate(found, dataset.test, dataset.classes).average,
        pictures=partial(pictures, settings, dataset),
    )


def find_layers(
    network: Network, params: nnx.State, batch_stats: nnx.State, images: jax.ShapeDtypeStruct, **kwargs: Any
) -> tb_optax.Layers:
    """As `trace_layers` finds them: the last is the output of classes at the largest stride, the last of six outputs.

    So does the released run leave its head's final layer out, and that alone. The other outputs have as many eigenvalues
    as there are classes, or 64 where they are of boxes, and are balanced where these are enough.
    """
    forward = lambda params, batch_stats, images: tuple(network.apply(params, batch_stats, images, train=False)[0])
    return tb_optax.trace_layers(forward, params, batch_stats, images, **kwargs)


def create_optimizer(
    settings: Settings, schedule: optax.Schedule, steps: int, layers: LayersOrFn
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `settings.method`, with TempBalance after it where the method has it."""
    bases = {
        "adam": lambda: optax.chain(optax.add_decayed_weights(settings.weight_decay), optax.adam(schedule)),
        "adamw": lambda: optax.adamw(schedule, weight_decay=settings.weight_decay),
    }
    return with_tempbalance(bases[settings.base](), settings, steps, layers)


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


def pictures(settings: Settings, dataset: DetectionSet, seed: int, found: Detections, out: Path) -> Iterator[Path]:
    """Writes a batch as it is trained on, found and true boxes, and precision against recall."""
    from examples.paper.detection import pictures as draw  # here, for matplotlib takes a while

    train = Images(*(jnp.asarray(each[:64]) for each in dataset.train))
    rows = jnp.arange(min(8, len(train.images)))
    batch = batch_of(jax.random.key(seed), rows, train, augmented=settings.augment, flip=dataset.flip)
    yield draw.batch_picture(batch, dataset.classes, out / "batch.png")
    yield draw.detections_picture(dataset.test, found, dataset.classes, out / "detections.png")
    evaluation = evaluate(found, dataset.test, dataset.classes)
    yield draw.precision_picture(evaluation, dataset.classes, out / "precision_recall.png")


DETECTION = Domain(
    "detection",
    Settings,
    load,
    build,
    measure=Measure("test_map", "test mAP", percent=True, higher_is_better=True),
    metrics=("train_loss", "train_box", "train_distribution", "train_classes", "test_map", "test_map50"),
    data=("dataset", "train_split", "test_split", "image_size", "slots"),
    style=style.DETECTION,
)
