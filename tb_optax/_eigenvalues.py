"""Eigenvalues and singular values of stacks of matrices, by the routine that suits the platform."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Solver: TypeAlias = Callable[[Array], Array]


@jax.jit
def symmetric_eigenvalues(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """The ascending eigenvalues of each symmetric matrix of a stack.

    Those that rounding cannot tell from zero, within `sqrt(n) / 4` units of rounding of the largest one, are zero: the
    noise of a Gram product and its solve, measured on matrices of low rank from 64 to 2,048, stays under half of that. A
    matrix that holds a NaN or an infinity has NaN for all of its eigenvalues, whatever the solver would make of it.

    On CUDA and TPU the stack goes to the batched solver of `jnp.linalg.eigvalsh`. On CPU the matrices are solved one
    after another, for values only: jaxlib splits a batched LAPACK call over the very thread pool that the caller
    occupies, so several in one program can wait for each other forever.
    """
    return _of_finite(_eigenvalues, matrices)


@jax.jit
def squared_singular_values(matrices: Float[Array, "stack rows columns"]) -> Float[Array, "stack n"]:
    """The eigenvalues of `W Wᵀ`, ascending, from the singular values of `W`: slower, and exact far below the largest.

    A Gram product in float32 loses what is less than 1e-6 of its largest eigenvalue; here it is the root that is held
    to that. Zeros, NaN and the order of solving are as in `symmetric_eigenvalues`.
    """
    return _of_finite(_singular_values, matrices) ** 2


def _of_finite(solve: Solver, matrices: Float[Array, "stack rows columns"]) -> Float[Array, "stack n"]:
    """Solves the matrices without NaN or infinity, and sets to zero what is rounding."""
    finite = jnp.isfinite(matrices).all(axis=(-2, -1), keepdims=True)
    values = solve(jnp.where(finite, matrices, jnp.eye(*matrices.shape[1:], dtype=matrices.dtype)))
    floor = math.sqrt(values.shape[-1]) / 4 * jnp.finfo(values.dtype).eps * values[:, -1:]
    values = jnp.where(values > floor, values, 0.0)
    return jnp.where(finite[..., 0], values, jnp.nan)


def _stack_solver(on_cpu: Solver, elsewhere: Solver) -> Solver:
    """Solves a stack: on CPU one matrix after another, elsewhere all at once; under `vmap`, one longer stack."""

    @jax.custom_batching.custom_vmap
    def solve(matrices: Float[Array, "stack rows columns"]) -> Float[Array, "stack n"]:
        one_by_one = functools.partial(jax.lax.map, on_cpu)
        return jax.lax.platform_dependent(matrices, cpu=one_by_one, default=elsewhere)

    @solve.def_vmap
    def _(axis_size: int, in_batched: list[bool], matrices: Float[Array, "batch stack rows columns"]) -> tuple[Array, bool]:
        del in_batched
        stack = matrices.shape[1]
        values = solve(matrices.reshape(axis_size * stack, *matrices.shape[2:]))
        return values.reshape(axis_size, stack, -1), True

    return solve


def _eigenvalues_on_cpu(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    return _values_only(np.dtype(matrix.dtype))(matrix)


def _ascending_singular_values(matrices: Float[Array, "*stack rows columns"]) -> Float[Array, "*stack n"]:
    return jnp.linalg.svd(matrices, compute_uv=False)[..., ::-1]


_eigenvalues = _stack_solver(_eigenvalues_on_cpu, jnp.linalg.eigvalsh)
_singular_values = _stack_solver(_ascending_singular_values, _ascending_singular_values)


@functools.cache
def _values_only(dtype: np.dtype) -> Solver:
    """LAPACK's `syevd` for one matrix, for values only; `eigvalsh`, which computes vectors too, where it is not there.

    The routine is jaxlib's own, which JAX calls in its other mode; it is in no public interface, hence the fallback.
    """
    try:
        from jaxlib import lapack

        target = lapack.prepare_lapack_call("syevd_ffi", dtype)
    except (ImportError, AttributeError, TypeError, NotImplementedError):
        return jnp.linalg.eigvalsh

    def values_only(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
        n = matrix.shape[-1]
        out_types = (
            jax.ShapeDtypeStruct((n, n), dtype),
            jax.ShapeDtypeStruct((n,), dtype),
            jax.ShapeDtypeStruct((), jnp.int32),
        )
        call = jax.ffi.ffi_call(target, out_types, input_output_aliases={0: 0})
        _, values, info = call(matrix, mode=np.uint8(ord("N")), uplo=np.uint8(ord("L")))
        return jnp.where(info == 0, values, jnp.nan)

    return values_only
