"""The compiled functions of a setting, for one seed or for several that train together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

import tb_optax
from examples.runs.parallel import replicate
from examples.vision.data import Dataset
from examples.vision.training import (
    EpochMetrics,
    Images,
    Network,
    Observations,
    TrainState,
    evaluate,
    measure_alphas,
    paper_layers,
    train_epoch,
)

CreateOptimizer = Callable[[tb_optax.Layers, tb_optax.Layers], optax.GradientTransformationExtraArgs]


class PlacedDataset(NamedTuple):
    """A data set on every device of a mesh."""

    train: Images
    test: Images
    flip: bool


def place(dataset: Dataset, mesh: Mesh) -> PlacedDataset:
    """Puts a data set on every device of the mesh."""
    put = partial(replicate, mesh=mesh)
    statistics = (put(dataset.mean), put(dataset.std))
    train = Images(put(dataset.train_images), put(dataset.train_labels), *statistics)
    test = Images(put(dataset.test_images), put(dataset.test_labels), *statistics)
    return PlacedDataset(train, test, dataset.flip)


class Program(NamedTuple):
    """What trains a setting. Where several seeds train together, every array has a first axis of their number."""

    start: Callable[[Sequence[int]], TrainState]
    train: Callable[[TrainState], tuple[TrainState, EpochMetrics, Observations]]
    """An epoch; the gradient norms are those of `weights`."""
    test: Callable[[TrainState], EpochMetrics]
    measure: Callable[[TrainState], dict[str, Array]]
    """The alpha of each of `weights`, balanced or not; NaN where there is none."""
    balanced: tb_optax.Layers
    weights: tb_optax.Layers
    """Every weight with two eigenvalues or more, the first and the last layer too."""
    watched: tb_optax.Layer
    """Whose spectrum is told within the first epoch too: the second balanced one, in ResNet-18 `layer1/0/conv2`."""
    bytes_needed: int
    """On each device, while it trains."""


def compile_program(
    create_model: Callable[[int], nnx.Module],
    create_optimizer: CreateOptimizer,
    alpha: Callable[..., Array],
    dataset: PlacedDataset,
    batch_size: int,
    mesh: Mesh,
    *,
    together: int = 1,
    first_and_last: bool = False,
) -> Program:
    """Compiles a setting for a mesh.

    Each batch is split over the mesh. Its batch norms are those of the whole batch: the split changes nothing but the
    order of sums. Seeds that train together do so under `vmap`.

    Args:
      create_model: makes a model from a seed.
      create_optimizer: makes the optimizer from the layers to balance and from all weights of two or more axes.
      alpha: how a layer's alpha is measured, from its eigenvalues.
      dataset: what to train and test on, on the mesh.
      batch_size: images a step.
      mesh: the devices.
      together: how many seeds train together.
      first_and_last: whether the first and the last layer are balanced too.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        graphdef, params, batch_stats = nnx.split(create_model(0), nnx.Param, ...)
    network = Network(graphdef)
    example = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), jnp.float32)
    balanced = paper_layers(network, params, batch_stats, example, first_and_last=first_and_last)
    weights = paper_layers(network, params, batch_stats, example, min_eigenvalues=2, first_and_last=True)
    # An early weight, as they are small: copies of a late one would need as much memory as the network.
    watched = (balanced or weights)[:2][-1]
    tx = create_optimizer(balanced, weights)

    def start(seeds: Sequence[int]) -> TrainState:
        assert len(seeds) == together
        with jax.set_mesh(mesh):
            states = [_start_one(create_model, tx, seed) for seed in seeds]
            return jax.device_put(states[0] if together == 1 else stack(states), replicated)

    over_seeds: Any = (lambda function, axes: function) if together == 1 else jax.vmap
    # In force while tracing, the mesh is also what TempBalance divides its eigenproblems over.
    with jax.set_mesh(mesh):
        compiled = partial(jax.jit, out_shardings=PartitionSpec())
        one_epoch = partial(train_epoch, network, tx, weights, watched, batch_size, dataset.flip)
        many = () if together == 1 else (together,)
        abstract = lambda leaf: jax.ShapeDtypeStruct((*many, *leaf.shape), leaf.dtype, sharding=replicated)
        state = jax.tree.map(abstract, jax.eval_shape(partial(_initial_state, params, batch_stats, tx, 0)))
        train = compiled(over_seeds(one_epoch, (0, None)), donate_argnums=0).lower(state, dataset.train).compile()
        test = compiled(over_seeds(partial(evaluate, network, batch_size), (0, None))).lower(state, dataset.test).compile()
        measure = compiled(over_seeds(partial(measure_alphas, alpha, weights), 0)).lower(state.params).compile()
    return Program(
        start,
        lambda state: train(state, dataset.train),
        lambda state: test(state, dataset.test),
        lambda state: measure(state.params),
        balanced,
        weights,
        watched,
        _bytes_needed(train),
    )


def stack(states: Sequence[TrainState]) -> TrainState:
    """The states of seeds as that of all together."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(tree: Any, together: int) -> list[Any]:
    """What belongs to each seed."""
    if together == 1:
        return [tree]
    return [jax.tree.map(lambda leaf: leaf[index], tree) for index in range(together)]  # noqa: B023


def _start_one(
    create_model: Callable[[int], nnx.Module], tx: optax.GradientTransformationExtraArgs, seed: int
) -> TrainState:
    _, params, batch_stats = nnx.split(create_model(seed), nnx.Param, ...)
    return _initial_state(params, batch_stats, tx, seed)


def _initial_state(
    params: nnx.State, batch_stats: nnx.State, tx: optax.GradientTransformationExtraArgs, seed: int
) -> TrainState:
    return TrainState(params, batch_stats, tx.init(params), jnp.zeros((), jnp.int32), jnp.asarray(np.uint32(seed)))


def _bytes_needed(compiled: Any) -> int:
    """Zero where the compiler does not say."""
    found = compiled.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(getattr(found, part, 0) for part in parts) - getattr(found, "alias_size_in_bytes", 0)
