"""Image classification as the paper has it: `VISION` is all that runs, sweeps and reports know of it."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from examples.paper.balance import refreshing
from examples.paper.domain import Domain, Measure, Training
from examples.paper.errors import UserError
from examples.paper.network import Network, TrainState
from examples.paper.parallel import replicate
from examples.paper.vision.data import Dataset, load_dataset
from examples.paper.vision.epoch import Images, evaluate, paper_layers, train_epoch
from examples.paper.vision.methods import create_optimizer, create_schedule
from examples.paper.vision.models import create_model
from examples.paper.vision.settings import METHODS, Settings, unused


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
    balanced, weights = layers(first_and_last=settings.first_and_last), layers(min_eigenvalues=2, first_and_last=True)
    # An early weight, as they are small: copies of a late one would need as much memory as the network.
    watched = (balanced or weights)[:2][-1]
    steps = len(dataset.train_images) // settings.batch_size
    schedule = create_schedule(settings, steps)
    tx = create_optimizer(settings, schedule, steps, balanced, weights)
    train_data, test_data = _place(dataset, mesh)

    def initial(seed: int) -> TrainState:
        _, params, batch_stats = nnx.split(create(seed), nnx.Param, ...)
        return TrainState(params, batch_stats, tx.init(params), jnp.zeros((), jnp.int32), jnp.asarray(np.uint32(seed)))

    return Training(
        initial,
        refreshing(
            tx,
            partial(train_epoch, network, tx, weights, watched, settings.batch_size, dataset.flip),
            settings,
            steps,
        ),
        partial(evaluate, network, settings.batch_size),
        train_data,
        test_data,
        balanced,
        weights,
        watched,
        schedule,
        steps=steps,
        units=steps * settings.batch_size,
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


def figure10(out: Path) -> Iterator[str]:
    """What the fits make of spectra whose exponent is known."""
    from examples.paper.report.figures import synthetic_figure

    synthetic_figure(out / "figure10.png")
    yield "## Figure 10: the three fits on synthetic spectra"
    yield "Eigenvalues that decay as `i^-s` have a tail of exponent `1 + 1/s`; 1,000 of them, computed with this report."
    yield "![Alpha by the three fits against the decay s of synthetic spectra, beside the theory's 1 + 1/s](figure10.png)"


VISION = Domain(
    "vision",
    Settings,
    load,
    prepare,
    METHODS,
    baseline="cal",
    measure=Measure("test_accuracy", "test accuracy", percent=True, higher_is_better=True),
    metrics=("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    describe=describe,
    unused=unused,
    task=("model", "dataset", "width", "train_split", "test_split", "epochs", "batch_size", "weight_decay", "dtype"),
    data=("dataset", "train_split", "test_split"),
    always_told=("dataset", "width", "epochs", "learning_rate"),
    speaking=("model", "dataset", "metric", "fit", "assignment", "control", "dtype"),
    words={
        **{name: name.upper() for name in ("cal", "tb", "snr", "sgdr", "lars", "lamb", "sgdp", "vgg16", "vgg19")},
        **{"lookahead": "Lookahead", "adam": "Adam", "adamw": "AdamW", "adamp": "AdamP"},
        **{f"resnet{depth}": f"ResNet{depth}" for depth in (18, 34, 50, 101)},
        **{"wrn16-8": "WRN16-8", "wrn28-6": "WRN28-6", "dataset": "data set", "model": "network"},
    },
    introduction="CAL is SGD with cosine annealing, TB the same with TempBalance.",
    appendix=figure10,
)
