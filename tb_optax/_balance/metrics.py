"""Metrics: one number for a layer's spectrum, which decides how its learning rate compares with other layers'."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tb_optax._balance.fits import PowerLaw, check_eigenvalues, goodness_of_fit, median

Fit: TypeAlias = Callable[[Array], PowerLaw]
Metric: TypeAlias = Callable[[Array], Array]


def pl_alpha_hill(eigenvalues: Float[Array, "*layers n"], *, fit: Fit = median) -> Float[Array, "*layers"]:
    """PL_Alpha_Hill: the exponent of a power law fitted to the spectrum's tail (Zhou et al., 2023, Eq. 3).

    The smaller it is, the heavier the tail. Another fit than the paper's default:
    `functools.partial(tb_optax.pl_alpha_hill, fit=tb_optax.goodness_of_fit)`.

    Args:
      eigenvalues: ascending along the last axis.
      fit: `median`, `goodness_of_fit`, `fix_finger`, or any function from spectra to `PowerLaw`.

    Returns:
      The exponents, above 1; NaN where the fit has none.

    Raises:
      ValueError: fewer than 2 eigenvalues.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> round(float(tb_optax.pl_alpha_hill(jnp.array([0.1, 0.2, 1.0, 3.0]))), 3)  # 1 + 2 / ln(3)
      2.82
    """
    return fit(eigenvalues).alpha


def spectral_norm(eigenvalues: Float[Array, "*layers n"]) -> Float[Array, "*layers"]:
    """The largest eigenvalue of `W Wᵀ`, which the released code calls the spectral norm (it is the weight's, squared).

    Args:
      eigenvalues: ascending along the last axis.

    Raises:
      ValueError: fewer than 2 eigenvalues.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> float(tb_optax.spectral_norm(jnp.array([0.5, 2.0])))
      2.0
    """
    check_eigenvalues(eigenvalues)
    return eigenvalues[..., -1]


def alpha_weighted(eigenvalues: Float[Array, "*layers n"], *, fit: Fit = median) -> Float[Array, "*layers"]:
    """AlphaWeighted: `alpha * log10(λ_max)`, the exponent weighted by the spectral norm (Martin et al., 2021).

    Args:
      eigenvalues: ascending along the last axis.
      fit: as in `pl_alpha_hill`.

    Returns:
      Real numbers, negative where `λ_max < 1`; NaN where the fit has none.

    Raises:
      ValueError: fewer than 2 eigenvalues.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> float(tb_optax.alpha_weighted(jnp.array([0.1, 0.2, 0.3, 1.0])))
      0.0
    """
    alpha = fit(eigenvalues).alpha
    return alpha * jnp.log10(eigenvalues[..., -1].astype(alpha.dtype))


_JITTED = type(jax.jit(lambda: None))
_INSENSITIVE = (pl_alpha_hill, spectral_norm, alpha_weighted, median, goodness_of_fit)


def needs_small_eigenvalues(metric: Any) -> bool:
    """Whether a metric may depend on eigenvalues of less than a millionth of the largest.

    Any may, but for those made of parts that were measured not to. `fix_finger` does: its histogram starts at the least.
    """
    if isinstance(metric, functools.partial):
        parts = (metric.func, *metric.args, *metric.keywords.values())
        return any(needs_small_eigenvalues(part) for part in parts)
    if isinstance(metric, _JITTED):
        return needs_small_eigenvalues(getattr(metric, "__wrapped__", None))
    return all(metric is not known for known in _INSENSITIVE)
