"""Metrics: one number for a layer's spectrum, which decides how its learning rate compares with other layers'."""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from tb_optax._balance.attributes import declare
from tb_optax._balance.fits import Fit, as_spectra, median


@runtime_checkable
class Metric(Protocol):
    """A function from spectra to one number for each, such as `pl_alpha_hill`; your own may take its place.

    It is called in a trace with ascending spectra of shape `(*layers, n)`, one call for all spectra of a length, and returns
    an array of shape `(*layers,)`. NaN marks a layer as unusable: it keeps its scale.

    A metric may set attributes to declare what it needs:

    - `gram = True`: it tolerates spectra of Gram products, in which eigenvalues below a millionth of the largest are
      inexact or zero. They cost half as much as singular values, which are computed otherwise.
    - `noise = True`: it is called as `metric(eigenvalues, noise)`. The ascending `noise` of shape `(n,)` is the spectrum of
      a matrix of the layer's shape whose entries are independent, scaled to the mean 1 (the law of Marchenko and Pastur).
      One call is for layers of one shape.
    - `spectrum = False`: it depends on shapes only. It is called as `metric(noise)` and returns one number. No eigenvalue is
      computed.

    `functools.partial` of a metric tolerates Gram products if the metric and every function among its arguments do;
    `jax.jit` of a metric declares what the metric does. A lambda around a metric declares nothing, so singular values are
    computed.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> def condition(eigenvalues):
      ...     return eigenvalues[..., -1] / eigenvalues[..., eigenvalues.shape[-1] // 2]
      >>> condition.gram = True
      >>> tx = tb_optax.tempbalance(100, metric=condition)
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Array, "*layers"]: ...


@declare(gram=True)
def pl_alpha_hill(eigenvalues: Float[Array, "*layers n"], *, fit: Fit = median) -> Float[Array, "*layers"]:
    """PL_Alpha_Hill: the exponent of a power law fitted to the spectrum's tail (Zhou et al., 2023, Eq. 3).

    The smaller it is, the heavier the tail. Another fit than the paper's default:
    `functools.partial(tb_optax.metrics.pl_alpha_hill, fit=tb_optax.fits.goodness_of_fit)`.

    Args:
      eigenvalues: ascending along the last axis.
      fit: `median`, `goodness_of_fit`, `fix_finger`, or any function from spectra to `PowerLaw`.

    Returns:
      The exponents, above 1; NaN where the fit has none.

    Raises:
      ValueError: fewer than 2 eigenvalues.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> round(float(tb_optax.metrics.pl_alpha_hill(jnp.array([0.1, 0.2, 1.0, 3.0]))), 3)  # 1 + 2 / ln(3)
      2.82
    """
    return fit(eigenvalues).alpha


@declare(gram=True)
def spectral_norm(eigenvalues: Float[Array, "*layers n"]) -> Float[Array, "*layers"]:
    """The largest eigenvalue of `W Wᵀ`: the square of the weight's spectral norm. The name is the paper's.

    Args:
      eigenvalues: ascending along the last axis.

    Raises:
      ValueError: fewer than 2 eigenvalues.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> float(tb_optax.metrics.spectral_norm(jnp.array([0.5, 2.0])))
      2.0
    """
    return as_spectra(eigenvalues)[..., -1]


@declare(gram=True)
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
      >>> float(tb_optax.metrics.alpha_weighted(jnp.array([0.1, 0.2, 0.3, 1.0])))
      0.0
    """
    eigenvalues = as_spectra(eigenvalues)
    alpha = fit(eigenvalues).alpha
    return alpha * jnp.log10(eigenvalues[..., -1].astype(alpha.dtype))
