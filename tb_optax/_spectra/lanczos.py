"""Approximate spectra of large matrices: stochastic Lanczos quadrature, which multiplies by the weight itself."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tb_optax._spectra.eigenvalues import for_stacks

_HIGHEST = jax.lax.Precision.HIGHEST


def lanczos_spectrum(
    matrices: Float[Array | np.ndarray, "stack n m"], *, steps: int, probes: int, seed: int
) -> Float[Array, "stack n"]:
    """Approximates the ascending eigenvalues of `W Wᵀ` for each matrix `W`, whose smaller side is the first.

    A probe is a random vector of signs `z`. It defines a measure in which the eigenvalue `λ_i` of eigenvector `v_i` has the
    weight `(v_iᵀ z)² / n`. The expected weight is `1/n`, as in the spectrum itself. `steps` steps of Lanczos
    from `z` give the measure's Gauss quadrature. The nodes `θ_j` are the eigenvalues of a tridiagonal matrix, and the
    weights `τ_j²` are the squared first entries of its eigenvectors (Golub and Meurant, "Matrices, Moments and Quadrature
    with Applications", 2010; Ubaru, Chen and Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", 2017).

    The true cumulative weight at `θ_j` lies between the sums of `τ²` without and with the `j`-th: node `j` stands for these
    quantiles. Within them `log λ` is linear and is `log θ_j` in the middle. Its slope is the smaller of those to the two
    neighbours (the minmod limiter of van Leer, "Towards the ultimate conservative difference scheme V", 1979). So no value
    lies in the gap between a bulk and a few larger eigenvalues. Lines between nodes would put values there, which made alpha
    up to 10% too small. The value of rank `i` is this function at `(i + 1/2) / n`, its logarithm averaged over the probes.
    (One measure of the nodes of all probes, each repeated by its weight, is many times less accurate with few steps: the
    nodes of different probes lie close together, so they resolve no more than the nodes of one probe.)

    The cost is `2 steps` products of each matrix with `probes` vectors at once, and memory for `probes` bases of `steps`
    vectors of length `n`. The largest value is the largest node of all probes. It is accurate to rounding after few steps
    if the largest eigenvalue is well separated. The lower end of the spectrum is not resolved.

    Args:
      matrices: float32 or float64.
      steps: steps of Lanczos, and nodes for each probe; at most `n` are made.
      probes: random vectors, the same for every matrix. The error of a mean over the spectrum falls with
        `1 / √(n probes)`, for any number of steps.
      seed: the seed of the probes. The same seed gives the same values, whatever JAX's default generator is.

    Returns:
      Values that are never negative. They are zero up to `max(16, sqrt(n) / 4)` units of rounding of the largest value
      (for matrices of rank 1 to 100, nodes that should be zero lay at up to 4.5 units). The share of
      zeros is the total weight of the nodes in that range. NaN if the matrix holds a NaN or an infinity.

    Raises:
      ValueError: fewer than 1 step or probe, or a first side longer than the second.
    """
    n, m = matrices.shape[1:]
    if steps < 1 or probes < 1:
        raise ValueError(f"steps={steps}, probes={probes}: both must be at least 1.")
    if n > m:
        raise ValueError(
            f"matrices of shape {matrices.shape}: the smaller side must be the first of a matrix; transpose them."
        )
    signs = _signs(seed, (probes, n)).astype(matrices.dtype)
    return _spectrum(matrices, signs, min(steps, n))


@functools.partial(jax.jit, static_argnames="steps")
def _spectrum(matrices: Float[Array, "stack n m"], starts: Float[Array, "probes n"], steps: int) -> Float[Array, "stack n"]:
    probes, n = starts.shape

    def tridiagonal(matrix: Float[Array, "n m"]) -> tuple[Array, Array]:
        # Entries of at most 1 avoid needless overflow and underflow of squares.
        size = jnp.abs(matrix).max()
        return size, _tridiagonal(matrix / jnp.where(size > 0, size, 1.0), starts, steps)

    # One matrix after another: each fills a device by itself, and only one matrix's bases are in memory.
    size, tridiagonals = jax.lax.map(tridiagonal, matrices)
    finite = jnp.isfinite(size)
    tridiagonals = jnp.where(finite[:, None, None, None], tridiagonals, 0.0)
    solved = _quadratures(tridiagonals.reshape(-1, steps, steps)).reshape(-1, probes, 2, steps)
    values = jax.vmap(functools.partial(_quantiles, count=n))(solved[:, :, 0], solved[:, :, 1])
    return jnp.where(finite[:, None], (jnp.sqrt(values) * size[:, None]) ** 2, jnp.nan)


def _signs(seed: int, shape: tuple[int, ...]) -> Array:
    """Rademacher vectors that do not depend on JAX's default generator or default precision."""
    bits = jax.random.bits(jax.random.key(seed, impl="threefry2x32"), shape, jnp.uint32)
    return 2 * (bits & 1).astype(jnp.int32) - 1


def _tridiagonal(
    matrix: Float[Array, "n m"], starts: Float[Array, "probes n"], steps: int
) -> Float[Array, "probes steps steps"]:
    """Lanczos for `W Wᵀ` from each start: the operator in the orthonormal basis of the Krylov space.

    For a matrix of low rank, the Krylov space may end before `steps`. The remainder of the next vector is then rounding
    error. If a second orthogonalization removes at least half of it, it lies in the space already, and all later entries are
    zero. Otherwise it serves as well as any other vector. In both cases the entry that couples it to the earlier vectors is
    close to zero, and so are the weights of the later nodes.
    """
    probes, n = starts.shape

    def step(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, vector = carry
        basis = basis.at[:, index].set(vector)
        # Written so that XLA transposes the matrix in neither product: with a transpose, CPU takes ten times as long.
        image = jnp.matmul(vector, matrix, precision=_HIGHEST)
        rest = jnp.matmul(matrix, image.T, precision=_HIGHEST).T
        once = _orthogonal_to(basis, rest)
        twice = _orthogonal_to(basis, once)  # The first pass leaves errors of cancellation.
        norm = jnp.linalg.norm(twice, axis=1)
        ended = norm <= jnp.linalg.norm(once, axis=1) / 2
        norm = jnp.where(ended, 0.0, norm)
        vector = jnp.where(ended[:, None], 0.0, twice / jnp.where(ended, 1.0, norm)[:, None])
        return (basis, vector), ((image**2).sum(axis=1), norm)

    first = (jnp.zeros((probes, steps, n), matrix.dtype), starts / math.sqrt(n))
    _, (diagonal, beside) = jax.lax.scan(step, first, jnp.arange(steps))
    as_matrix = lambda diagonal, beside: jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    return jax.vmap(as_matrix)(diagonal.T, beside[:-1].T)


def _orthogonal_to(basis: Float[Array, "probes k n"], vectors: Float[Array, "probes n"]) -> Float[Array, "probes n"]:
    overlaps = jnp.einsum("pkn,pn->pk", basis, vectors, precision=_HIGHEST)
    return vectors - jnp.einsum("pk,pkn->pn", overlaps, basis, precision=_HIGHEST)


def _quadrature(tridiagonal: Float[Array, "*stack k k"]) -> Float[Array, "*stack 2 k"]:
    """Ascending nodes, and their weights."""
    nodes, vectors = jnp.linalg.eigh(tridiagonal)
    return jnp.stack([nodes, vectors[..., 0, :] ** 2], axis=-2)


# The matrices are small: one after another is as fast as a batch, and compiles faster.
_quadratures = for_stacks(functools.partial(jax.lax.map, _quadrature), _quadrature)


def _quantiles(nodes: Float[Array, "probes k"], weights: Float[Array, "probes k"], count: int) -> Float[Array, " count"]:
    """`count` equally spaced quantiles of the measure: their logarithms are computed for each probe, then averaged."""
    largest = nodes.max()
    positive = nodes > max(16, math.sqrt(count) / 4) * jnp.finfo(nodes.dtype).eps * largest
    # A probe's zeros get the logarithm of its smallest node above zero, so nothing is interpolated towards zero.
    least = jnp.where(positive, nodes, largest).min(axis=1, keepdims=True)
    logs = jnp.log(jnp.where(positive, nodes, least))
    ranks = (jnp.arange(count, dtype=nodes.dtype) + 0.5) / count
    values = jnp.exp(jax.vmap(functools.partial(_quantile_function, ranks))(logs, weights).mean(axis=0))
    zero = jnp.where(positive, 0.0, weights).sum(axis=1).mean()
    values = jnp.where((ranks < zero) | (largest <= 0), 0.0, values)
    return values.at[-1].set(jnp.maximum(largest, 0.0))


def _quantile_function(
    ranks: Float[Array, " n"], values: Float[Array, " k"], weights: Float[Array, " k"]
) -> Float[Array, " n"]:
    """The quantile function of a measure with these nodes: linear over the weight of each node, and never across a gap."""
    ends = jnp.cumsum(weights)
    middles = ends - weights / 2
    apart = jnp.diff(middles)
    # A node without a weight has no quantiles.
    slopes = jnp.where(apart > 0, jnp.diff(values) / jnp.where(apart > 0, apart, 1.0), jnp.inf)
    slope = jnp.minimum(jnp.append(slopes, 0.0), jnp.append(0.0, slopes))
    node = jnp.minimum(jnp.searchsorted(ends, ranks), len(values) - 1)
    return values[node] + slope[node] * (ranks - middles[node])
