"""Computes a plan: builds the matrices of each chunk from the kernels, divides them over the devices, and solves them."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from tb_optax._batching import any_over_batch
from tb_optax._layers.layer import Path
from tb_optax._spectra.blas import limit_blas_threads
from tb_optax._spectra.eigenvalues import (
    gram,
    squared_singular_values,
    squared_singular_values_in_turn,
    symmetric_eigenvalues,
    triangular_factor,
    triangular_factor_in_turn,
)
from tb_optax._spectra.lanczos import lanczos_spectrum
from tb_optax._spectra.options import Lanczos
from tb_optax._spectra.plan import Batch, Chunk, LayerMatrices, Route, SpectrumPlan
from tb_optax._spectra.sharding import (
    over_devices,
    partitioned_by_compiler,
    replicated,
    rows_over_mesh,
    shard_stack,
    unshard_stack,
)
from tb_optax._spectra.windows import extract_windows

# The released code scales the weights of convolutions by sqrt(0.5).
_POOLED_SCALE = 0.5
# If the median eigenvalue is below this share of the largest, rounding of a float32 Gram product moves alpha by up to 1e-3
# and more: measured on power laws, geometric spectra and random matrices with a spike, of 64 to 512 rows
# (`tests/spectra/test_tails.py`).
_RESOLVED = 1e-5
# A Gram product adds squares, and float32 loses those below 1e-38: its eigenvalues have four digits from this size on.
_SQUARED = 1e-30


class SpectrumStack(NamedTuple):
    """The spectra of several layers with equally many slices and eigenvalues: one row for each slice of each layer."""

    names: tuple[str, ...]
    spectra: Float[Array, "rows eigenvalues"]

    def by_layer(self) -> "list[SpectrumStack]":
        parts = jnp.split(self.spectra, len(self.names))
        return [SpectrumStack((name,), part) for name, part in zip(self.names, parts, strict=True)]


# For each route: how a device prepares its matrices, and how it solves them.
_ROUTES: dict[Route, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "gram": (gram, symmetric_eigenvalues),
    "svd": (triangular_factor, squared_singular_values),
    "svd in turn": (triangular_factor_in_turn, squared_singular_values_in_turn),
    "lanczos": (lambda matrices: matrices, lanczos_spectrum),
}


def compute_spectra(plan: SpectrumPlan, leaves: Mapping[Path, Any]) -> list[SpectrumStack]:
    """The spectra of all layers of a plan, in as few arrays as possible."""
    exact = plan.solver.below if isinstance(plan.solver, Lanczos) else plan.solver
    if exact.limit_blas_threads:
        limit_blas_threads()

    def solve(kernels: Mapping[Path, Array]) -> list[Array]:
        solve_by = functools.partial(_solve_batch, plan=plan, kernels=kernels)
        values = _with_fallback(plan.batches, [solve_by(batch, batch.route) for batch in plan.batches], solve_by)
        rows = []
        for batch, own in zip(plan.batches, values, strict=True):
            ends = np.cumsum([sum(layer.count for layer in pool) for pool in batch.pools])[:-1]
            rows += [_pool(pool[0], part) for pool, part in zip(batch.pools, jnp.split(own, ends), strict=True)]
        return rows

    paths = [layer.kernel for batch in plan.batches for layer in batch.layers]
    rows = partitioned_by_compiler(solve)({path: jnp.asarray(leaves[path]) for path in paths})
    pools = [pool for batch in plan.batches for pool in batch.pools]
    return [SpectrumStack(tuple(layer.name for layer in pool), own) for pool, own in zip(pools, rows, strict=True)]


def _with_fallback(
    batches: Sequence[Batch], values: list[Float[Array, "_ _"]], solve_by: Callable[[Batch, Route], Float[Array, "_ _"]]
) -> list[Float[Array, "_ _"]]:
    """The eigenvalues of each batch, from its fallback for matrices whose median eigenvalue a Gram product loses.

    A batch is solved again only if it has such a matrix. One `cond` around the `cond`s of all batches lets XLA solve batches
    at the same time if there is none: a refresh of ResNet-34 took 0.97 instead of 1.08 times as long as without a fallback.
    """
    if all(batch.fallback is None for batch in batches):
        return values

    def is_lost(own: Float[Array, "stack n"]) -> Bool[Array, " stack"]:
        middle, largest = own[:, own.shape[1] // 2], own[:, -1]
        return (largest > 0) & ((middle < _RESOLVED * largest) | (middle < _SQUARED))

    unresolved = [
        is_lost(own) if batch.fallback else jnp.zeros(len(own), bool) for batch, own in zip(batches, values, strict=True)
    ]

    def solve_lost(batch: Batch, own: Array, lost: Array) -> Array:
        if batch.fallback is None:
            return own
        again = functools.partial(solve_by, batch, batch.fallback)
        return jax.lax.cond(any_over_batch(jnp.any(lost)), lambda: jnp.where(lost[:, None], again(), own), lambda: own)

    def solve_again() -> list[Array]:
        return list(map(solve_lost, batches, values, unresolved))

    return jax.lax.cond(any_over_batch(jnp.any(jnp.concatenate(unresolved))), solve_again, lambda: values)


def _solve_batch(batch: Batch, route: Route, plan: SpectrumPlan, kernels: Mapping[Path, Array]) -> Float[Array, "stack n"]:
    """The eigenvalues of all matrices of a batch, in the order of its layers."""
    prepare, solve = _ROUTES[route]
    if isinstance(plan.solver, Lanczos) and route == "lanczos":
        solve = functools.partial(solve, steps=plan.solver.steps, probes=plan.solver.probes, seed=plan.solver.seed)

    def build(chunk: Chunk) -> Float[Array, "stack n k"]:
        """The problems of a chunk, divided over the devices."""
        stacks = []
        for section in chunk.sections:
            parts = _group_matrices(batch.groups[section.group], kernels, section.start, section.stop)
            if plan.devices > 1:
                parts = rows_over_mesh([unshard_stack(part) for part in parts])
            stack = _padded(jnp.concatenate(parts), section.share * plan.devices)
            stacks.append(shard_stack(stack) if plan.devices > 1 and len(parts) == 1 else stack)
        together = lambda *shares: _padded(jnp.concatenate([prepare(share) for share in shares]), chunk.length)
        return (over_devices(together) if plan.devices > 1 else together)(*stacks)

    if plan.devices == 1:
        return solve_in_chunks(batch.chunks, build, solve)
    values = solve_in_chunks(batch.chunks, build, over_devices(solve))
    in_groups = [layer for group in batch.groups for layer in group]
    parts = jnp.split(replicated(values), np.cumsum([layer.count for layer in in_groups])[:-1])
    by_name = {layer.name: part for layer, part in zip(in_groups, parts, strict=True)}
    return jnp.concatenate([by_name[layer.name] for layer in batch.layers])


def solve_in_chunks(
    chunks: Sequence[Chunk],
    build: Callable[[Chunk], Shaped[Array, "stack ..."]],
    solve: Callable[[Shaped[Array, "stack ..."]], Shaped[Array, "stack ..."]],
) -> Shaped[Array, "matrices ..."]:
    """Solves all chunks, with the problems of one in memory, and puts the results in the order of the matrices.

    `build` returns the problems of a chunk, in the order of `Chunk.positions`. The chunks are built inside a loop whose body
    selects its chunk by a switch. So the solver is compiled once, and XLA cannot build a chunk before the previous one is
    done.
    """
    if len(chunks) == 1:
        solutions = solve(build(chunks[0]))
    else:
        branches = [lambda chunk=chunk: build(chunk) for chunk in chunks]
        solved = jax.lax.map(lambda index: solve(jax.lax.switch(index, branches)), jnp.arange(len(branches)))
        solutions = solved.reshape(-1, *solved.shape[2:])
    length = len(solutions) // len(chunks)
    positions = np.concatenate([number * length + chunk.positions() for number, chunk in enumerate(chunks)])
    in_order = np.array_equal(positions, np.arange(len(positions)))
    return solutions[: len(positions)] if in_order else solutions[positions]


def _group_matrices(
    group: Sequence[LayerMatrices], kernels: Mapping[Path, Array], start: int, stop: int
) -> list[Float[Array, "some n m"]]:
    """Matrices `start` to `stop` of all layers of a group together, as one stack for each layer that has some of them."""
    parts, begin = [], 0
    for layer in group:
        first, last = max(start - begin, 0), min(stop - begin, layer.count)
        if first < last:
            parts.append(layer_matrices(layer, kernels[layer.kernel], first, last))
        begin += layer.count
    return parts


def layer_matrices(layer: LayerMatrices, kernel: Array, start: int, stop: int) -> Float[Array, "some n m"]:
    """Matrices `start` to `stop` of a layer, the smaller side first."""
    windows = len(layer.grid.row_starts) * len(layer.grid.column_starts)
    first = start // windows
    cut = extract_windows(_kernel_matrices(layer, kernel, first, -(-stop // windows)), layer.grid)
    return cut[start - first * windows : stop - first * windows]


def _kernel_matrices(layer: LayerMatrices, kernel: Array, start: int, stop: int) -> Float[Array, "some rows columns"]:
    """Matrices `start` to `stop` of a kernel, before windows are taken."""
    shape, rows, columns = layer.shape, layer.shape.reduction_axes, layer.shape.output_axes
    if shape.rows > shape.columns:
        rows, columns = columns, rows
    stacked = (*shape.layer_axes, *shape.pooled_axes)
    if stacked:  # Slice before transposing, because XLA would transpose the whole kernel.
        per_slice = math.prod(shape.stack) * shape.matrices // kernel.shape[stacked[0]]
        first = start // per_slice
        kernel = jax.lax.slice_in_dim(kernel, first, -(-stop // per_slice), axis=stacked[0])
        start, stop = start - first * per_slice, stop - first * per_slice
    sides = sorted((shape.rows, shape.columns))
    matrices = kernel.transpose(*stacked, *rows, *columns).reshape(-1, *sides)[start:stop]
    return matrices.astype(layer.dtype)


def _padded(stack: Float[Array, "stack n m"], length: int) -> Float[Array, "length n m"]:
    missing = length - len(stack)
    return jnp.pad(stack, ((0, missing), (0, 0), (0, 0))) if missing else stack


def _pool(layer: LayerMatrices, values: Float[Array, "matrices n"]) -> Float[Array, "rows eigenvalues"]:
    """Ascending spectra, from the eigenvalues of the matrices of layers that are pooled like this one."""
    rows = values.reshape(-1, layer.pooled * values.shape[1])
    if layer.pooled > 1:
        rows = jnp.sort(rows, axis=-1)
    return rows * (_POOLED_SCALE if layer.shape.pooled_axes else 1.0)
