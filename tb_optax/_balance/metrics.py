"""Metrics: one number for each layer's spectrum, from which assignments compute the layer's learning-rate scale."""

import functools
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tb_optax._balance.attributes import any_part, declare, innermost, keyword
from tb_optax._balance.fits import Fit, as_spectra, median
from tb_optax._balance.noise import alpha_of


@runtime_checkable
class Metric(Protocol):
    """A function from spectra to one number for each: `pl_alpha_hill`, another of `tb_optax.metrics`, or your own.

    JAX traces it, once for all spectra of one length. Its argument is an array of ascending spectra of shape `(*layers, n)`;
    it returns an array of shape `(*layers,)`. A layer whose number is NaN keeps its scale.

    A metric may set attributes to declare what it needs:

    - `gram = True`: it tolerates spectra of Gram products, in which eigenvalues below a millionth of the largest are
      inexact or zero. Without it, the spectra come from singular values, at twice the cost.
    - `noise = True`: it is called as `metric(eigenvalues, noise)`. The ascending `noise` of shape `(n,)` is the spectrum of
      a matrix of the layer's shape whose entries are independent, scaled to the mean 1 (the law of Marchenko and Pastur).
      Each call has the layers of one shape.
    - `spectrum = False`: it depends on shapes only. It is called as `metric(noise)` with 1,024 quantiles of that law, which
      depend on the aspect ratio alone, and returns one number. No eigenvalue is computed.

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

    A smaller exponent is a heavier tail. To use another fit than the paper's default, give
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


def relative_to_noise(metric: Metric = pl_alpha_hill) -> Metric:
    """Divides a metric of a layer's spectrum by its value for noise of the layer's shape: 1 if nothing was learned.

    Alpha depends on the shape of a matrix: noise has 2.13 if it is square, 2.71 at 1 : 2, 3.46 at 1 : 4 and 4.96 at 1 : 10.
    So `linear` scales of alpha follow the shapes. Relative to noise, layers of all shapes start at 1. The spectrum of noise
    is the law of Marchenko and Pastur, with the mean of the layer's eigenvalues. It follows from the shape in closed form,
    so no further eigenvalue is computed.

    Use it with `assignments.sqrt` or `assignments.sigmoid`, where nearly equal metrics give nearly equal scales. `linear`
    and `step` would stretch chance differences to the whole range.

    Args:
      metric: `pl_alpha_hill` with the fit `median`, or `spectral_norm`. From 64 rows on, the closed form is within 1% of
        simulated alphas and within 6% of simulated spectral norms, pooled convolutions and windows included.

    Returns:
      A metric for `tempbalance` and `alphadecay`.

    Raises:
      ValueError: any other metric. With `goodness_of_fit`, `fix_finger` and `alpha_weighted`, the closed form is at least
        16% off, or near zero. A metric of your own can take the spectrum of noise itself (see `Metric`).

    Example:
      >>> import jax, tb_optax
      >>> keys = jax.random.split(jax.random.key(0), 6)
      >>> shapes = [(128, 128), (128, 512)] * 3  # untrained, as in a GPT
      >>> params = {f"dense{i}": {"kernel": jax.random.normal(k, s)} for i, (k, s) in enumerate(zip(keys, shapes))}
      >>> metric = tb_optax.metrics.relative_to_noise(tb_optax.metrics.pl_alpha_hill)
      >>> tx = tb_optax.tempbalance(100, metric=metric, assign=tb_optax.assignments.sqrt)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> [round(float(scale), 2) for scale in state.scale.values()]
      [1.01, 1.0, 0.99, 1.0, 1.0, 1.0]
    """
    known = (pl_alpha_hill, spectral_norm, median)
    if not callable(metric) or any_part(metric, lambda part: part not in known) or innermost(metric) is median:
        raise ValueError(
            f"relative_to_noise: metric={metric!r} is not known for noise; give pl_alpha_hill with the fit median, or "
            "spectral_norm. A metric of your own can take the spectrum of noise itself if it sets noise = True (see "
            "tb_optax.Metric)."
        )
    return functools.partial(_relative, metric=metric)


@declare(gram=True, noise=True, noise_by_row=True)
def _relative(
    eigenvalues: Float[Array, "*layers n"], noise: Float[np.ndarray, "*layers n"], *, metric: Metric
) -> Float[Array, "*layers"]:
    if innermost(metric) is spectral_norm:
        return eigenvalues[..., -1] / (noise[..., -1] * eigenvalues.mean(axis=-1))
    # NumPy makes these constants of the program. One fit for all spectra of a length compiles once.
    tail_fraction = keyword(keyword(metric, "fit", median), "tail_fraction", 0.5)
    reference = alpha_of(np.asarray(noise), tail_fraction)
    return metric(eigenvalues) / reference.astype(eigenvalues.dtype)


def is_relative(metric: Any) -> bool:
    """Whether `relative_to_noise` made this metric."""
    return innermost(metric) is _relative


@declare(gram=True, spectrum=False)
def noise_of_shape(noise: Float[Array, " n"]) -> Float[Array, ""]:
    """The alpha of noise of the layer's shape: gives scales by shape alone, without any spectrum.

    It is the control for the question whether the spectrum matters, or only the shapes. The scales are constant, so
    `tempbalance(1, metric=noise_of_shape)` computes no eigenvalue and costs only the multiplication of the updates.

    Args:
      noise: the spectrum of noise of a layer's aspect ratio, ascending, of shape `(n,)`.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> params = {f"dense{i}": {"kernel": jnp.ones((64, 64 * (1 + i)))} for i in range(5)}
      >>> tx = tb_optax.tempbalance(100, metric=tb_optax.metrics.noise_of_shape)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> [round(float(metric), 2) for metric in state.metric.values()]
      [2.12, 2.71, 3.12, 3.46, 3.75]
    """
    return pl_alpha_hill(noise)
