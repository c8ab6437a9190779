"""Language modelling as pure functions: the loss of an update, and an evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt32

from examples.paper.language.models import LanguageModel
from examples.paper.parallel import batches, split

PyTree = Any


class TrainState(NamedTuple):
    """All that updates change, the seed of what they draw, and the parameters that were best on the validation text."""

    params: PyTree
    opt_state: optax.OptState
    step: Int[Array, ""]
    """Updates made."""
    best: PyTree
    best_loss: Float[Array, ""]
    seed: UInt32[Array, ""]


class TrainMetrics(NamedTuple):
    """A token's; in training, dropout is on."""

    loss: Float[Array, ""]


class Metrics(NamedTuple):
    """A token's loss, and the exponential of its mean."""

    loss: Float[Array, ""]
    perplexity: Float[Array, ""]


def windows(rows: Int[np.ndarray, "rows length"], window: int) -> Int[np.ndarray, "windows rows window_and_one"]:
    """Cuts rows into windows, in order: what is read, and one token more, for each token is to tell the next.

    A window begins with the last token of the one before. What is left over at the end of a row is dropped.
    """
    starts = range(0, rows.shape[1] - window, window)
    return np.stack([rows[:, start : start + window + 1] for start in starts])


def loss(
    model: LanguageModel,
    params: PyTree,
    state: TrainState,
    number: Int[Array, ""],
    batches: Int[Array, "windows rows window_and_one"],
) -> tuple[Float[Array, ""], tuple[TrainMetrics, dict[str, Any]]]:
    """The loss of an update: on one window of every row, by its number; after the last window the first one comes again.

    Each update draws from the run's seed and its own number, so a resumed run draws the same.
    """
    batch = split(batches[number % len(batches)])
    key = jax.random.fold_in(jax.random.key(state.seed), number)
    logits: Any = model.apply({"params": params}, batch[:, :-1], train=True, rngs={"dropout": key})
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()
    return loss, (TrainMetrics(loss), {})


def evaluate(
    model: LanguageModel, batch_size: int, state: TrainState, text: Int[Array, "windows rows window_and_one"]
) -> Metrics:
    """On a text's windows, in batches; the last one is filled up with windows that do not count."""
    examples = text.reshape(-1, text.shape[-1])
    count = len(examples)

    def total(indices: Int[Array, " batch"]) -> Float[Array, ""]:
        batch = split(examples[jnp.minimum(indices, count - 1)])
        logits: Any = model.apply({"params": state.params}, batch[:, :-1], train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean(axis=-1)
        return jnp.sum(jnp.where(indices < count, losses, 0.0))

    mean = jax.lax.map(total, batches(count, batch_size)).sum() / count
    return Metrics(mean, jnp.exp(mean))


def keep_best(state: TrainState, metrics: Metrics) -> TrainState:
    """The state with its parameters as the best ones, where their loss on the validation text is the least so far."""
    better = metrics.loss < state.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
    return state._replace(best=best, best_loss=jnp.minimum(metrics.loss, state.best_loss))
