"""Controls of TempBalance: the same scales without what they are said to say. Each makes an assignment of another.

If TempBalance beats its optimizer and a control does as well, alphas were not the reason. `placebo` keeps how much rates
differ; `mean` keeps the mean rate alone; `reversed` keeps the scales and turns their order around. Two controls are no
assignments (`balance`): `shape` takes the alpha of noise of each layer's shape for its metric, and `embedding` scales only
the layers that are not measured.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from tb_optax import assignments


def placebo(assign: assignments.Assignment) -> assignments.Assignment:
    """Deals the scales to random layers, at every refresh anew. Those without a scale of their own get none.

    What is drawn hangs on every bit of the metrics, so that runs and refreshes draw differently and a resumed run the same.
    """

    def dealt(
        metrics: Float[Array, " layers"], min_scale: assignments.Bound, max_scale: assignments.Bound
    ) -> Float[Array, " layers"]:
        scales = assign(metrics, min_scale, max_scale)
        has_scale = jnp.isfinite(scales)
        chances = jax.random.uniform(_key_of(metrics), scales.shape)
        # Both orders begin with the layers that have a scale; among these the second is random.
        places = jnp.argsort(~has_scale)
        drawn = jnp.argsort(jnp.where(has_scale, chances, 2.0))
        return jnp.full_like(scales, jnp.nan).at[places].set(scales[drawn])

    return dealt


def reverse(assign: assignments.Assignment) -> assignments.Assignment:
    """Deals the scales in reverse: the layer with the smallest metric gets the scale of the one with the greatest."""

    def reversed_scales(
        metrics: Float[Array, " layers"], min_scale: assignments.Bound, max_scale: assignments.Bound
    ) -> Float[Array, " layers"]:
        scales = assign(metrics, min_scale, max_scale)
        has_scale = jnp.isfinite(scales)
        rising, falling = (
            jnp.argsort(jnp.where(has_scale, scales, jnp.inf)),
            jnp.argsort(jnp.where(has_scale, -scales, jnp.inf)),
        )
        return jnp.full_like(scales, jnp.nan).at[rising].set(scales[falling])

    return reversed_scales


def mean(assign: assignments.Assignment) -> assignments.Assignment:
    """Gives every layer the mean of the scales."""

    def level(
        metrics: Float[Array, " layers"], min_scale: assignments.Bound, max_scale: assignments.Bound
    ) -> Float[Array, " layers"]:
        scales = assign(metrics, min_scale, max_scale)
        return jnp.where(jnp.isfinite(scales), jnp.nanmean(scales), scales)

    return level


CONTROLS: Mapping[str, Callable[[assignments.Assignment], assignments.Assignment]] = {
    "placebo": placebo,
    "mean": mean,
    "reversed": reverse,
}


def _key_of(metrics: Float[Array, " layers"]) -> Key[Array, ""]:
    bits = jax.lax.bitcast_convert_type(metrics.astype(jnp.float32), jnp.uint32)
    weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1  # so that the order of the metrics counts too
    return jax.random.key(jnp.sum(bits * weights, dtype=jnp.uint32))
