"""Spectra of layers, one after another: no more is in memory than what is being solved.

Layers with matrices of the same sizes share a compiled program, and as many are solved side by side as there are cores and
memory for.
"""

import concurrent.futures
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from tb_optax._layers.layer import KernelShape, Layer, Path, kernel_shape
from tb_optax._spectra.eigenvalues import cores
from tb_optax._spectra.options import Exact, Solver
from tb_optax._spectra.sharding import in_mesh, mesh_of, partitioned_by_compiler
from tb_optax._spectra.spectra import spectra
from tb_optax._spectra.windows import Windows

Unsquarable: TypeAlias = Literal["", "large", "small"]
"""Why a weight that is finite and nonzero cannot be squared in float32, if it cannot."""

# What is in memory of all layers that are solved at once, each as read, in float32, turned, and as its solver needs it.
_BYTES_AT_ONCE = 2**31
_COPIES = 5
_GRAM = Exact(method="gram")
# Below it, rounding is more than some percent of an eigenvalue of a Gram product.
_RESOLVED = 1e-5
# Squares of smaller entries lose digits.
_LEAST = 1e-30
# All time goes into LAPACK, none into the code that is compiled around it.
_COMPILE_FAST = {"xla_backend_optimization_level": 0}


def spectra_in_turn(
    layers: Sequence[Layer],
    shapes: Mapping[Path, jax.ShapeDtypeStruct],
    read: Callable[[Path], Any],
    solver: Solver,
    windows: Windows | None,
    gram: bool = False,
) -> Generator[Float[np.ndarray, "slices eigenvalues"]]:
    """The spectra of layers, each read when its turn comes.

    Args:
      layers: the layers.
      shapes: shape and dtype of each kernel.
      read: gives a kernel; called from several threads.
      solver: how spectra are computed.
      windows: windows to take from every matrix.
      gram: whether to compute a layer's spectrum from Gram products, which take half the time of singular values, where they
        resolve it: where no eigenvalue is below 1e-5 of the largest. The others are solved again by singular values.

    Yields:
      For each layer in turn, as `tb_optax.spectra` has it, the ascending spectra of all its slices.
    """
    solve_one = functools.partial(_solve, read=read, solver=solver, windows=windows, gram=gram)
    if jax.default_backend() != "cpu":  # One device has one queue.
        yield from map(solve_one, layers)
        return
    largest = max((_COPIES * 4 * math.prod(shapes[layer.kernel].shape) for layer in layers), default=1)
    at_once = max(1, min(cores(), _BYTES_AT_ONCE // largest))
    pool = concurrent.futures.ThreadPoolExecutor(at_once, "spectra")
    try:
        waiting = list(layers)[::-1]
        running: list[concurrent.futures.Future[np.ndarray]] = []
        while waiting or running:
            while waiting and len(running) < 2 * at_once:
                running.append(pool.submit(solve_one, waiting.pop()))
            yield running.pop(0).result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def unsquarable(
    spectra: Float[np.ndarray, "slices eigenvalues"], layer: Layer, read: Callable[[Path], Any]
) -> list[Unsquarable]:
    """Whether the weight of each slice is finite and nonzero, but too large or too small to be squared."""
    largest = spectra[:, -1]
    if (np.isfinite(largest) & (largest > 0)).all():
        return [""] * len(spectra)
    weight = np.asarray(read(layer.kernel))
    flat = np.abs(np.asarray(as_stacks(weight, kernel_shape(layer, weight.shape)).reshape(len(spectra), -1), np.float64))
    return [
        "large" if np.isfinite(entries).all() and not np.isfinite(value) else "small" if value == 0 < entries.max() else ""
        for value, entries in zip(largest, flat, strict=True)
    ]


def _solve(
    layer: Layer, *, read: Callable[[Path], Any], solver: Solver, windows: Windows | None, gram: bool
) -> Float[np.ndarray, "slices eigenvalues"]:
    kernel = read(layer.kernel)
    with in_mesh(mesh_of([kernel])):
        stacks = partitioned_by_compiler(functools.partial(as_stacks, shape=kernel_shape(layer, kernel.shape)))(kernel)
    del kernel
    solve = _solve_on_cpu if jax.default_backend() == "cpu" else _solve_stacks
    # The smallest eigenvalues of square matrices are far below the limit, in noise too.
    if gram and windows is None and stacks.shape[-2] < stacks.shape[-1]:
        found = np.asarray(solve(stacks, _GRAM, windows))
        if ((found[:, 0] >= _RESOLVED * found[:, -1]) & (found[:, -1] > _LEAST)).all():
            return found
    return np.asarray(solve(stacks, solver, windows))


def as_stacks(kernel: Any, shape: KernelShape) -> Any:
    """The kernel as `(slices, smaller side, larger side)`; pooled, as `(slices, window, smaller side, larger side)`."""
    small, large = shape.reduction_axes, shape.output_axes
    if shape.rows > shape.columns:
        small, large = large, small
    sizes = sorted((shape.rows, shape.columns))
    window = (shape.matrices,) if shape.pooled_axes else ()
    turned = kernel.transpose(*shape.layer_axes, *shape.pooled_axes, *small, *large)
    return turned.reshape(math.prod(shape.stack), *window, *sizes)


def _solve_stacks(
    stacks: Float[Array, "slices ..."], solver: Solver, windows: Windows | None
) -> Float[Array, "slices eigenvalues"]:
    layer = Layer("layer", "kernel", (), (-2,), (-1,), (0,))
    return spectra({"kernel": stacks}, layers=(layer,), solver=solver, windows=windows)["layer"]


_solve_on_cpu = jax.jit(_solve_stacks, static_argnames=("solver", "windows"), compiler_options=_COMPILE_FAST)
