"""Measures layers one by one: the spectrum of each, its fits, and what else the spectrum says.

Layers with matrices of the same sizes share a compiled program, and as many are measured side by side as there are cores and
memory for.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from tb_optax._balance.fits import PowerLaw
from tb_optax._balance.metrics import Fit
from tb_optax._layers.layer import KernelShape, Layer, Path, kernel_shape
from tb_optax._spectra.eigenvalues import cores
from tb_optax._spectra.solver import Solver
from tb_optax._spectra.spectra import spectra

# What is in memory of all layers that are measured at once, each as read, in float32, turned, and as its solver needs it.
_BYTES_AT_ONCE = 2**31
_COPIES = 5


@dataclasses.dataclass(frozen=True)
class Measured:
    """A layer, or a slice of a stack of layers.

    Attributes:
      index: its place in the stack; empty where there is none.
      eigenvalues: its spectrum, ascending.
      fits: of the spectrum, by the names of the fits.
    """

    index: tuple[int, ...]
    eigenvalues: Float[np.ndarray, " n"]
    fits: Mapping[str, PowerLaw]


def measured(
    layers: Sequence[Layer],
    shapes: Mapping[Path, jax.ShapeDtypeStruct],
    read: Callable[[Path], Any],
    fits: Mapping[str, Fit],
    solver: Solver,
) -> Generator[list[Measured]]:
    """Measures layers, each read when its turn comes.

    Args:
      layers: the layers.
      shapes: shape and dtype of each kernel.
      read: gives a kernel; called from several threads.
      fits: functions from spectra to power laws, by name.
      solver: how spectra are computed.

    Yields:
      For each layer in turn, its slices.
    """
    measure_one = functools.partial(_measure, read=read, fits=tuple(fits.items()), solver=solver)
    if jax.default_backend() != "cpu":  # One device has one queue.
        yield from map(measure_one, layers)
        return
    largest = max((_COPIES * 4 * math.prod(shapes[layer.kernel].shape) for layer in layers), default=1)
    at_once = max(1, min(cores(), _BYTES_AT_ONCE // largest))
    pool = concurrent.futures.ThreadPoolExecutor(at_once, "measure")
    try:
        waiting = list(layers)[::-1]
        running: list[concurrent.futures.Future[list[Measured]]] = []
        while waiting or running:
            while waiting and len(running) < 2 * at_once:
                running.append(pool.submit(measure_one, waiting.pop()))
            yield running.pop(0).result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _measure(
    layer: Layer, *, read: Callable[[Path], Any], fits: tuple[tuple[str, Fit], ...], solver: Solver
) -> list[Measured]:
    kernel = read(layer.kernel)
    shape = kernel_shape(layer, kernel.shape)
    stacks = _as_stacks(kernel, shape)
    del kernel
    alone = Layer("layer", "kernel", (), (-2,), (-1,), (0,))
    eigenvalues = spectra({"kernel": stacks}, layers=(alone,), solver=solver)["layer"]
    del stacks
    laws = jax.device_get(_fit_all(eigenvalues, tuple(fit for _, fit in fits)))
    eigenvalues = np.asarray(eigenvalues)
    return [
        Measured(
            tuple(int(place) for place in index),
            values,
            {name: PowerLaw(*(number[row] for number in law)) for (name, _), law in zip(fits, laws, strict=True)},
        )
        for row, (index, values) in enumerate(zip(np.ndindex(shape.stack), eigenvalues, strict=True))
    ]


def _as_stacks(kernel: Any, shape: KernelShape) -> Any:
    """The kernel as `(slices, smaller side, larger side)`; pooled, as `(slices, window, smaller side, larger side)`."""
    small, large = shape.reduction_axes, shape.output_axes
    if shape.rows > shape.columns:
        small, large = large, small
    sizes = sorted((shape.rows, shape.columns))
    window = (shape.matrices,) if shape.pooled_axes else ()
    turned = kernel.transpose(*shape.layer_axes, *shape.pooled_axes, *small, *large)
    return turned.reshape(math.prod(shape.stack), *window, *sizes)


@functools.partial(jax.jit, static_argnames="fits")
def _fit_all(eigenvalues: Float[Array, "slices n"], fits: tuple[Fit, ...]) -> list[PowerLaw]:
    return [fit(eigenvalues) for fit in fits]
