"""Controls of TempBalance: the same scales without what they are said to say. Each makes an assignment of another.

If TempBalance beats its optimizer and a control does as well, alphas were not the reason. `placebo` keeps how much rates
differ; `mean` keeps the mean rate alone; `reversed` keeps the scales and turns their order around. Two controls are no
assignments (`balance`): `shape` takes the alpha of noise of each layer's shape for its metric, and `embedding` scales only
the layers that are not measured.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tb_optax import assignments

Scales: TypeAlias = Float[Array, " layers"]
Control: TypeAlias = Callable[[assignments.Assignment], assignments.Assignment]


def _control(change: Callable[[Scales, Float[Array, " layers"]], Scales]) -> Control:
    """The control that changes the scales of an assignment, given the metrics too. A layer without a scale has NaN."""

    def control(assign: assignments.Assignment) -> assignments.Assignment:
        def changed(metrics: Float[Array, " layers"], min_scale: assignments.Bound, max_scale: assignments.Bound) -> Scales:
            return change(assign(metrics, min_scale, max_scale), metrics)

        return changed

    return control


@_control
def placebo(scales: Scales, metrics: Float[Array, " layers"]) -> Scales:
    """Deals the scales to random layers, at every refresh anew.

    The draw depends on every bit of the metrics, so runs and refreshes draw differently, and a resumed run draws the same.
    """
    has_scale = jnp.isfinite(scales)
    chances = jax.random.uniform(_key_of(metrics), scales.shape)
    # Both orders begin with the layers that have a scale; among these the second is random.
    return _dealt(scales, jnp.argsort(~has_scale), jnp.argsort(jnp.where(has_scale, chances, 2.0)))


@_control
def reverse(scales: Scales, metrics: Float[Array, " layers"]) -> Scales:
    """Deals the scales in reverse: the layer with the smallest metric gets the scale of the one with the greatest."""
    del metrics
    last = lambda values: jnp.where(jnp.isfinite(scales), values, jnp.inf)
    return _dealt(scales, jnp.argsort(last(scales)), jnp.argsort(last(-scales)))


@_control
def mean(scales: Scales, metrics: Float[Array, " layers"]) -> Scales:
    """Gives every layer the mean of the scales."""
    del metrics
    return jnp.where(jnp.isfinite(scales), jnp.nanmean(scales), scales)


def _dealt(scales: Scales, receivers: Int[Array, " layers"], givers: Int[Array, " layers"]) -> Scales:
    """Each receiver gets the scale of the giver in the same place."""
    return jnp.full_like(scales, jnp.nan).at[receivers].set(scales[givers])


CONTROLS: Mapping[str, Control] = {
    "placebo": placebo,
    "mean": mean,
    "reversed": reverse,
}


def _key_of(metrics: Float[Array, " layers"]) -> Key[Array, ""]:
    bits = jax.lax.bitcast_convert_type(metrics.astype(jnp.float32), jnp.uint32)
    weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1  # so that the order of the metrics counts too
    return jax.random.key(jnp.sum(bits * weights, dtype=jnp.uint32))
