"""The largest eigenvalues of a network's output covariance and of its loss's Hessian, and how they decay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, eigsh


def output_covariance(outputs: Float[Array, "n width"], count: int) -> Float[np.ndarray, " count"]:
    """The `count` largest eigenvalues of `1/n Σ f(x) f(x)ᵀ`, largest first."""
    singular = np.asarray(np.linalg.svd(np.asarray(outputs, np.float64), compute_uv=False))
    return singular[:count] ** 2 / len(outputs)


def hessian(loss: Callable[[Any], Float[Array, ""]], params: Any, count: int) -> Float[np.ndarray, " count"]:
    """The `count` largest eigenvalues of the Hessian of `loss` at `params`, largest first, to 4 digits.

    By SciPy's Lanczos iteration, from products of the Hessian with a vector: the derivative of the gradient along it. No
    matrix is made.

    Args:
      loss: of parameters, twice differentiable.
      params: a pytree of floats.
      count: less than the number of parameters.
    """
    point, restore = ravel_pytree(params)

    @jax.jit
    def product(point: Array, vector: Array) -> Array:
        gradient = jax.grad(lambda point: loss(restore(point)))
        return jax.jvp(gradient, (point,), (vector,))[1]

    along = lambda vector: np.asarray(product(point, jnp.asarray(vector.reshape(-1), point.dtype)), np.float64)
    operator = LinearOperator((point.size,) * 2, matvec=along, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).normal(size=point.size)
    found = eigsh(operator, count, which="LA", v0=start, tol=1e-4, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return np.asarray(found)[::-1]


def decay_exponent(eigenvalues: Float[np.ndarray, " k"], first: int, last: int) -> float:
    """`s` of `λ_k ~ k^-s`: least squares in logarithms over the ranks `first` to `last`, counted from 1."""
    ranks = np.arange(first, last + 1)
    return -float(np.polyfit(np.log(ranks), np.log(eigenvalues[first - 1 : last]), 1)[0])
