"""NNX networks with batch norms, trained epoch by epoch: state, forward pass, an epoch's order, the schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt32

from examples.paper.errors import UserError


class TrainState(NamedTuple):
    """All that a step changes, and the seed of what is drawn."""

    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    step: Int[Array, ""]
    """Steps taken."""
    seed: UInt32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model without its numbers."""

    graphdef: nnx.GraphDef

    def apply(
        self, params: nnx.State, batch_stats: nnx.State, images: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Any, nnx.State]:
        """What the model makes of images, in float32, and the batch norms' new statistics."""
        model = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        model.set_attributes(use_running_average=not train, raise_if_not_found=False)
        outputs = jax.tree.map(lambda each: each.astype(jnp.float32), model(images))  # pyright: ignore[reportCallIssue]
        return outputs, nnx.state(model, nnx.Not(nnx.Param))


def split_model(create: Callable[[int], nnx.Module], mesh: Mesh) -> tuple[Network, nnx.State, nnx.State]:
    """A model, of a seed, as a network, parameters and the statistics of its batch norms."""
    with jax.set_mesh(mesh):
        graphdef, params, batch_stats = nnx.split(create(0), nnx.Param, ...)
    return Network(graphdef), params, batch_stats


def initial_state(create: Callable[[int], nnx.Module], tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state of a new model."""
    _, params, batch_stats = nnx.split(create(seed), nnx.Param, ...)
    return TrainState(params, batch_stats, tx.init(params), jnp.zeros((), jnp.int32), jnp.asarray(np.uint32(seed)))


def steps_of_epoch(count: int, batch_size: int) -> int:
    """How many whole batches so many images make. Raises UserError where they do not make one."""
    if count < batch_size:
        raise UserError(f"--batch-size {batch_size} is more than the {count} training images.")
    return count // batch_size


def epoch_inputs(batch_size: int, state: TrainState, dataset: Any) -> tuple[Int[Array, "steps batch"], Key[Array, " steps"]]:
    """For each step of an epoch over `dataset.images`, the rows of its batch, and a key.

    The order is random. Images that do not fill a batch are left for another epoch.

    Each epoch draws from the run's seed and its own number, so a resumed run draws the same.
    """
    count = len(dataset.images)
    steps = count // batch_size
    epoch = state.step // steps
    order_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), epoch))
    order = jax.random.permutation(order_key, count)[: steps * batch_size].reshape(steps, batch_size)
    return order, jax.random.split(step_key, steps)


def epoch_cosine(learning_rate: float, epochs: int, steps: int) -> optax.Schedule:
    """`η0/2 (1 + cos(π t / T))` with `t` the epochs of so many steps that are done, and from `T` on anew."""
    cosine = optax.cosine_decay_schedule(learning_rate, epochs)
    return lambda count: cosine(jnp.asarray(count) // steps % epochs)
