"""Image classification as the paper has it: `VISION` is all that runs, sweeps and reports know of it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from examples.paper.domain import Domain, Measure, Training
from examples.paper.errors import UserError
from examples.paper.network import Network, epoch_inputs, initial_state
from examples.paper.parallel import replicate
from examples.paper.report import style
from examples.paper.vision.data import Dataset, load_dataset
from examples.paper.vision.epoch import Images, evaluate, loss, paper_layers
from examples.paper.vision.methods import create_optimizer, create_schedule
from examples.paper.vision.models import create_model
from examples.paper.vision.settings import Settings


def load(settings: Settings) -> Dataset:
    """Raises UserError where there is no such data set."""
    return load_dataset(settings.dataset, settings.data_dir, settings.train_split, settings.test_split)


def prepare(
    settings: Settings,
    dataset: Dataset,
    mesh: Mesh,
    create_optimizer: Callable[..., optax.GradientTransformationExtraArgs] = create_optimizer,
) -> Training:
    """The epochs of a network on a data set; `create_optimizer` as in `examples.paper.vision.methods`.

    Raises:
      UserError: the model does not fit the images, or a batch is more than all of them.
    """
    if len(dataset.train_images) < settings.batch_size:
        raise UserError(f"--batch-size {settings.batch_size} is more than the {len(dataset.train_images)} training images.")
    create = _model_creator(settings, dataset)
    with jax.set_mesh(mesh):
        graphdef, params, batch_stats = nnx.split(create(0), nnx.Param, ...)
    network = Network(graphdef)
    example = jax.ShapeDtypeStruct((1, *dataset.train_images.shape[1:]), jnp.float32)
    layers = partial(paper_layers, network, params, batch_stats, example)
    balanced, weights = layers(first_and_last=settings.ends), layers(min_eigenvalues=2, first_and_last=True)
    steps = len(dataset.train_images) // settings.batch_size
    schedule = create_schedule(settings, steps)
    tx = create_optimizer(settings, schedule, steps, balanced, weights)
    train_data, test_data = _place(dataset, mesh)

    return Training(
        init=lambda seed: initial_state(create(seed), tx, seed),
        inputs=partial(epoch_inputs, settings.batch_size),
        loss=partial(loss, network, dataset.flip),
        evaluate=partial(evaluate, network, settings.batch_size),
        tx=tx,
        data=train_data,
        held_out_data=test_data,
        balanced=balanced,
        weights=weights,
        schedule=schedule,
        steps=steps,
    )


def _model_creator(settings: Settings, dataset: Dataset) -> Callable[[int], nnx.Module]:
    # As one program, and with keys of the kind that compiles fast: four seconds instead of twenty on CPU.
    @nnx.jit
    def create(key: jax.Array) -> nnx.Module:
        return create_model(
            settings.model,
            width=settings.width,
            num_classes=dataset.num_classes,
            image_shape=dataset.train_images.shape[1:],
            dtype=jnp.dtype(settings.dtype),
            rngs=nnx.Rngs(key),
        )

    return lambda seed: create(jax.random.key(seed, impl="rbg"))


def _place(dataset: Dataset, mesh: Mesh) -> tuple[Images, Images]:
    """The images to train and to test on, on every device of the mesh."""
    put = partial(replicate, mesh=mesh)
    statistics = (put(dataset.mean), put(dataset.std))
    train = Images(put(dataset.train_images), put(dataset.train_labels), *statistics)
    return train, Images(put(dataset.test_images), put(dataset.test_labels), *statistics)


def describe(line: Mapping[str, Any]) -> str:
    """A line of the log."""
    return f"loss {line['train_loss']:.3f}  train {line['train_accuracy']:.1%}  test {line['test_accuracy']:.1%}"


VISION = Domain(
    "vision",
    Settings,
    load,
    prepare,
    measure=Measure("test_accuracy", "test accuracy", percent=True, higher_is_better=True),
    metrics=("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    describe=describe,
    data=("dataset", "train_split", "test_split"),
    style=style.VISION,
)
