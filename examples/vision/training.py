"""One training run as pure functions: a state, an epoch, an evaluation, a measurement of the spectra."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt32

import tb_optax
from examples.runs.parallel import split
from examples.vision.augment import crop_and_flip, normalize


class TrainState(NamedTuple):
    """All that an epoch changes, and the seed of what it draws."""

    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    epoch: Int[Array, ""]
    seed: UInt32[Array, ""]


class Images(NamedTuple):
    """A set of images on the device, and what they are normalized by."""

    images: UInt8[Array, "n h w c"]
    labels: Int[Array, " n"]
    mean: Float[Array, " c"]
    std: Float[Array, " c"]


class EpochMetrics(NamedTuple):
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


class Observations(NamedTuple):
    """What an epoch tells of its gradients, by the name of the layer whose kernel's they are, and of one weight."""

    norms: dict[str, Float[Array, ""]]
    """Of the loss's gradient, their mean over the steps."""
    norms_within: dict[str, Float[Array, " points"]]
    """At the first step and every `NORM_INTERVAL`th from there."""
    watched: Float[Array, "copies ..."]
    """The watched kernel before each of the steps that `watched_steps` has."""


NORM_INTERVAL = 30
"""The paper's, of its Figure 18."""


def watched_steps(steps: int) -> list[int]:
    """Four steps of an epoch, the first one among them; fewer in a shorter epoch."""
    return sorted({part * steps // 4 for part in range(4)})


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
    """The layers as the authors' code balances them: the norm of a projection shortcut keeps the base learning rate.

    In WideResNets, whose norms stand before the convolutions, a norm takes the scale of the convolution in front of it
    all the same; the released code pairs names there, and so gives it that of the one behind.
    """
    forward = lambda params, images: network.apply(params, batch_stats, images, train=False)[0]
    found = tb_optax.trace_layers(forward, params, images, **kwargs)
    own = lambda layer: tuple(path for path in layer.follows if path.startswith(f"{layer.name}/"))  # its bias
    bare = lambda layer: dataclasses.replace(layer, follows=own(layer)) if "/shortcut/" in layer.name else layer
    return tb_optax.Layers(map(bare, found), found.left_out)


def train_epoch(
    network: Network,
    tx: optax.GradientTransformationExtraArgs,
    layers: tb_optax.Layers,
    watched: tb_optax.Layer,
    batch_size: int,
    flip: bool,
    state: TrainState,
    dataset: Images,
) -> tuple[TrainState, EpochMetrics, Observations]:
    """One pass over the training set in a random order, in whole batches; what remains is left for another epoch.

    Each epoch draws from the run's seed and its own number, so a resumed run draws the same. The norms are those of
    `layers`; of `watched` there are copies of its kernel.
    """
    key = jax.random.key(state.seed)
    order_key, augment_key = jax.random.split(jax.random.fold_in(key, state.epoch))
    images, labels, mean, std = dataset
    steps = len(images) // batch_size
    order = jax.random.permutation(order_key, len(images))[: steps * batch_size].reshape(steps, batch_size)

    copied = jnp.asarray(watched_steps(steps))

    def step(carry: tuple[TrainState, Array], inputs: tuple[Array, Array, Array]) -> tuple[tuple[TrainState, Array], Any]:
        (state, copies), (rows, key, number) = carry, inputs
        # Overwritten until the step that it is to be of; behind the last one nothing is written.
        copies = copies.at[jnp.sum(copied < number)].set(kernels(state.params)[watched.kernel], mode="drop")
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
        state = state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        return (state, copies), (EpochMetrics(loss, correct), kernel_norms(grads, layers))

    kernel = kernels(state.params)[watched.kernel]
    carry = (state, jnp.zeros((len(copied), *kernel.shape), kernel.dtype))
    inputs = (order, jax.random.split(augment_key, steps), jnp.arange(steps))
    (state, copies), (metrics, norms) = jax.lax.scan(step, carry, inputs)
    within = {layer: values[::NORM_INTERVAL] for layer, values in norms.items()}
    metrics, mean = jax.tree.map(lambda values: jnp.mean(values, axis=0), (metrics, norms))
    return state._replace(epoch=state.epoch + 1), metrics, Observations(mean, within, copies)


def kernel_norms(grads: nnx.State, layers: tb_optax.Layers) -> dict[str, Float[Array, ""]]:
    """The norm of the gradient of each layer's kernel, all its axes together."""
    leaves = kernels(grads)
    return {layer.name: jnp.linalg.norm(leaves[layer.kernel].astype(jnp.float32).reshape(-1)) for layer in layers}


def kernels(params: nnx.State) -> dict[str, Array]:
    """Every leaf, by the path that layers have for it."""
    path_name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def evaluate(network: Network, batch_size: int, state: TrainState, dataset: Images) -> EpochMetrics:
    """Mean loss and accuracy on a set, in batches; the last one is filled up with images that do not count."""
    images, labels, mean, std = dataset
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


def measure_alphas(alpha: Callable[..., Array], layers: tb_optax.Layers, params: nnx.State) -> dict[str, Float[Array, ""]]:
    """PL_Alpha_Hill of each of `layers` as `alpha` computes it, by a refresh of TempBalance; NaN where there is none."""
    refresh = tb_optax.tempbalance(1, metric=alpha, layers=layers)
    _, refreshed = refresh.update(params, refresh.init(params), params)
    alphas = optax.tree_utils.tree_get(refreshed, "metric")
    return {name: jnp.where(alpha > 0, alpha, jnp.nan) for name, alpha in alphas.items()}
