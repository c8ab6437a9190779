"""Object detection (the paper's Appendix G): `DETECTION` is all that runs, sweeps and reports know of it."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

import tb_optax
from examples.paper.balance import LayersOrFn, with_tempbalance
from examples.paper.detection.average_precision import AveragePrecision, evaluate
from examples.paper.detection.data import DetectionSet, load_detection_set
from examples.paper.detection.epoch import Images, batch_of, detect_all, loss
from examples.paper.detection.pretrained import load_weights
from examples.paper.detection.settings import Settings
from examples.paper.detection.suppression import Detections
from examples.paper.detection.yolo import create_model
from examples.paper.domain import Domain, Measure, Training
from examples.paper.errors import UserError
from examples.paper.network import Network, epoch_cosine, epoch_inputs, initial_state
from examples.paper.parallel import replicate
from examples.paper.report import style


def load(settings: Settings) -> DetectionSet:
    """Raises UserError where there is no such data set."""
    return load_detection_set(
        *(settings.dataset, settings.data_dir, settings.train_split, settings.test_split),
        *(settings.image_size, settings.slots),
    )


def prepare(settings: Settings, dataset: DetectionSet, mesh: Mesh) -> Training:
    """The epochs of a network on a data set.

    Raises:
      UserError: the model does not fit the images, the weights do not fit the model, or a batch is more than all images.
    """
    if len(dataset.train.images) < settings.batch_size:
        raise UserError(f"--batch-size {settings.batch_size} is more than the {len(dataset.train.images)} training images.")

    @nnx.jit
    def create(key: jax.Array) -> nnx.Module:
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

    def create_pretrained(seed: int) -> nnx.Module:
        model = create(jax.random.key(seed, impl="rbg"))
        if settings.weights is None:
            return model
        graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
        params, batch_stats, _ = load_weights(settings.weights, params, batch_stats)
        return nnx.merge(graphdef, params, batch_stats)

    with jax.set_mesh(mesh):
        graphdef, params, batch_stats = nnx.split(create_pretrained(0), nnx.Param, ...)
    network = Network(graphdef)
    example = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), jnp.float32)
    layers = partial(find_layers, network, params, batch_stats, example)
    balanced_layers = layers(min_eigenvalues=settings.min_eigenvalues, first_and_last=settings.ends)
    weights = layers(min_eigenvalues=2, first_and_last=True)
    steps = len(dataset.train.images) // settings.batch_size
    schedule = epoch_cosine(settings.learning_rate, settings.epochs, steps)
    tx = create_optimizer(settings, schedule, steps, balanced_layers)
    train_data, test_data = (Images(*(replicate(each, mesh) for each in part)) for part in (dataset.train, dataset.test))

    return Training(
        init=lambda seed: initial_state(create_pretrained(seed), tx, seed),
        inputs=partial(epoch_inputs, settings.batch_size),
        loss=partial(loss, network, settings.augment, dataset.flip),
        evaluate=partial(detect_all, network, settings.batch_size),
        tx=tx,
        data=train_data,
        held_out_data=test_data,
        balanced=balanced_layers,
        weights=weights,
        schedule=schedule,
        steps=steps,
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


def average_precision(found: Detections, dataset: DetectionSet) -> AveragePrecision:
    return evaluate(found, dataset.test, dataset.classes).average


def pictures(settings: Settings, dataset: DetectionSet, found: Detections, out: Path) -> Iterator[Path]:
    """Writes a batch as it is trained on, found and true boxes, and precision against recall."""
    from examples.paper.detection import pictures as draw  # here, for matplotlib takes a while

    train = Images(*(jnp.asarray(each[:64]) for each in dataset.train))
    rows = jnp.arange(min(8, len(train.images)))
    batch = batch_of(jax.random.key(settings.seed), rows, train, augmented=settings.augment, flip=dataset.flip)
    yield draw.batch_picture(batch, dataset.classes, out / "batch.png")
    yield draw.detections_picture(dataset.test, found, dataset.classes, out / "detections.png")
    evaluation = evaluate(found, dataset.test, dataset.classes)
    yield draw.precision_picture(evaluation, dataset.classes, out / "precision_recall.png")


def describe(line: Mapping[str, Any]) -> str:
    """A line of the log."""
    return f"loss {line['train_loss']:.3f}  test mAP {line['test_map']:.3f}, at IoU 0.5 {line['test_map50']:.3f}"


DETECTION = Domain(
    "detection",
    Settings,
    load,
    prepare,
    measure=Measure("test_map", "test mAP", percent=True, higher_is_better=True),
    metrics=("train_loss", "train_box", "train_distribution", "train_classes", "test_map", "test_map50"),
    describe=describe,
    data=("dataset", "train_split", "test_split", "image_size", "slots"),
    style=style.DETECTION,
    summarize=average_precision,
    pictures=pictures,
)
