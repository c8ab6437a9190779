"""Spectra: the eigenvalues of the correlation matrices of each layer's weight."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tb_optax._dtypes import at_least_float32
from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import KernelShape, Layers, LayersOrFn, Path, PyTree, kernel_shape, resolve_layers
from tb_optax._spectra.eigenvalues import gram, squared_singular_values, symmetric_eigenvalues, triangular_factor
from tb_optax._spectra.lanczos import lanczos_spectrum
from tb_optax._spectra.sharding import (
    alike_over_devices,
    dealt,
    device_count,
    over_devices,
    partitioned_by_compiler,
    replicated,
    whole,
)
from tb_optax._spectra.solver import DEFAULT_SOLVER, Solver, check_solver
from tb_optax._spectra.stacks import Chunk, alike, cut, solve_in_chunks
from tb_optax._spectra.windows import Grid, cut_out, grid_of

# The released code scales convolutions' weights by sqrt(0.5).
_POOLED_SCALE = 0.5


def spectra(
    params: PyTree, *, layers: LayersOrFn = find_layers, solver: Solver = DEFAULT_SOLVER
) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """The spectrum of every layer: the ascending eigenvalues of `W Wᵀ`, taken on the smaller side.

    A convolution has one matrix for each place of its window, and pools their eigenvalues; as in the authors' code, its
    weight is scaled by `sqrt(0.5)` before. These are the spectra that TempBalance fits during training (Zhou et al.,
    2023, Section 3.1): what is plotted is what is used. They come from singular values, computed in the weight's
    precision, at least in float32; during training, where the metric allows, from Gram products, which are faster and
    agree but for eigenvalues of less than a millionth of the largest.

    Args:
      params: the parameters.
      layers: the layers, or a function of `params` that finds them.
      solver: how much memory may be taken, and whether large matrices are approximated.

    Returns:
      For each layer's name, an array of shape `(*sizes of its layer axes, number of eigenvalues)`, at least float32. NaN
      where the weight holds a NaN or an infinity; zero where rounding cannot tell an eigenvalue from zero.

    Raises:
      TypeError: `layers` is not a sequence of layers, or does not return one; `solver` is not a `Solver`.
      ValueError: `layers` does not fit `params`.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (64, 128))}}
      >>> eigenvalues = tb_optax.spectra(params)["dense"]
      >>> eigenvalues.shape
      (64,)
      >>> round(float(tb_optax.pl_alpha_hill(eigenvalues)), 1)
      2.8
    """
    check_solver("spectra", solver)
    found, leaves = resolve_layers(layers, params)
    by_name = _by_name({layer.kernel: leaves[layer.kernel] for layer in found}, found, solver)
    return {layer.name: by_name[layer.name] for layer in found}


@functools.partial(jax.jit, static_argnames=("layers", "solver"))  # One program, where nothing around it is jitted.
def _by_name(leaves: Mapping[Path, Array], layers: Layers, solver: Solver) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    spectra = {}
    for names, rows in stacked_spectra(layers, leaves, solver, small_eigenvalues=True):
        spectra |= zip(names, jnp.split(rows, len(names)), strict=True)
    shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in layers}
    return {name: spectra[name].reshape(*shape.stack, -1) for name, shape in shapes.items()}


def stacked_spectra(
    layers: Layers, leaves: Mapping[Path, Any], solver: Solver = DEFAULT_SOLVER, *, small_eigenvalues: bool
) -> list[tuple[list[str], Float[Array, "rows eigenvalues"]]]:
    """`spectra` of layers already resolved, as few arrays: each of several layers, a row for each slice of each in turn.

    Without `small_eigenvalues`, those of less than a millionth of the largest are inexact or zero, at half the cost.
    """
    exact = _SINGULAR_VALUES if small_eigenvalues else _EIGENVALUES
    approximation = dict(steps=solver.lanczos_steps, probes=solver.lanczos_probes, seed=solver.seed)
    approximate = _Method(lambda matrices: matrices, functools.partial(lanczos_spectrum, **approximation))
    names = []

    def solve(kernels: Mapping[str, Array]) -> list[Array]:
        matrices = []
        for layer in layers:
            shape = kernel_shape(layer, kernels[layer.name].shape)
            grid = grid_of(solver.windows, *_sides(shape), is_convolution=bool(shape.pooled_axes))
            large = solver.approximate_from is not None and grid.rows >= solver.approximate_from
            matrices.append(_Matrices(layer.name, kernels[layer.name], shape, grid, approximate if large else exact))
        rows = []
        for stack in alike(matrices, lambda own: (own.method, own.problem.shape, own.problem.dtype)):
            # What is pooled alike stands side by side in the stack: one piece to cut out of it, not one for each layer.
            pools = alike(stack, lambda own: (own.shape.stack, own.pooled, bool(own.shape.pooled_axes)))
            values = _solve([own for pool in pools for own in pool], solver.max_stack_bytes)
            ends = np.cumsum([sum(own.count for own in pool) for pool in pools])[:-1]
            rows += [_pooled(pool[0], part) for pool, part in zip(pools, jnp.split(values, ends), strict=True)]
            names.extend([own.name for own in pool] for pool in pools)
        return rows

    rows = partitioned_by_compiler(solve, {layer.name: jnp.asarray(leaves[layer.kernel]) for layer in layers})
    return list(zip(names, rows, strict=True))


class _Method(NamedTuple):
    prepare: Callable[[Float[Array, "stack n m"]], Float[Array, "stack n k"]]
    solve: Callable[[Float[Array, "stack n k"]], Float[Array, "stack n"]]


_EIGENVALUES = _Method(gram, symmetric_eigenvalues)
_SINGULAR_VALUES = _Method(triangular_factor, squared_singular_values)


@dataclasses.dataclass(frozen=True, eq=False)
class _Matrices:
    """The matrices of a layer's kernel, smaller side first, in at least float32, and how their spectra are computed.

    They are pieces of the kernel's own matrices, or those themselves.
    """

    name: str
    kernel: Array
    shape: KernelShape
    grid: Grid
    method: _Method

    @property
    def count(self) -> int:
        return math.prod(self.shape.stack) * self.pooled

    @property
    def pooled(self) -> int:
        """How many share a spectrum."""
        return self.shape.matrices * self.grid.pieces

    def __getitem__(self, own: slice) -> Float[Array, "some n m"]:
        start, stop, _ = own.indices(self.count)
        each = self.grid.pieces
        first = start // each
        cut = cut_out(self._whole(first, -(-stop // each)), self.grid)
        return whole(cut[start - first * each : stop - first * each])

    def _whole(self, start: int, stop: int) -> Float[Array, "some rows columns"]:
        """Some of the kernel's own matrices."""
        shape, rows, columns = self.shape, self.shape.reduction_axes, self.shape.output_axes
        if shape.rows > shape.columns:
            rows, columns = columns, rows
        kernel, stacked = self.kernel, (*shape.layer_axes, *shape.pooled_axes)
        if stacked:  # Cut before it is turned: XLA would turn all of it.
            each = math.prod(shape.stack) * shape.matrices // kernel.shape[stacked[0]]
            first = start // each
            kernel = jax.lax.slice_in_dim(kernel, first, -(-stop // each), axis=stacked[0])
            start, stop = start - first * each, stop - first * each
        matrices = kernel.transpose(*stacked, *rows, *columns).reshape(-1, *_sides(shape))[start:stop]
        return matrices.astype(at_least_float32(matrices.dtype))

    @property
    def sizes(self) -> tuple[int, int]:
        """The smaller side, and the larger one."""
        return self.grid.rows, self.grid.columns

    @functools.cached_property
    def problem(self) -> jax.ShapeDtypeStruct:
        """What one matrix becomes for the solver."""
        prepared = jax.eval_shape(lambda: self.method.prepare(self[:1]))
        return jax.ShapeDtypeStruct(prepared.shape[1:], prepared.dtype)

    def bytes_each(self, devices: int) -> int:
        """Of a matrix, of what is solved, and of the solver's copy of it."""
        copies = 1 if devices == 1 else 3  # to deal matrices out, each device sends parts of its own, and receives others
        return (copies * math.prod(self.sizes) + 2 * self.problem.size) * self.problem.dtype.itemsize


def _solve(stack: list[_Matrices], max_stack_bytes: int) -> Float[Array, "stack n"]:
    """The eigenvalues of all matrices, an equal share on each device, cut so that none holds more than it may."""
    devices, method = device_count(), stack[0].method
    at_once = max(1, max_stack_bytes // max(own.bytes_each(devices) for own in stack))
    # What cannot be dealt out evenly by itself is dealt out with others of its size, so that fewer shares are filled up.
    groups = alike(stack, lambda own: own.name if own.count % devices == 0 else own.sizes)

    def make(chunk: Chunk) -> Float[Array, "stack n k"]:
        def prepared(*shares: Float[Array, "share n m"]) -> Float[Array, "length n k"]:
            return _filled(jnp.concatenate([method.prepare(share) for share in shares]), chunk.length)

        stacks = []
        for own in chunk.sections:
            parts = _matrices(groups[own.maker], own.start, own.stop)
            put_together = parts[0] if len(parts) == 1 else jnp.concatenate(alike_over_devices(parts))
            filled = _filled(put_together, own.share * devices)
            stacks.append(dealt(filled) if len(parts) == 1 else filled)
        return over_devices(prepared, *stacks)

    chunks = cut([sum(own.count for own in group) for group in groups], at_once, devices)
    values = solve_in_chunks(chunks, make, functools.partial(over_devices, method.solve))
    if devices == 1:
        return values
    by_group = [own for group in groups for own in group]
    parts = jnp.split(replicated(values), np.cumsum([own.count for own in by_group])[:-1])
    by_name = {own.name: part for own, part in zip(by_group, parts, strict=True)}
    return jnp.concatenate([by_name[own.name] for own in stack])


def _matrices(makers: list[_Matrices], start: int, stop: int) -> list[Float[Array, "some n m"]]:
    """Of the matrices of all makers together, some, those of each maker by themselves."""
    parts, begin = [], 0
    for maker in makers:
        own = slice(max(start, begin) - begin, min(stop, begin + maker.count) - begin)
        if own.start < own.stop:
            parts.append(maker[own])
        begin += maker.count
    return parts


def _filled(stack: Float[Array, "stack n m"], length: int) -> Float[Array, "length n m"]:
    missing = length - len(stack)
    return jnp.pad(stack, ((0, missing), (0, 0), (0, 0))) if missing else stack


def _pooled(own: _Matrices, values: Float[Array, "matrices n"]) -> Float[Array, "rows eigenvalues"]:
    """Ascending spectra from the eigenvalues of the matrices of kernels like this one."""
    rows = values.reshape(-1, own.pooled * values.shape[1])
    if own.pooled > 1:
        rows = jnp.sort(rows, axis=-1)
    return rows * (_POOLED_SCALE if own.shape.pooled_axes else 1.0)


def _sides(shape: KernelShape) -> tuple[int, int]:
    """The smaller side of a kernel's matrices, and the larger one."""
    return min(shape.rows, shape.columns), max(shape.rows, shape.columns)
