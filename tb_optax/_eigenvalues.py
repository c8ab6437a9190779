"""Eigenvalues of stacks of symmetric matrices, by the routine that suits the platform."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def symmetric_eigenvalues(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """The ascending eigenvalues of each symmetric matrix of a stack.

    Those that rounding cannot tell from zero, within `sqrt(n)` units of rounding of the largest one, are zero: the noise
    of a Gram product and its solve, measured on matrices of low rank, stays under a third of that. A matrix that holds
    a NaN or an infinity has NaN for all of its eigenvalues, whatever the solver would make of it.

    On CUDA and TPU the stack goes to the batched solver of `jnp.linalg.eigvalsh`. On CPU the matrices are solved one
    after another, for values only: jaxlib splits a batched LAPACK call over the very thread pool that the caller
    occupies, so several in one program can wait for each other forever.
    """
    finite = jnp.isfinite(matrices).all(axis=(-2, -1), keepdims=True)
    n = matrices.shape[-1]
    solvable = jnp.where(finite, matrices, jnp.eye(n, dtype=matrices.dtype))
    values = jax.lax.platform_dependent(solvable, cpu=_one_by_one, default=jnp.linalg.eigvalsh)
    floor = math.sqrt(n) * jnp.finfo(values.dtype).eps * values[:, -1:]
    values = jnp.where(values > floor, values, 0.0)
    return jnp.where(finite[..., 0], values, jnp.nan)


def _one_by_one(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    return jax.lax.map(_cpu_solver(np.dtype(matrices.dtype)), matrices)


@functools.cache
def _cpu_solver(dtype: np.dtype) -> Callable[[Array], Array]:
    """LAPACK's `syevd` for one matrix, for values only; `eigvalsh`, which computes vectors too, where it is not there.

    The routine is jaxlib's own, which JAX calls in its other mode; it is in no public interface, hence the fallback.
    """
    try:
        from jaxlib import lapack

        target = lapack.prepare_lapack_call("syevd_ffi", dtype)
    except (ImportError, AttributeError, TypeError, NotImplementedError):
        return jax.custom_batching.sequential_vmap(jnp.linalg.eigvalsh)

    def values_only(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
        n = matrix.shape[-1]
        out_types = (
            jax.ShapeDtypeStruct((n, n), dtype),
            jax.ShapeDtypeStruct((n,), dtype),
            jax.ShapeDtypeStruct((), jnp.int32),
        )
        # Under vmap too, one matrix after another.
        call = jax.ffi.ffi_call(target, out_types, input_output_aliases={0: 0}, vmap_method="sequential")
        _, values, info = call(matrix, mode=np.uint8(ord("N")), uplo=np.uint8(ord("L")))
        return jnp.where(info == 0, values, jnp.nan)

    return values_only
