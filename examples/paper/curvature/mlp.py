"""A network of one hidden layer, trained with a penalty that makes the spectrum of its output covariance a power law."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen
from jaxtyping import Array, Float, Int

Params = Mapping[str, Any]
Images = Float[Array, "n pixels"]
Labels = Int[Array, " n"]


class MLP(linen.Module):
    """Logits of ten classes, and the hidden layer's output `f(x)`, whose covariance is looked at."""

    width: int

    @linen.compact
    def __call__(self, x: Images) -> tuple[Float[Array, "n 10"], Float[Array, "n width"]]:
        hidden = linen.relu(linen.Dense(self.width, name="hidden")(x))
        return linen.Dense(10, name="head")(hidden), hidden


class Penalty(NamedTuple):
    """Of the eigenvalues `λ_k` of the output covariance that are not on `λ_k ~ k^-exponent`."""

    exponent: float
    strength: float = 1.0
    first: int = 10
    """The rank that the power law starts from; larger eigenvalues are free."""
    last: int = 100


def cross_entropy(model: MLP, params: Params, images: Images, labels: Labels) -> Float[Array, ""]:
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images)[0], labels).mean()  # pyright: ignore


def directions(model: MLP, params: Params, images: Images, count: int) -> Float[Array, "width count"]:
    """The output covariance's eigenvectors of the `count` largest eigenvalues, largest first."""
    hidden = _hidden(model, params, images)
    _, vectors = jnp.linalg.eigh(hidden @ hidden.T)  # of fewer rows than the covariance, with the same eigenvalues
    directions = hidden.T @ vectors[:, ::-1][:, :count]
    return directions / jnp.linalg.norm(directions, axis=0)


def distance_from_power_law(variances: Float[Array, " k"], penalty: Penalty) -> Float[Array, ""]:
    """How far variances, largest first, are from a power law through the one of rank `first`.

    The mean over the ranks from `first` to the last of `|λ_k / γ_k - 1| + max(0, λ_k / γ_k - 1)`, with
    `γ_k = λ_first (first / k)^exponent`: too large counts twice (Nassar et al., "On 1/n neural representation and
    robustness", NeurIPS 2020, section 3).
    """
    ranks = jnp.arange(penalty.first, len(variances) + 1)
    law = variances[penalty.first - 1] * (penalty.first / ranks) ** penalty.exponent
    excess = variances[penalty.first - 1 :] / law - 1
    return jnp.mean(jnp.abs(excess) + jnp.maximum(0, excess))


def train_epoch(
    model: MLP,
    optimizer: optax.GradientTransformation,
    penalty: Penalty | None,
    state: tuple[Params, optax.OptState],
    images: Images,
    labels: Labels,
    order: Int[Array, "steps batch"],
) -> tuple[Params, optax.OptState]:
    """One epoch over `images[order[step]]`.

    As in Nassar et al., eigenvectors are those of all images as the epoch begins, and an eigenvalue is the variance along
    one of them, of all images: they are few enough.
    """
    along = None if penalty is None else directions(model, state[0], images, penalty.last)

    def loss(params: Params, batch: Int[Array, " batch"]) -> Float[Array, ""]:
        value = cross_entropy(model, params, images[batch], labels[batch])
        if penalty is None or along is None:
            return value
        variances = jnp.mean((_hidden(model, params, images) @ along) ** 2, axis=0)
        return value + penalty.strength * distance_from_power_law(variances, penalty)

    def step(
        state: tuple[Params, optax.OptState], batch: Int[Array, " batch"]
    ) -> tuple[tuple[Params, optax.OptState], None]:
        params, optimizer_state = state
        updates, optimizer_state = optimizer.update(jax.grad(loss)(params, batch), optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), None  # pyright: ignore

    return jax.lax.scan(step, state, order)[0]


def _hidden(model: MLP, params: Params, images: Images) -> Float[Array, "n width"]:
    return model.apply(params, images)[1]  # pyright: ignore[reportReturnType]
