"""Eigenvalues and singular values of stacks of matrices, by the routine that suits the platform."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tb_optax._compat import lapack_target

EigenSolver: TypeAlias = Callable[[Array], Array]


@jax.jit
def symmetric_eigenvalues(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """The ascending eigenvalues of each symmetric matrix of a stack.

    Those that rounding cannot tell from zero, within `sqrt(n) / 4` units of rounding of the largest one, are zero: the
    noise of a Gram product and its solve, measured on matrices of low rank from 64 to 2,048, stays under half of that. A
    matrix that holds a NaN or an infinity has NaN for all of its eigenvalues, whatever the solver would make of it.

    On CUDA and TPU the stack goes to the batched solver of `jnp.linalg.eigvalsh`. On CPU every matrix is a LAPACK call of
    its own, for values only: jaxlib splits a batched call over the very thread pool that the caller occupies, so several
    in one program can wait for each other forever.
    """
    return _of_finite(_eigenvalues, matrices)


@jax.jit
def squared_singular_values(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """The eigenvalues of `W Wᵀ`, ascending, from the singular values of `W`: slower, and exact far below the largest.

    A Gram product in float32 loses what is less than 1e-6 of its largest eigenvalue; here it is the root that is held
    to that. Zeros, NaN and the order of solving are as in `symmetric_eigenvalues`.
    """
    return _of_finite(lambda finite: _singular_values(finite)[:, ::-1], matrices) ** 2


@jax.jit
def gram(matrices: Float[Array, "stack n m"]) -> Float[Array, "stack n n"]:
    """`W Wᵀ` of each matrix."""
    # Anything less than full precision (TF32, bfloat16) ruins the small half of the spectrum.
    return jnp.einsum("sij,skj->sik", matrices, matrices, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def triangular_factor(matrices: Float[Array, "stack n m"]) -> Float[Array, "stack n n"]:
    """Square matrices with the singular values of these, whose smaller side is the first: `R` of `Wᵀ = Q R`."""
    return matrices if matrices.shape[1] == matrices.shape[2] else _triangular_factors(matrices.mT)


def _of_finite(solve: EigenSolver, matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """Solves the matrices without NaN or infinity, and sets to zero what is rounding."""
    # All of them are if this sum is zero and no NaN: a sum compiles in half of the time of `isfinite(...).all()`. A largest
    # value would not do: on CPU, XLA's loses a NaN.
    finite = jnp.sum(matrices * 0, axis=(-2, -1), keepdims=True) == 0
    values = solve(jnp.where(finite, matrices, jnp.eye(*matrices.shape[1:], dtype=matrices.dtype)))
    floor = math.sqrt(values.shape[-1]) / 4 * jnp.finfo(values.dtype).eps * values[:, -1:]
    values = jnp.where(values > floor, values, 0.0)
    return jnp.where(finite[..., 0], values, jnp.nan)


def for_stacks(on_cpu: EigenSolver, elsewhere: EigenSolver) -> EigenSolver:
    """Solves a stack by what suits the platform that it is lowered for; under `vmap`, as one longer stack."""

    @jax.custom_batching.custom_vmap
    def solve(matrices: Float[Array, "stack rows columns"]) -> Float[Array, "stack ..."]:
        return jax.lax.platform_dependent(matrices, cpu=on_cpu, default=elsewhere)

    @solve.def_vmap
    def _(axis_size: int, in_batched: list[bool], matrices: Float[Array, "batch stack rows columns"]) -> tuple[Array, bool]:
        del in_batched
        solved = solve(matrices.reshape(-1, *matrices.shape[2:]))
        return solved.reshape(axis_size, -1, *solved.shape[1:]), True

    return solve


def unrolled_map(solve: Callable[[Array], Any], matrices: Float[Array, "stack rows columns"]) -> Any:
    """A call for each matrix, so many of them side by side that XLA, which runs what is short in order, uses all cores.

    A loop over blocks of such calls: the time to compile stays the same however long the stack.
    """
    least = max(12, cores())
    unrolled = lambda block: jax.tree.map(lambda *each: jnp.stack(each), *map(solve, block))
    if len(matrices) < 2 * least:
        return unrolled(matrices)
    # Of the lengths that a block may have, the one that leaves the fewest matrices over.
    length = min(range(least, 2 * least), key=lambda length: len(matrices) % length)
    whole = len(matrices) // length * length

    def solve_block(_: None, places: list[Int[Array, ""]]) -> tuple[None, Any]:
        picked = [jax.lax.dynamic_index_in_dim(matrices, place, keepdims=False) for place in places]
        return None, unrolled(picked)

    # The places are numbers to read, not written into the program: so XLA compiles one way to pick a matrix, not `length`.
    places = [jnp.asarray(own) for own in np.arange(whole, dtype=np.int32).reshape(-1, length).T]
    _, solved = jax.lax.scan(solve_block, None, places)
    solved = jax.tree.map(lambda blocks: blocks.reshape(whole, *blocks.shape[2:]), solved)
    if whole == len(matrices):
        return solved
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), solved, unrolled(matrices[whole:]))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_cpu(routine: str, portable: EigenSolver, matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    solve = _values_only(routine, portable, np.dtype(matrices.dtype))
    values, info, *unused = unrolled_map(solve, matrices)
    # XLA lets the calls' unread results share their memory, the matrices that they overwrite above all, which puts the calls
    # in order, on one core: so a failure reads them.
    failed = sum((each[:, :1] for each in unused), jnp.full((1, 1), jnp.nan, values.dtype))
    return jnp.where((info == 0)[:, None], values, failed)


def _triangular_on_cpu(matrices: Float[Array, "stack m n"]) -> Float[Array, "stack n n"]:
    reflections, unused = unrolled_map(functools.partial(jnp.linalg.qr, mode="raw"), matrices)
    triangles = jnp.triu(reflections.mT[:, : matrices.shape[2]])
    return triangles + jnp.where(jnp.isnan(triangles), unused[:, :1, None], 0.0)  # Read for the reason given above.


def _descending_singular_values(matrices: Float[Array, "*stack n n"]) -> Float[Array, "*stack n"]:
    return jnp.linalg.svd(matrices, compute_uv=False)


def _on_accelerator(matrices: Float[Array, "*stack n n"]) -> Float[Array, "*stack n"]:
    # JAX's own choice on a GPU, up to 1,024 rows, is Jacobi's method, which ends 1e-4 from the largest value.
    by_qr = functools.partial(jax.lax.linalg.svd, compute_uv=False, algorithm=jax.lax.linalg.SvdAlgorithm.QR)
    return jax.lax.platform_dependent(matrices, cuda=by_qr, rocm=by_qr, default=_descending_singular_values)


_eigenvalues = for_stacks(functools.partial(_on_cpu, "syevd_ffi", jnp.linalg.eigvalsh), jnp.linalg.eigvalsh)
_singular_values = for_stacks(functools.partial(_on_cpu, "gesdd_ffi", _descending_singular_values), _on_accelerator)
_triangular_factors = for_stacks(_triangular_on_cpu, functools.partial(jnp.linalg.qr, mode="r"))


@functools.cache
def _values_only(routine: str, portable: EigenSolver, dtype: np.dtype) -> Callable[[Float[Array, "n n"]], tuple[Array, ...]]:
    """LAPACK's `syevd` or `gesdd` for one matrix, for values only; the portable function where they are not there.

    The routines are jaxlib's own, which JAX calls in another mode, or with more memory; they are in no public interface,
    hence the fallback. With the values come LAPACK's verdict on them, 0 where they are right, and what else it returns.
    """
    target = lapack_target(routine, dtype)
    if target is None:
        return lambda matrix: (portable(matrix), jnp.zeros((), jnp.int32))

    def values_only(matrix: Float[Array, "n n"]) -> tuple[Array, ...]:
        array = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
        n, info = len(matrix), jax.ShapeDtypeStruct((), jnp.int32)
        vectors = [array(1, 1), array(1, 1)]  # Of a singular value decomposition; not computed.
        results, mode = {
            "syevd_ffi": ((array(n, n), array(n), info), {"uplo": np.uint8(ord("L"))}),
            "gesdd_ffi": ((array(n, n), array(n), *vectors, info), {}),
        }[routine]
        call = jax.ffi.ffi_call(target, results, input_output_aliases={0: 0})
        overwritten, values, *unused, info = call(matrix, mode=np.uint8(ord("N")), **mode)
        return values, info, *(each[0] for each in (overwritten, *unused))

    return values_only
