"""The spectrum of noise: the eigenvalues that a matrix of independent random entries has, in closed form."""

import functools

import numpy as np
from jaxtyping import Float

# Points of the numerical integral. With four times as many, no quantile moves by more than 1e-6 of its value.
_POINTS = 2**14
_BEYOND_EDGE = 0.01


@functools.lru_cache(maxsize=4096)
def noise_spectrum(rows: int, columns: int, count: int) -> Float[np.ndarray, " count"]:
    """Eigenvalues of `W Wᵀ / columns` where the entries of `W` are independent, with mean 0 and variance 1.

    For large matrices, they follow the law of Marchenko and Pastur (1967) with the ratio `c = rows / columns`: between
    `a = (1 - √c)²` and `b = (1 + √c)²`, the density at `x` is `√((b - x)(x - a)) / (2π c x)`, and the mean is 1. The value
    of rank `i` is the quantile of the law at `(i + 1/2) / count`.

    Args:
      rows: the smaller side of the matrices.
      columns: the larger side.
      count: how many eigenvalues there are, `rows` for one matrix; several matrices of one size share the law.

    Returns:
      Ascending, float64.
    """
    ratio = rows / columns
    # With x = 1 + c - 2 √c cos θ, the density times dx/dθ is 2 sin² θ / (π x), which is smooth, also for c = 1.
    angle = np.linspace(0, np.pi, _POINTS + 1)
    middle = (angle[1:] + angle[:-1]) / 2
    density = 2 * np.sin(middle) ** 2 / (np.pi * (1 + ratio - 2 * np.sqrt(ratio) * np.cos(middle)))
    cumulative = np.concatenate([[0], np.cumsum(density)])
    # Interpolates the angle, because near an edge the cumulative weight grows like a power of the angle, not of the value.
    ranks = (np.arange(count) + 0.5) / count
    found = np.interp(ranks, cumulative / cumulative[-1], angle)
    return 1 + ratio - 2 * np.sqrt(ratio) * np.cos(found)


def noise_edge(rows: int, columns: int, matrices: int = 1) -> float:
    """The value that the largest eigenvalue of noise exceeds with probability 1%, in units of the mean eigenvalue.

    The largest eigenvalue of `W Wᵀ`, centred at `(√(rows - 1) + √columns)²` and divided by
    `(√(rows - 1) + √columns) (1 / √(rows - 1) + 1 / √columns)^(1/3)`, follows the law of Tracy and Widom of order 1
    (Johnstone, "On the distribution of the largest eigenvalue in principal components analysis", 2001). Its upper tail is
    `exp(-2/3 s^(3/2)) / (4 √π s^(3/4))`. With several matrices, each exceeds the edge with its share of the 1%.

    Args:
      rows: the smaller side of the matrices.
      columns: the larger side.
      matrices: how many matrices there are.
    """
    deviations = np.linspace(0.5, 12, 2**12)
    tail = np.exp(-2 / 3 * deviations**1.5) / (4 * np.sqrt(np.pi) * deviations**0.75)
    deviation = np.interp(np.log(_BEYOND_EDGE / matrices), np.log(tail[::-1]), deviations[::-1])
    first, second = np.sqrt(max(rows - 1, 1)), np.sqrt(columns)
    return float((first + second) ** 2 + deviation * (first + second) * (1 / first + 1 / second) ** (1 / 3)) / columns


def noise_largest(rows: int, columns: int, matrices: int = 1) -> float:
    """The median of the largest eigenvalue of noise, in units of the mean eigenvalue.

    It is centred and scaled as in `noise_edge`. A shifted gamma distribution replaces the law of Tracy and Widom (Chiani,
    "Distribution of the largest eigenvalue for real Wishart and Gaussian random matrices and a simple approximation for the
    Tracy-Widom distribution", 2014).

    Args:
      rows: the smaller side of the matrices.
      columns: the larger side.
      matrices: how many matrices there are; the largest eigenvalue is that of all of them.
    """
    import scipy.special  # here, because it would make `import tb_optax` 0.3 s longer

    deviation = 0.186054 * scipy.special.gammaincinv(46.446, 0.5 ** (1 / matrices)) - 9.84801
    first, second = np.sqrt(max(rows - 1, 1)), np.sqrt(columns)
    return float((first + second) ** 2 + deviation * (first + second) * (1 / first + 1 / second) ** (1 / 3)) / columns
