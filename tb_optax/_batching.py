"""Predicates that stay unbatched under `vmap`, so that a `cond` on them does not compute both branches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


@jax.custom_batching.custom_vmap
def any_over_batch(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """The predicate itself; under `vmap`, whether it holds for any element of the batch."""
    return predicate


@any_over_batch.def_vmap
def _(axis_size: int, in_batched: list[bool], predicate: Bool[Array, " batch"]) -> tuple[Array, bool]:
    del axis_size, in_batched
    return any_over_batch(jnp.any(predicate)), False
