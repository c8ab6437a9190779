"""One training run as pure functions: a state, an epoch, an evaluation, a measurement of the spectra."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt8

import tb_optax
from examples.vision.augment import crop_and_flip, normalize
from examples.vision.data import Dataset
from examples.vision.parallel import create_mesh, replicate, split


class TrainState(NamedTuple):
    """All that an epoch changes."""

    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    epoch: Int[Array, ""]


class EpochMetrics(NamedTuple):
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model without its numbers."""

    graphdef: nnx.GraphDef

    def apply(
        self, params: nnx.State, batch_stats: nnx.State, images: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], nnx.State]:
        """Logits in float32, and the batch norms' new statistics."""
        model = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        model.set_attributes(use_running_average=not train, raise_if_not_found=False)
        logits = model(images).astype(jnp.float32)  # pyright: ignore[reportCallIssue]
        return logits, nnx.state(model, nnx.Not(nnx.Param))


def paper_layers(
    network: Network, params: nnx.State, batch_stats: nnx.State, images: jax.ShapeDtypeStruct, **kwargs: Any
) -> tb_optax.Layers:
    """The layers as the authors' code balances them: the norm of a projection shortcut keeps the base learning rate."""
    forward = lambda params, images: network.apply(params, batch_stats, images, train=False)[0]
    found = tb_optax.trace_layers(forward, params, images, **kwargs)
    bare = lambda layer: dataclasses.replace(layer, follows=()) if "/shortcut/" in layer.name else layer
    return tb_optax.Layers(map(bare, found), found.left_out)


def train_epoch(
    network: Network,
    tx: optax.GradientTransformationExtraArgs,
    batch_size: int,
    flip: bool,
    state: TrainState,
    key: Key[Array, ""],
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, " n"],
    mean: Float[Array, " c"],
    std: Float[Array, " c"],
) -> tuple[TrainState, EpochMetrics]:
    """One pass over the training set in a random order, in whole batches; what remains is left for another epoch.

    `key` is the run's: each epoch takes its own from it and the epoch's number, so a resumed run draws the same.
    """
    order_key, augment_key = jax.random.split(jax.random.fold_in(key, state.epoch))
    steps = len(images) // batch_size
    order = jax.random.permutation(order_key, len(images))[: steps * batch_size].reshape(steps, batch_size)

    def step(state: TrainState, inputs: tuple[Array, Array]) -> tuple[TrainState, EpochMetrics]:
        rows, key = inputs
        rows = split(rows)
        batch = split(normalize(crop_and_flip(key, images[rows], flip=flip), mean, std))

        def loss_fn(params: nnx.State) -> tuple[Array, tuple[Array, nnx.State]]:
            logits, batch_stats = network.apply(params, state.batch_stats, batch, train=True)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()
            return loss, (logits, batch_stats)

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: nnx.State = optax.apply_updates(state.params, updates)  # pyright: ignore[reportAssignmentType]
        correct = jnp.mean(logits.argmax(-1) == labels[rows])
        return TrainState(params, batch_stats, opt_state, state.epoch), EpochMetrics(loss, correct)

    state, metrics = jax.lax.scan(step, state, (order, jax.random.split(augment_key, steps)))
    return state._replace(epoch=state.epoch + 1), jax.tree.map(jnp.mean, metrics)


def evaluate(
    network: Network,
    batch_size: int,
    state: TrainState,
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, " n"],
    mean: Float[Array, " c"],
    std: Float[Array, " c"],
) -> EpochMetrics:
    """Mean loss and accuracy on a set, in batches; the last one is filled up with images that do not count."""
    count = len(images)
    batches = -(-count // batch_size)
    rows = jnp.arange(batches * batch_size).reshape(batches, batch_size)

    def totals(rows: Int[Array, " batch"]) -> EpochMetrics:
        counted = rows < count
        rows = split(jnp.minimum(rows, count - 1))
        batch = split(normalize(images[rows], mean, std))
        logits, _ = network.apply(state.params, state.batch_stats, batch, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        total = lambda values: jnp.sum(jnp.where(counted, values, 0.0))
        return EpochMetrics(total(losses), total(logits.argmax(-1) == labels[rows]))

    return jax.tree.map(lambda values: values.sum() / count, jax.lax.map(totals, rows))


class Run(NamedTuple):
    """The compiled functions of a run, its first state, and what is passed to them."""

    state: TrainState
    train: Callable[[TrainState], tuple[TrainState, EpochMetrics]]
    test: Callable[[TrainState], EpochMetrics]
    measure: Callable[[TrainState], dict[str, Array]]
    """PL_Alpha_Hill of every layer, balanced or not, by a refresh of TempBalance; NaN where there is none."""
    layers: tb_optax.Layers


def prepare(
    model: nnx.Module,
    create_tx: Callable[[tb_optax.Layers], optax.GradientTransformationExtraArgs],
    dataset: Dataset,
    batch_size: int,
    seed: int,
    mesh: Mesh | None = None,
) -> Run:
    """Puts the data and the state on every device of the mesh, by default on the first there is, and compiles.

    Each batch is split over the mesh. Its batch norms are those of the whole batch: the split changes nothing but the
    order of sums.
    """
    mesh = create_mesh(1, batch_size) if mesh is None else mesh
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    network = Network(graphdef)
    example = jax.ShapeDtypeStruct((1, *dataset.train_images.shape[1:]), jnp.float32)
    layers = paper_layers(network, params, batch_stats, example)
    all_layers = paper_layers(network, params, batch_stats, example, min_eigenvalues=2, first_and_last=True)
    tx = create_tx(layers)
    refresh_all = tb_optax.tempbalance(1, layers=all_layers)

    def measure(params: nnx.State) -> dict[str, Array]:
        _, refreshed = refresh_all.update({}, refresh_all.init(params), params)
        alphas = optax.tree_utils.tree_get(refreshed, "metric")
        return {name: jnp.where(alpha > 0, alpha, jnp.nan) for name, alpha in alphas.items()}

    # In force while tracing, the mesh is also what TempBalance divides its eigenproblems over.
    with jax.set_mesh(mesh):
        state = TrainState(params, batch_stats, tx.init(params), jnp.zeros((), jnp.int32))
        state = jax.device_put(state, PartitionSpec())
        put = partial(replicate, mesh=mesh)
        statistics = (put(dataset.mean), put(dataset.std))
        train_set = (put(dataset.train_images), put(dataset.train_labels), *statistics)
        test_set = (put(dataset.test_images), put(dataset.test_labels), *statistics)
        key = jax.random.key(seed)
        compiled = partial(jax.jit, out_shardings=PartitionSpec())
        train = compiled(partial(train_epoch, network, tx, batch_size, dataset.flip), donate_argnums=0)
        train = train.lower(state, key, *train_set).compile()
        test = compiled(partial(evaluate, network, batch_size)).lower(state, *test_set).compile()
        measure_compiled = compiled(measure).lower(state.params).compile()
    return Run(
        state,
        lambda state: train(state, key, *train_set),
        lambda state: test(state, *test_set),
        lambda state: measure_compiled(state.params),
        layers,
    )
