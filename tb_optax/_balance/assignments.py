"""Assignments compute learning-rate scales from the metrics of all balanced layers.

A layer whose metric is NaN is left out of every minimum, maximum and mean, and its scale is NaN. If all metrics are equal,
all scales are 1.
"""

from typing import Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

Bound: TypeAlias = float | Float[Array, ""]


@runtime_checkable
class Assignment(Protocol):
    """A function from the metrics of all layers to their scales, such as `linear` or your own.

    JAX traces it. Its arguments are metrics of shape `(layers,)`, NaN for a layer that takes no part, and the bounds
    `min_scale` and `max_scale`. It returns scales of shape `(layers,)`, which are then clipped to the bounds. A layer whose
    scale is NaN keeps its previous scale.
    """

    def __call__(
        self, metrics: Float[Array, " layers"], min_scale: Bound, max_scale: Bound, /
    ) -> Float[Array, " layers"]: ...


def linear(metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5) -> Float[Array, " layers"]:
    """Linear in the metric, from `min_scale` at the smallest to `max_scale` at the largest: the paper's default.

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
    """`√m / mean √m` (Zhou et al., 2023, Appendix). The formula does not use the bounds. NaN where a metric is negative.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.assignments.sqrt(jnp.array([1.0, 9.0])).tolist()
      [0.5, 1.5]
    """
    del min_scale, max_scale
    return _over_mean(metrics, jnp.sqrt(metrics))


def log2(metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5) -> Float[Array, " layers"]:
    """`log m / mean log m` (Zhou et al., 2023, Appendix). The formula does not use the bounds; `m` should exceed 1.

    NaN where a metric is not above zero.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.assignments.log2(jnp.array([2.0, 8.0])).tolist()
      [0.5, 1.5]
    """
    del min_scale, max_scale
    return _over_mean(metrics, jnp.log2(jnp.where(metrics > 0, metrics, jnp.nan)))


def step(metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5) -> Float[Array, " layers"]:
    """Evenly spaced by rank: `s1 + rank (s2 - s1) / (L - 1)`, ranks from 0 (Zhou et al., 2023, Appendix).

    Equal metrics share the mean of their ranks. The released code divides by `L`, so no layer gets the scale `s2`.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.assignments.step(jnp.array([7.0, 2.0, 3.0])).tolist()
      [1.5, 0.5, 1.0]
    """
    known = ~jnp.isnan(metrics)
    ordered = jnp.sort(metrics)  # NaNs sort last, so searchsorted counts only known metrics
    below, not_above = (jnp.searchsorted(ordered, metrics, side=side) for side in ("left", "right"))
    rank = jnp.where(known, (below + not_above - 1).astype(ordered.dtype) / 2, jnp.nan)
    return _one_where_equal(metrics, min_scale + rank * (max_scale - min_scale) / (known.sum() - 1).astype(ordered.dtype))


def sigmoid(
    metrics: Float[Array, " layers"], min_scale: Bound = 0.5, max_scale: Bound = 1.5, *, temperature: float = 1.0
) -> Float[Array, " layers"]:
    """A sigmoid of the metric: scale 1 at the mean metric, close to a bound far from the mean.

    TB_Sigmoid (Liu et al., "Model Balancing Helps Low-data Training and Fine-tuning", EMNLP 2024). With `d = m - mean m`
    and the logistic function `σ`, the scale is `10^(s (σ(τ d) - 1/2))`. `s` is `2 log10(max_scale)` above the mean and
    `-2 log10(min_scale)` below it. So the scale is the bound on that side to the power `tanh(τ |d| / 2)`.

    Args:
      metrics: the metrics of all layers.
      min_scale: the limit of the scale for small metrics. In the formula it is at most 1.
      max_scale: the limit of the scale for large metrics. In the formula it is at least 1.
      temperature: `τ`. A larger value brings scales closer to the bounds at the same distance from the mean.

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
