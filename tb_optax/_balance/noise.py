"""The alpha of noise: what the median fit gives for a matrix of independent random entries, before any training."""

import numpy as np
from jaxtyping import Float

from tb_optax._balance.fits import tail_start
from tb_optax._spectra.noise import noise_spectrum

# Points of the angle in which functions of an eigenvalue are expanded.
_POINTS = 2**13


def noise_alpha(rows: int, columns: int, matrices: int = 1) -> float:
    """The mean of `pl_alpha_hill` over matrices of noise of this shape, by the law of Marchenko and Pastur.

    It is within 1% of simulations from 64 x 64 on (`tests/balance/test_noise_metrics.py`): 2.13 for square matrices, 2.71
    for 1 : 2, 3.46 for 1 : 4 and 4.96 for 1 : 10.

    Args:
      rows: the smaller side of the matrices.
      columns: the larger side.
      matrices: how many matrices share the spectrum.
    """
    return float(alpha_of(noise_spectrum(rows, columns, rows * matrices)))


def alpha_of(eigenvalues: Float[np.ndarray, "*layers n"], tail_fraction: float = 0.5) -> Float[np.ndarray, "*layers"]:
    """Alpha by the fit `median`, in NumPy and float64, so that the alpha of a constant spectrum is a constant too."""
    logs = np.log(eigenvalues.astype(np.float64))
    start = tail_start(logs.shape[-1], tail_fraction)
    return np.asarray(1 + 1 / np.mean(logs[..., start:] - logs[..., start : start + 1], axis=-1))


def noise_alpha_deviation(rows: int, columns: int, matrices: int = 1) -> float:
    """The standard deviation of alpha over matrices of noise of this shape.

    The eigenvalues of a matrix repel each other, so their sums vary much less than those of independent numbers: the
    variance of `Σ f(λ)` is `1/2 Σ_k k a_k²`, where `a_k` are the Chebyshev coefficients of `f` between the edges of the law
    (Johansson, "On fluctuations of eigenvalues of random Hermitian matrices", 1998; real matrices have twice the variance).
    A matrix of `rows` eigenvalues resolves about `rows` coefficients, so the sum ends there. `f` says how one eigenvalue
    changes the mean log in the tail: by its own log, and by moving the median.
    """
    count = rows * matrices
    tail = count - count // 2
    ratio = rows / columns
    angle = (np.arange(_POINTS) + 0.5) * np.pi / _POINTS
    values = 1 + ratio - 2 * np.sqrt(ratio) * np.cos(angle)
    weight = np.sin(angle) ** 2 / values
    cumulative = np.cumsum(weight) / weight.sum()
    median = np.interp(0.5, cumulative, values)
    density = np.interp(median, values, np.gradient(cumulative, values))
    change = np.maximum(np.log(values / median), 0) / tail + (values < median) / (median * density * count)
    orders = np.arange(1, min(rows, _POINTS // 8) + 1)
    coefficients = np.array([2 * np.mean(change * np.cos(order * angle)) for order in orders])
    variance = matrices * np.sum(orders * coefficients**2) / 2
    return float((noise_alpha(rows, columns, matrices) - 1) ** 2 * np.sqrt(variance))
