"""Layer-wise sparsities for pruning, computed from metrics so that their mean is a target."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import core
from jaxtyping import Array, Float

from tb_optax._balance.assignments import linear
from tb_optax._dtypes import at_least_float32, is_float_array
from tb_optax._layers.layer import short_repr


def sparsities(
    metrics: Float[Array, " layers"],
    target: float | Float[Array, ""],
    *,
    sizes: Float[Array, " layers"] | None = None,
    min_ratio: float = 0.7,
    max_ratio: float = 1.3,
) -> Float[Array, " layers"]:
    """The share of each layer's weights to prune: smaller for a heavier tail, as better trained layers have.

    AlphaPruning (Lu et al., "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of
    Large Language Models", NeurIPS 2024): the sparsities are `η linear(m; s1, s2)`, and `η` makes their mean over all
    parameters equal to the target. No sparsity exceeds 1: if the formula gives more for some layers, the others are pruned
    more.

    Args:
      metrics: the metrics of all layers, of shape `(layers,)`, such as `pl_alpha_hill` of their spectra. A layer whose
        metric is NaN or infinite gets the target as its sparsity.
      target: the share of all parameters to prune, from 0 to 1.
      sizes: the number of parameters of each layer; equal by default.
      min_ratio: the paper's `s1`: the sparsity at the smallest metric, before `η`; above 0.
      max_ratio: the paper's `s2`: the sparsity at the largest metric, before `η`; not below `min_ratio`.

    Returns:
      Sparsities from 0 to 1, of shape `(layers,)`, at least float32.

    Raises:
      ValueError: a ratio or a known `target` is out of range, `metrics` has not one axis or is empty, or `sizes` has another
        shape or a negative number.
      TypeError: `metrics` is a dict.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.sparsities(jnp.array([2.0, 3.0, 4.0]), 0.5, min_ratio=0.5, max_ratio=1.5).tolist()
      [0.25, 0.5, 0.75]
    """
    if not 0 < min_ratio <= max_ratio:
        raise ValueError(f"sparsities: min_ratio={min_ratio}, max_ratio={max_ratio}; give 0 < min_ratio <= max_ratio.")
    if isinstance(metrics, Mapping):
        raise TypeError(
            f"sparsities: metrics is a dict with the keys {short_repr(list(metrics))}; give its numbers as one array, one "
            "for each layer."
        )
    metrics = jnp.asarray(metrics)
    metrics = metrics.astype(at_least_float32(metrics.dtype) if is_float_array(metrics) else jnp.float32)
    if metrics.ndim != 1 or metrics.size == 0:
        raise ValueError(f"sparsities: metrics has shape {metrics.shape}; give one number for each layer, at least one.")
    if not isinstance(target, core.Tracer) and not 0 <= float(target) <= 1:
        raise ValueError(f"sparsities: target={target} must be from 0 to 1: the share of the parameters to prune.")
    sizes = jnp.ones_like(metrics) if sizes is None else jnp.asarray(sizes).astype(metrics.dtype)
    if sizes.shape != metrics.shape:
        raise ValueError(f"sparsities: sizes has shape {sizes.shape}; give one for each of the {metrics.size} metrics.")
    if not isinstance(sizes, core.Tracer):
        with jax.ensure_compile_time_eval():  # Inside a trace, JAX would trace these known sizes too.
            are_sizes = bool((sizes >= 0).all())
        if not are_sizes:
            raise ValueError("sparsities: sizes has a negative number; give how many parameters each layer has.")
    ratios = linear(jnp.where(jnp.isfinite(metrics), metrics, jnp.nan), min_ratio, max_ratio)
    known = ~jnp.isnan(ratios)
    weights = jnp.where(known, sizes, 0.0)
    found = jnp.minimum(_factor(jnp.where(known, ratios, 0.0), weights, target) * ratios, 1.0)
    return jnp.where(known, found, target)


def _factor(
    ratios: Float[Array, " layers"], weights: Float[Array, " layers"], target: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The `η` with `Σ w min(η r, 1) = target Σ w`.

    For each `k`, the sum is linear in `η` where the terms of the `k` largest ratios are 1. That line is nowhere below the
    sum, so the `η` at which the line meets the target is too small or exact. The largest of these `η` is exact.
    """
    order = jnp.argsort(-ratios)
    ratios, weights = ratios[order], weights[order]
    before = jnp.cumsum(weights) - weights
    rest = jnp.cumsum((weights * ratios)[::-1])[::-1]
    factors = (target * weights.sum() - before) / jnp.where(rest > 0, rest, 1.0)
    return jnp.where(rest > 0, factors, 0.0).max()
