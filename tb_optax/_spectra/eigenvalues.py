"""Eigenvalues and singular values of stacks of matrices, by the fastest safe routine of each platform."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tb_optax._compat import lapack_target

EigenSolver: TypeAlias = Callable[[Array], Array]
Map: TypeAlias = Callable[[Callable[[Array], Any], Array], Any]


@jax.jit
def symmetric_eigenvalues(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """The ascending eigenvalues of each symmetric matrix of a stack.

    Eigenvalues below `max(4, sqrt(n) / 4)` units of rounding of the largest one are returned as zero, because rounding hides
    them. (The noise of a Gram product and its solve, measured on 400 matrices of low rank of each size from 2 to 32 and 20
    of each from 64 to 256, is at most 2.5 units; that of singular values at most 3.5.) Subnormal eigenvalues are zero too.
    All eigenvalues of a matrix with a NaN or an infinity are NaN, whatever the solver would return.

    On CUDA and TPU, the stack goes to the batched solver of `jnp.linalg.eigvalsh`. On CPU, each matrix is a LAPACK call of
    its own, for values only: jaxlib divides a batched call over the thread pool that its caller occupies, so several
    batched calls in one program can wait for each other forever.
    """
    finite, safe = _finite_or_identity(matrices)
    return _without_rounding(_eigenvalues(safe), finite)


@jax.jit
def squared_singular_values(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """The ascending eigenvalues of `W Wᵀ`, from the singular values of `W`: slower, and exact far below the largest.

    In float32, a Gram product loses eigenvalues below 1e-6 of the largest; this function loses singular values below that
    limit. Zeros, NaN and the way of solving are as in `symmetric_eigenvalues`.
    """
    finite, safe = _finite_or_identity(matrices)
    return _squared(_without_rounding(_singular_values(safe)[:, ::-1], finite))


@jax.jit
def squared_singular_values_in_turn(matrices: Float[Array, "stack n n"]) -> Float[Array, "stack n"]:
    """`squared_singular_values` of finite matrices, on CPU one after another: faster to compile, for a rare fallback."""
    return _squared(_zero_within_rounding(_singular_values_in_turn(matrices)[:, ::-1]))


@jax.jit
def gram(matrices: Float[Array, "stack n m"]) -> Float[Array, "stack n n"]:
    """`W Wᵀ` of each matrix."""
    # Anything less than full precision (TF32, bfloat16) ruins the small half of the spectrum.
    return jnp.einsum("sij,skj->sik", matrices, matrices, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def triangular_factor(matrices: Float[Array, "stack n m"]) -> Float[Array, "stack n n"]:
    """Square matrices with the same singular values as the given ones: `R` of `Wᵀ = Q R`. The smaller side comes first."""
    return matrices if matrices.shape[1] == matrices.shape[2] else _triangular_factors(matrices.mT)


@jax.jit
def triangular_factor_in_turn(matrices: Float[Array, "stack n m"]) -> Float[Array, "stack n n"]:
    """`triangular_factor` with one matrix after another on CPU."""
    return matrices if matrices.shape[1] == matrices.shape[2] else _triangular_factors_in_turn(matrices.mT)


def _finite_or_identity(
    matrices: Float[Array, "stack n n"],
) -> tuple[Bool[Array, "stack 1 1"], Float[Array, "stack n n"]]:
    """Which matrices are finite, and the matrices with the identity in place of the others."""
    # The sum of `entry * 0` is zero unless an entry is a NaN or an infinity. It compiles in half the time of
    # `isfinite(...).all()`. A maximum would be wrong: on CPU, XLA's maximum loses a NaN.
    finite = jnp.sum(matrices * 0, axis=(-2, -1), keepdims=True) == 0
    return finite, jnp.where(finite, matrices, jnp.eye(*matrices.shape[1:], dtype=matrices.dtype))


def _without_rounding(values: Float[Array, "stack n"], finite: Bool[Array, "stack 1 1"]) -> Float[Array, "stack n"]:
    """Ascending values, with zero below the noise of rounding, and NaN for matrices that are not finite."""
    return jnp.where(finite[..., 0], _zero_within_rounding(values), jnp.nan)


def _zero_within_rounding(values: Float[Array, "stack n"]) -> Float[Array, "stack n"]:
    floor = max(4, math.sqrt(values.shape[-1]) / 4) * jnp.finfo(values.dtype).eps * values[:, -1:]
    return jnp.where(values > floor, _zero_below_normal(values), 0.0)


def _squared(values: Float[Array, "stack n"]) -> Float[Array, "stack n"]:
    return _zero_below_normal(values**2)


def _zero_below_normal(values: Float[Array, "stack n"]) -> Float[Array, "stack n"]:
    """Subnormal numbers become zero: they have lost digits, and some platforms do not have them."""
    return jnp.where(values < jnp.finfo(values.dtype).tiny, 0.0, values)


def for_stacks(on_cpu: EigenSolver, elsewhere: EigenSolver) -> EigenSolver:
    """Solves a stack by the function of the platform that it is lowered for; under `vmap`, as one longer stack."""

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
    """Calls a function for each matrix, with at least 12 calls next to each other in the program, and as many as cores.

    XLA's CPU runtime runs short sequences of calls one after another, and longer ones on all cores. A loop over blocks of
    calls keeps the compile time the same for every length of the stack.
    """
    least = max(12, cores())
    if len(matrices) < 2 * least:
        return _stacked([solve(matrix) for matrix in matrices])
    # Of all allowed block lengths, the one that leaves the fewest matrices over.
    length = min(range(least, 2 * least), key=lambda length: len(matrices) % length)
    in_blocks = len(matrices) // length * length

    def solve_block(_: None, indices: list[Int[Array, ""]]) -> tuple[None, Any]:
        picked = [jax.lax.dynamic_index_in_dim(matrices, index, keepdims=False) for index in indices]
        return None, _stacked([solve(matrix) for matrix in picked])

    # As the indices are data, not constants, XLA compiles one kernel that picks a matrix instead of `length` kernels.
    indices = [jnp.asarray(each) for each in np.arange(in_blocks, dtype=np.int32).reshape(-1, length).T]
    _, solved = jax.lax.scan(solve_block, None, indices)
    solved = jax.tree.map(lambda blocks: blocks.reshape(in_blocks, *blocks.shape[2:]), solved)
    if in_blocks == len(matrices):
        return solved
    rest = _stacked([solve(matrix) for matrix in matrices[in_blocks:]])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), solved, rest)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_cpu(
    routine: str, portable: EigenSolver, map_over: Map, matrices: Float[Array, "stack n n"]
) -> Float[Array, "stack n"]:
    solve = _values_only(routine, portable, np.dtype(matrices.dtype))
    values, info, *unused = map_over(solve, matrices)
    # XLA gives outputs that nobody reads, above all the overwritten matrices, the same memory, and so runs the calls one
    # after another, on one core. Reading them (only if a call failed) prevents that: a refresh of ResNet-34 took 0.64 of the
    # time.
    failed = sum((each[:, :1] for each in unused), jnp.full((1, 1), jnp.nan, values.dtype))
    return jnp.where((info == 0)[:, None], values, failed)


def _triangular_on_cpu(map_over: Map, matrices: Float[Array, "stack m n"]) -> Float[Array, "stack n n"]:
    reflections, unused = map_over(functools.partial(jnp.linalg.qr, mode="raw"), matrices)
    triangles = jnp.triu(reflections.mT[:, : matrices.shape[2]])
    return triangles + jnp.where(jnp.isnan(triangles), unused[:, :1, None], 0.0)  # Read as in `_on_cpu`.


def _descending_singular_values(matrices: Float[Array, "*stack n n"]) -> Float[Array, "*stack n"]:
    return jnp.linalg.svd(matrices, compute_uv=False)


def _on_accelerator(matrices: Float[Array, "*stack n n"]) -> Float[Array, "*stack n"]:
    # JAX's default on a GPU, up to 1,024 rows, is Jacobi's method: its largest value was 1.6e-4 off, that of QR 1.7e-7.
    by_qr = functools.partial(jax.lax.linalg.svd, compute_uv=False, algorithm=jax.lax.linalg.SvdAlgorithm.QR)
    return jax.lax.platform_dependent(matrices, cuda=by_qr, rocm=by_qr, default=_descending_singular_values)


_eigenvalues = for_stacks(functools.partial(_on_cpu, "syevd_ffi", jnp.linalg.eigvalsh, unrolled_map), jnp.linalg.eigvalsh)
_singular_values, _singular_values_in_turn = (
    for_stacks(functools.partial(_on_cpu, "gesdd_ffi", _descending_singular_values, map_over), _on_accelerator)
    for map_over in (unrolled_map, jax.lax.map)
)
_triangular_factors, _triangular_factors_in_turn = (
    for_stacks(functools.partial(_triangular_on_cpu, map_over), functools.partial(jnp.linalg.qr, mode="r"))
    for map_over in (unrolled_map, jax.lax.map)
)


@functools.cache
def _values_only(routine: str, portable: EigenSolver, dtype: np.dtype) -> Callable[[Float[Array, "n n"]], tuple[Array, ...]]:
    """LAPACK's `syevd` or `gesdd` for one matrix, for values only; the portable function where jaxlib does not have them.

    JAX itself calls these routines of jaxlib for vectors too, or with more memory. They are not public, so there is a
    fallback. The results are the values, LAPACK's `info` (0 for success), and the other arrays that the routine returns.
    """
    target = lapack_target(routine, dtype)
    if target is None:
        return lambda matrix: (portable(matrix), jnp.zeros((), jnp.int32))

    def values_only(matrix: Float[Array, "n n"]) -> tuple[Array, ...]:
        n = len(matrix)
        # Overwritten matrix and values; `gesdd` also returns singular vectors, which are not computed.
        shapes = [(n, n), (n,)] + [(1, 1)] * (2 if routine == "gesdd_ffi" else 0)
        results = [*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes), jax.ShapeDtypeStruct((), jnp.int32)]
        mode = {"uplo": np.uint8(ord("L"))} if routine == "syevd_ffi" else {}
        call = jax.ffi.ffi_call(target, results, input_output_aliases={0: 0})
        overwritten, values, *unused, info = call(matrix, mode=np.uint8(ord("N")), **mode)
        return values, info, *(each[0] for each in (overwritten, *unused))

    return values_only
