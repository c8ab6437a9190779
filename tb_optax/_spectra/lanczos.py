"""Approximate spectra of large matrices: stochastic Lanczos quadrature with products by the weight itself."""

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
    """Ascending values that stand for the eigenvalues of `W Wᵀ` of each matrix `W`, whose smaller side is the first.

    From a random vector of signs `z`, `steps` steps of Lanczos give the Gauss quadrature of the measure that gives the
    eigenvalue `λ_i` of eigenvector `v_i` the weight `(v_iᵀ z)² / n`: the nodes `θ_j` are the eigenvalues of a tridiagonal
    matrix, and their weights `τ_j²` the squared first entries of its eigenvectors (Golub and Meurant, "Matrices, Moments
    and Quadrature with Applications", 2010; Ubaru, Chen and Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos
    Quadrature", 2017). In expectation that measure is the spectrum's own, which weighs every eigenvalue `1/n`. The true
    cumulative weight at `θ_j` lies between the sums of `τ²` without and with the `j`-th; the middle of the two is taken,
    and between nodes `log λ` is linear. The value of rank `i` is this function at `(i + 1/2) / n`, its logarithm averaged
    over the probes. (Nodes of all probes in one measure, each repeated by its weight, are many times less accurate
    with few steps: the probes' nodes lie close together, so that they resolve no more than one probe's.)

    `2 steps` products of each matrix with `probes` vectors at once are all that is done with it, and `probes` bases of
    `steps` vectors of length `n` are kept beside it. The largest value is the largest node of all probes, accurate to
    rounding after few steps wherever the largest eigenvalue stands apart. The lower end of the spectrum is not resolved.

    Args:
      matrices: float32 or float64.
      steps: steps of Lanczos, nodes for each probe; `n` where that is less.
      probes: random vectors, the same for every matrix. The error of a mean over the spectrum falls with
        `1 / √(n probes)`, however many the steps.
      seed: of the probes. The same seed gives the same values, whatever JAX's default generator.

    Returns:
      Never negative. Zero where `symmetric_eigenvalues` has zero: within `sqrt(n) / 4` units of rounding of the largest
      value; the share of such eigenvalues is that of their nodes' weight. NaN where the matrix holds a NaN or an infinity.

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
        # Entries of at most 1, so that no square overflows or vanishes that need not.
        size = jnp.abs(matrix).max()
        return size, _tridiagonal(matrix / jnp.where(size > 0, size, 1.0), starts, steps)

    # One matrix after another: each fills a device by itself, and only one basis is in memory.
    size, tridiagonals = jax.lax.map(tridiagonal, matrices)
    finite = jnp.isfinite(size)
    tridiagonals = jnp.where(finite[:, None, None, None], tridiagonals, 0.0)
    solved = _quadratures(tridiagonals.reshape(-1, steps, steps)).reshape(-1, probes, 2, steps)
    values = jax.vmap(functools.partial(_quantiles, count=n))(solved[:, :, 0], solved[:, :, 1])
    return jnp.where(finite[:, None], (jnp.sqrt(values) * size[:, None]) ** 2, jnp.nan)


def _signs(seed: int, shape: tuple[int, ...]) -> Array:
    """Rademacher vectors that depend neither on JAX's default generator nor on its default precision."""
    bits = jax.random.bits(jax.random.key(seed, impl="threefry2x32"), shape, jnp.uint32)
    return 2 * (bits & 1).astype(jnp.int32) - 1


def _tridiagonal(
    matrix: Float[Array, "n m"], starts: Float[Array, "probes n"], steps: int
) -> Float[Array, "probes steps steps"]:
    """Lanczos for `W Wᵀ` from each start: the operator in the orthonormal basis of the Krylov space.

    That space may end early, at a low rank. What is left of the next vector is then rounding. If it lies in the space
    already, which shows where a second orthogonalization takes away what the first left, all that follows is zero;
    otherwise it is as good as any other vector. Either way the entry that ties it to those before is next to nothing, and
    so is the weight of what follows.
    """
    probes, n = starts.shape

    def step(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, vector = carry
        basis = basis.at[:, index].set(vector)
        # Written so that neither product makes XLA transpose the matrix, which on CPU takes ten times as long.
        image = jnp.matmul(vector, matrix, precision=_HIGHEST)
        rest = jnp.matmul(matrix, image.T, precision=_HIGHEST).T
        once = _orthogonal_to(basis, rest)
        twice = _orthogonal_to(basis, once)  # The first leaves what rounding makes of a small difference of large numbers.
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
    """Nodes, ascending, and weights."""
    nodes, vectors = jnp.linalg.eigh(tridiagonal)
    return jnp.stack([nodes, vectors[..., 0, :] ** 2], axis=-2)


# So small that one after another is as fast, and less to compile.
_quadratures = for_stacks(functools.partial(jax.lax.map, _quadrature), _quadrature)


def _quantiles(nodes: Float[Array, "probes k"], weights: Float[Array, "probes k"], count: int) -> Float[Array, " count"]:
    """Values of `count` equal shares of the measure: their logarithm interpolated for each probe, then averaged."""
    largest = nodes.max()
    positive = nodes > math.sqrt(count) / 4 * jnp.finfo(nodes.dtype).eps * largest
    # The logarithm of a probe's zeros is that of its least node above zero: nothing is interpolated towards zero.
    least = jnp.where(positive, nodes, largest).min(axis=1, keepdims=True)
    logs = jnp.log(jnp.where(positive, nodes, least))
    middles = jnp.cumsum(weights, axis=1) - weights / 2
    ranks = (jnp.arange(count, dtype=nodes.dtype) + 0.5) / count
    values = jnp.exp(jax.vmap(functools.partial(jnp.interp, ranks))(middles, logs).mean(axis=0))
    zero = jnp.where(positive, 0.0, weights).sum(axis=1).mean()
    values = jnp.where((ranks < zero) | (largest <= 0), 0.0, values)
    return values.at[-1].set(jnp.maximum(largest, 0.0))
