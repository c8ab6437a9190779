"""Spectra: the eigenvalues of the correlation matrices of each layer's weight."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tb_optax._checks import check_solver
from tb_optax._eigenvalues import gram, squared_singular_values, symmetric_eigenvalues, triangular_factor
from tb_optax._find import find_layers
from tb_optax._lanczos import lanczos_spectrum
from tb_optax._layers import KernelShape, Layers, LayersOrFn, Path, PyTree, kernel_shape, resolve_layers
from tb_optax._sharding import device_count, over_devices, partitioned_by_compiler
from tb_optax._solver import DEFAULT_SOLVER, Solver
from tb_optax._stacks import solve_alike, solve_in_chunks

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
    return layer_spectra(found, leaves, solver, small_eigenvalues=True)


def layer_spectra(
    layers: Layers, leaves: Mapping[Path, Any], solver: Solver = DEFAULT_SOLVER, *, small_eigenvalues: bool
) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """`spectra` of layers already resolved. Matrices of one size, of all layers, are solved as one stack.

    Without `small_eigenvalues`, those of less than a millionth of the largest are inexact or zero, at half the cost.
    """
    exact = _SINGULAR_VALUES if small_eigenvalues else _EIGENVALUES
    approximate = _Method(
        lambda matrices: matrices,
        functools.partial(lanczos_spectrum, steps=solver.lanczos_steps, probes=solver.lanczos_probes, seed=solver.seed),
    )

    def method(shape: KernelShape) -> _Method:
        large = solver.approximate_from is not None and min(shape.rows, shape.columns) >= solver.approximate_from
        return approximate if large else exact

    def solve(kernels: Mapping[str, Array]) -> dict[str, Array]:
        matrices = {}
        for layer in layers:
            shape = kernel_shape(layer, kernels[layer.name].shape)
            matrices[layer.name] = _Matrices(kernels[layer.name], shape, method(shape))
        kind = lambda own: (own.method, own.problem.shape, own.problem.dtype)
        together = functools.partial(_solve, max_stack_bytes=solver.max_stack_bytes)
        values = solve_alike(matrices, kind, lambda own: own.count, together)
        return _pooled(values, {name: own.shape for name, own in matrices.items()})

    return partitioned_by_compiler(solve, {layer.name: jnp.asarray(leaves[layer.kernel]) for layer in layers})


class _Method(NamedTuple):
    prepare: Callable[[Float[Array, "stack n m"]], Float[Array, "stack n k"]]
    solve: Callable[[Float[Array, "stack n k"]], Float[Array, "stack n"]]


_EIGENVALUES = _Method(gram, symmetric_eigenvalues)
_SINGULAR_VALUES = _Method(triangular_factor, squared_singular_values)


@dataclasses.dataclass(frozen=True, eq=False)
class _Matrices:
    """The matrices of a kernel, smaller side first, in at least float32, and how their spectra are computed."""

    kernel: Array
    shape: KernelShape
    method: _Method

    @property
    def count(self) -> int:
        return math.prod(self.shape.stack) * self.shape.matrices

    def __getitem__(self, own: slice) -> Float[Array, "some n m"]:
        shape, rows, columns = self.shape, self.shape.reduction_axes, self.shape.output_axes
        if shape.rows > shape.columns:
            rows, columns = columns, rows
        matrices = self.kernel.transpose(*shape.layer_axes, *shape.pooled_axes, *rows, *columns)
        matrices = matrices.reshape(-1, *sorted((shape.rows, shape.columns)))[own]
        return matrices.astype(jnp.promote_types(matrices.dtype, jnp.float32))

    def prepared(self, own: slice) -> Float[Array, "some n k"]:
        return self.method.prepare(self[own])

    @functools.cached_property
    def problem(self) -> jax.ShapeDtypeStruct:
        """What one matrix becomes for the solver."""
        prepared = jax.eval_shape(lambda: self.prepared(slice(1)))
        return jax.ShapeDtypeStruct(prepared.shape[1:], prepared.dtype)

    @property
    def bytes_each(self) -> int:
        """Of a matrix, of what is solved, and of the solver's copy of it."""
        return (self.shape.rows * self.shape.columns + 2 * self.problem.size) * self.problem.dtype.itemsize


def _solve(alike: list[_Matrices], max_stack_bytes: int) -> Float[Array, "stack n"]:
    """The eigenvalues of all matrices, an equal share on each device, cut so that none holds more than it may."""
    at_once = max(1, max_stack_bytes // max(own.bytes_each for own in alike))
    make = lambda index, start, stop: alike[index].prepared(slice(start, stop))
    solve = functools.partial(over_devices, alike[0].method.solve)
    return solve_in_chunks([own.count for own in alike], make, solve, at_once * device_count())


def _pooled(
    values: Mapping[str, Float[Array, "matrices n"]], shapes: Mapping[str, KernelShape]
) -> dict[str, Float[Array, "*stack eigenvalues"]]:
    """One ascending spectrum for each place on a kernel's layer axes."""
    rows = {name: values[name].reshape(-1, shape.eigenvalues) for name, shape in shapes.items()}
    scale = {name: _POOLED_SCALE if shape.pooled_axes else 1.0 for name, shape in shapes.items()}
    kind = lambda name: (rows[name].shape[1], rows[name].dtype, scale[name])
    ascending = lambda names: jnp.sort(jnp.concatenate([rows[name] for name in names]), axis=-1) * scale[names[0]]
    spectra = solve_alike({name: name for name in rows}, kind, lambda name: len(rows[name]), ascending)
    return {name: spectra[name].reshape(*shape.stack, shape.eigenvalues) for name, shape in shapes.items()}
