"""Assignments: from the metrics of all balanced layers to their learning-rate scales.

A layer whose metric is NaN takes no part: it is neither the least nor the greatest nor in a mean, and its scale is NaN.
Where all metrics are equal, all scales are 1.
"""

from typing import Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

Bound: TypeAlias = float | Float[Array, ""]


@runtime_checkable
class Assignment(Protocol):
    """A function from the metrics of all layers to their scales, such as `linear`; your own may take its place.

    It is called in a trace with metrics of shape `(layers,)`, NaN for layers that take no part, and with the bounds
    `min_scale` and `max_scale`, to which the result is clipped. It returns scales of shape `(layers,)`; NaN marks a layer
    that keeps its scale.
    """

    def __call__(
        self, metrics: Float[Array, " layers"], min_scale: Bound, max_scale: Bound, /
    ) -> Float[Array, " layers"]: ...


def linear(metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5) -> Float[Array, " layers"]:
    """From `min_scale` at the least metric to `max_scale` at the greatest, in a line: the paper's default.

    Zhou et al. (2023), Eq. 2, without the base learning rate: `s1 + (s2 - s1) (m - min m) / (max m - min m)`.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.assignments.linear(jnp.array([2.0, 3.0, 4.0])).tolist()
      [0.5, 1.0, 1.5]
    """
    least, greatest = jnp.nanmin(metrics), jnp.nanmax(metrics)
    fraction = (metrics - least) / (greatest - least)
    return _one_where_equal(metrics, min_scale + (max_scale - min_scale) * fraction)


def sqrt(metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5) -> Float[Array, " layers"]:
    """`√m / mean √m` (Zhou et al., 2023, Appendix): the bounds are not in the formula. NaN where a metric is negative.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.assignments.sqrt(jnp.array([1.0, 9.0])).tolist()
      [0.5, 1.5]
    """
    del min_scale, max_scale
    return _over_mean(metrics, jnp.sqrt(metrics))


def log2(metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5) -> Float[Array, " layers"]:
    """`log m / mean log m` (Zhou et al., 2023, Appendix): the bounds are not in the formula, and `m` is to exceed 1.

    NaN where a metric is not above zero.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.assignments.log2(jnp.array([2.0, 8.0])).tolist()
      [0.5, 1.5]
    """
    del min_scale, max_scale
    return _over_mean(metrics, jnp.log2(jnp.where(metrics > 0, metrics, jnp.nan)))


def step(metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5) -> Float[Array, " layers"]:
    """Evenly spaced by rank: `s1 + rank (s2 - s1) / (L - 1)`, rank from 0 (Zhou et al., 2023, Appendix).

    Equal metrics share the mean of their ranks. The released code divides by `L`, so that no layer has the scale `s2`.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.assignments.step(jnp.array([7.0, 2.0, 3.0])).tolist()
      [1.5, 0.5, 1.0]
    """
    known = ~jnp.isnan(metrics)
    ordered = jnp.sort(metrics)  # NaNs last, so that searchsorted counts the known ones only
    below, not_above = (jnp.searchsorted(ordered, metrics, side=side) for side in ("left", "right"))
    rank = jnp.where(known, (below + not_above - 1).astype(ordered.dtype) / 2, jnp.nan)
    return _one_where_equal(metrics, min_scale + rank * (max_scale - min_scale) / (known.sum() - 1).astype(ordered.dtype))


def sigmoid(
    metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5, *, temperature: float = 1.0
) -> Float[Array, " layers"]:
    """Around the mean, smoothly towards the bounds: 1 at the mean metric, near a bound far from it.

    TB_Sigmoid (Liu et al., "Model Balancing Helps Low-data Training and Fine-tuning", EMNLP 2024): with `d = m - mean m`
    and the logistic function `σ`, `10^(s (σ(τ d) - 1/2))`, where `s` is `2 log10(max_scale)` above the mean and
    `-2 log10(min_scale)` below it: in terms of the bounds, that is a bound to the power `tanh(τ |d| / 2)`.

    Args:
      metrics: of all layers.
      min_scale: what scales of small metrics tend to. The formula has it at most 1.
      max_scale: what scales of large metrics tend to. The formula has it at least 1.
      temperature: `τ`: the larger, the nearer to the bounds at the same distance from the mean.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> [round(scale, 3) for scale in tb_optax.assignments.sigmoid(jnp.array([2.0, 3.0, 4.0]), 0.5, 2.0).tolist()]
      [0.726, 1.0, 1.378]
    """
    distance = metrics - jnp.nanmean(metrics)
    exponent = jnp.tanh(temperature / 2 * jnp.abs(distance))
    scales = jnp.where(distance > 0, max_scale, min_scale).astype(distance.dtype) ** exponent
    return _one_where_equal(metrics, scales)


def _over_mean(metrics: Float[Array, " layers"], values: Float[Array, " layers"]) -> Float[Array, " layers"]:
    return _one_where_equal(metrics, values / jnp.nanmean(values))


def _one_where_equal(metrics: Float[Array, " layers"], scales: Float[Array, " layers"]) -> Float[Array, " layers"]:
    equal = jnp.nanmax(metrics) == jnp.nanmin(metrics)
    return jnp.where(jnp.isnan(metrics), jnp.nan, jnp.where(equal, 1.0, scales))
