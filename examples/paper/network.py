"""NNX networks with batch norms, trained epoch by epoch: state, forward pass, an epoch's order, a step, the schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt32


class TrainState(NamedTuple):
    """All that an epoch changes, and the seed of what it draws."""

    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    epoch: Int[Array, ""]
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


def epoch_inputs(state: TrainState, count: int, batch_size: int) -> tuple[Int[Array, "steps batch"], Key[Array, " steps"]]:
    """An epoch's examples in a random order, in whole batches, and a key for each; what remains is left for another epoch.

    Each epoch draws from the run's seed and its own number, so a resumed run draws the same.
    """
    order_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.epoch))
    steps = count // batch_size
    order = jax.random.permutation(order_key, count)[: steps * batch_size].reshape(steps, batch_size)
    return order, jax.random.split(step_key, steps)


def take_step(
    tx: optax.GradientTransformationExtraArgs,
    state: TrainState,
    loss_fn: Callable[[nnx.State], tuple[Array, tuple[Any, nnx.State]]],
) -> tuple[TrainState, nnx.State, Any]:
    """The state after a step, the gradients, and the metrics: `loss_fn` gives, beside the loss, these and new statistics."""
    (_, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params: nnx.State = optax.apply_updates(state.params, updates)  # pyright: ignore[reportAssignmentType]
    return state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state), grads, metrics


def epoch_cosine(learning_rate: float, epochs: int, steps: int) -> optax.Schedule:
    """`η0/2 (1 + cos(π t / T))` with `t` the epochs of so many steps that are done, and from `T` on anew."""
    cosine = optax.cosine_decay_schedule(learning_rate, epochs)
    return lambda count: cosine(jnp.asarray(count) // steps % epochs)
