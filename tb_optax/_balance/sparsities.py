"""How much of each layer to prune: from metrics to sparsities, with their mean held to a target."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from tb_optax._balance.assignments import linear


def sparsities(
    metrics: Float[Array, " layers"],
    target: float | Float[Array, ""],
    *,
    sizes: Float[Array, " layers"] | None = None,
    min_ratio: float = 0.7,
    max_ratio: float = 1.3,
) -> Float[Array, " layers"]:
    """The share of each layer's weights to prune: less where the spectrum's tail is heavy, and the layer better trained.

    AlphaPruning (Lu et al., "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of
    Large Language Models", NeurIPS 2024): `η linear(m; s1, s2)`, with `η` such that the mean over all parameters is the
    target. No layer is pruned by more than all: where the formula asks for that, the others are pruned by more.

    Args:
      metrics: of all layers, such as `pl_alpha_hill` of their spectra. A layer with NaN is pruned by the target.
      target: the share of all parameters to prune, from 0 to 1.
      sizes: how many parameters each layer has; by default, all as many.
      min_ratio: the paper's `s1`: what the least metric is pruned by, before `η`; above 0.
      max_ratio: the paper's `s2`: what the greatest metric is pruned by, not below `min_ratio`.

    Returns:
      Sparsities from 0 to 1.

    Raises:
      ValueError: the ratios, or a target that is known when it is called, are out of range.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> tb_optax.sparsities(jnp.array([2.0, 3.0, 4.0]), 0.5, min_ratio=0.5, max_ratio=1.5).tolist()
      [0.25, 0.5, 0.75]
    """
    if not 0 < min_ratio <= max_ratio:
        raise ValueError(f"sparsities: min_ratio={min_ratio}, max_ratio={max_ratio}; give 0 < min_ratio <= max_ratio.")
    if isinstance(target, (int, float)) and not 0 <= target <= 1:
        raise ValueError(f"sparsities: target={target} must be from 0 to 1: the share of the parameters to prune.")
    ratios = linear(metrics, min_ratio, max_ratio)
    known = ~jnp.isnan(ratios)
    weights = jnp.where(known, jnp.ones_like(metrics) if sizes is None else jnp.asarray(sizes).astype(metrics.dtype), 0.0)
    found = jnp.minimum(_factor(jnp.where(known, ratios, 0.0), weights, target) * ratios, 1.0)
    return jnp.where(known, found, target)


def _factor(
    ratios: Float[Array, " layers"], weights: Float[Array, " layers"], target: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The `η` with `Σ w min(η r, 1) = target Σ w`.

    Where the `k` largest ratios are at 1, that sum is a line in `η`. Each of these lines is nowhere below the sum, so each
    alone gives an `η` that is too small or right: the largest is right.
    """
    order = jnp.argsort(-ratios)
    ratios, weights = ratios[order], weights[order]
    before = jnp.cumsum(weights) - weights
    rest = jnp.cumsum((weights * ratios)[::-1])[::-1]
    factors = (target * weights.sum() - before) / jnp.where(rest > 0, rest, 1.0)
    return jnp.where(rest > 0, factors, 0.0).max()
