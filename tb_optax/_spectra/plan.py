"""Plans how the spectra of all layers are computed, from shapes alone.

A plan says which matrices are solved together, by which route, in how many chunks, and which share each device solves.
`execute` computes the plan. Print a plan to read it:

  >>> import jax.numpy as jnp, tb_optax
  >>> from tb_optax._layers.layer import resolve_layers
  >>> params = {name: {"kernel": jnp.ones((3, 3, 32, 64))} for name in ("conv1", "conv2")}
  >>> params["dense"] = {"kernel": jnp.ones((64, 128))}
  >>> layers, leaves = resolve_layers(tb_optax.find_layers, params)
  >>> print(plan_spectra(layers, leaves, tb_optax.Exact(), gram=True, devices=4))
  18 matrices of 32 x 64 by gram or svd in turn, 5 for each of 4 devices: conv1, conv2
  1 matrix of 64 x 128 by gram or svd in turn, 1 for each of 4 devices: dense
  >>> print(plan_spectra(layers, leaves, tb_optax.Exact(max_bytes=100_000), gram=True))
  18 matrices of 32 x 64 by gram or svd in turn, in 3 chunks of 6: conv1, conv2
  1 matrix of 64 x 128 by gram or svd in turn: dense
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Int

from tb_optax._dtypes import at_least_float32
from tb_optax._layers.layer import KernelShape, Layers, Path, kernel_shape
from tb_optax._spectra.options import DEFAULT_SOLVER, Exact, Lanczos, Solver
from tb_optax._spectra.windows import WindowGrid, Windows, window_grid

Item = TypeVar("Item")
Route: TypeAlias = Literal["gram", "svd", "svd in turn", "lanczos"]


class LayerMatrices(NamedTuple):
    """The matrices of one layer, with the smaller side first: those of its kernel, or windows of them.

    Attributes:
      name: of the layer.
      kernel: the path of its kernel.
      shape: the axes and sizes of the kernel.
      dtype: the dtype in which its spectra are computed.
      grid: the windows of each matrix of the kernel.
      route: how its spectra are computed.
      pooled: how many matrices share one spectrum.
      count: how many matrices there are.
      problem: the size of the solver's problem for one matrix.
    """

    name: str
    kernel: Path
    shape: KernelShape
    dtype: Any
    grid: WindowGrid
    route: Route
    pooled: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    problem: tuple[int, int]

    def bytes_each(self, devices: int) -> int:
        """Memory of a device for each matrix: the matrix, the problem made from it, and the solver's copy of the problem.

        Several devices need three copies, because each sends parts of some matrices and receives parts of others. Windows
        are cut out of bands of rows, which every device holds for all matrices of a chunk.
        """
        copies = 1 if devices == 1 else 3
        numbers = copies * self.grid.rows * self.grid.columns + 2 * math.prod(self.problem)
        if len(self.grid.row_starts) * len(self.grid.column_starts) > 1:
            band = self.grid.rows * max(self.shape.rows, self.shape.columns)
            numbers += devices * copies * math.ceil(band / len(self.grid.column_starts))
        return numbers * np.dtype(self.dtype).itemsize


class Section(NamedTuple):
    """Matrices `start` to `stop` of a group of layers. Each device solves up to `share` of them, the last devices fewer."""

    group: int
    start: int
    stop: int
    share: int


class Chunk(NamedTuple):
    """Matrices that are solved at once. Each device solves its share of every section, padded to `length` matrices."""

    sections: tuple[Section, ...]
    length: int

    def positions(self) -> Int[np.ndarray, " matrices"]:
        """Where each matrix, in the order of the sections, lies in the chunk's results of all devices."""
        found, begin = [], 0
        for section in self.sections:
            device, index = np.divmod(np.arange(section.stop - section.start), section.share)
            found.append(device * self.length + begin + index)
            begin += section.share
        return np.concatenate(found)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Matrices of one size that one compiled solver solves.

    Attributes:
      route: how they are solved.
      fallback: how matrices are solved again whose median eigenvalue `route` does not resolve; None if they are not.
      layers: the layers of the matrices, in the order of the results.
      pools: the same layers, grouped by how their eigenvalues are pooled into spectra.
      groups: the same layers, grouped by which are divided over the devices together.
      chunks: the chunks into which the matrices of the groups are divided.
    """

    route: Route
    fallback: Route | None
    layers: tuple[LayerMatrices, ...]
    pools: tuple[tuple[LayerMatrices, ...], ...]
    groups: tuple[tuple[LayerMatrices, ...], ...]
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass(frozen=True)
class SpectrumPlan:
    """How the spectra of all layers are computed; `str` describes it.

    Attributes:
      batches: one for each size of problem and each route.
      devices: the number of devices that share each batch.
      solver: the given options.
    """

    batches: tuple[Batch, ...]
    devices: int
    solver: Solver

    def __str__(self) -> str:
        lines = []
        for batch in self.batches:
            count = sum(layer.count for layer in batch.layers)
            sizes = sorted({(layer.grid.rows, layer.grid.columns) for layer in batch.layers})
            of = " and ".join(f"{rows} x {columns}" for rows, columns in sizes)
            line = f"{count} {'matrix' if count == 1 else 'matrices'} of {of} by {batch.route}"
            line += f" or {batch.fallback}" if batch.fallback else ""
            length, chunks = batch.chunks[0].length, len(batch.chunks)
            if chunks > 1:
                line += f", in {chunks} chunks of {length}"
            elif self.devices > 1:
                line += f", {length}"
            line += f" for each of {self.devices} devices" if self.devices > 1 else ""
            lines.append(f"{line}: {', '.join(layer.name for layer in batch.layers)}")
        return "\n".join(lines)


def plan_spectra(
    layers: Layers,
    leaves: Mapping[Path, Any],
    solver: Solver = DEFAULT_SOLVER,
    windows: Windows | None = None,
    *,
    gram: bool,
    devices: int = 1,
) -> SpectrumPlan:
    """Plans the spectra of all layers.

    Args:
      layers: the layers.
      leaves: something with a `shape` and a `dtype` for each kernel.
      solver: how spectra are computed.
      windows: windows to take from each matrix.
      gram: whether Gram products are exact enough; used if the solver's method is `"auto"`.
      devices: how many devices share the work.
    """
    exact = solver.below if isinstance(solver, Lanczos) else solver
    exact_route: Route = exact.method if exact.method != "auto" else "gram" if gram else "svd"
    matrices = []
    for layer in layers:
        leaf = leaves[layer.kernel]
        shape = kernel_shape(layer, leaf.shape)
        grid = window_grid(windows, *sorted((shape.rows, shape.columns)), is_convolution=bool(shape.pooled_axes))
        route: Route = "lanczos" if isinstance(solver, Lanczos) and grid.rows >= solver.min_size else exact_route
        pooled = shape.matrices * len(grid.row_starts) * len(grid.column_starts)
        count = pooled * math.prod(shape.stack)
        problem = (grid.rows, grid.columns if route == "lanczos" else grid.rows)
        dtype = np.dtype(at_least_float32(leaf.dtype))
        matrices.append(LayerMatrices(layer.name, layer.kernel, shape, dtype, grid, route, pooled, count, problem))
    same_problem = group_by(matrices, lambda layer: (layer.route, layer.problem, layer.dtype))
    batches = tuple(_plan_batch(batch, exact, devices) for batch in same_problem)
    return SpectrumPlan(batches, devices, solver)


def _plan_batch(layers: Sequence[LayerMatrices], exact: Exact, devices: int) -> Batch:
    # Layers with the same pooling lie next to each other: their results are one slice.
    pools = group_by(layers, lambda layer: (layer.shape.stack, layer.pooled, bool(layer.shape.pooled_axes)))
    in_pools = tuple(layer for pool in pools for layer in pool)
    # A layer whose matrices the devices do not divide evenly is divided together with other such layers of the same size, so
    # that fewer shares need padding.
    groups = group_by(in_pools, lambda layer: layer.name if layer.count % devices == 0 else layer.grid[2:])
    most = max(1, exact.max_bytes // max(layer.bytes_each(devices) for layer in layers))
    chunks = plan_chunks([sum(layer.count for layer in group) for group in groups], most, devices)
    route = layers[0].route
    fallback: Route | None = "svd in turn" if route == "gram" and exact.method == "auto" else None
    return Batch(route, fallback, in_pools, tuple(map(tuple, pools)), tuple(map(tuple, groups)), tuple(chunks))


def plan_chunks(counts: Sequence[int], most: int, devices: int) -> list[Chunk]:
    """Divides the matrices of several groups, in their order, into chunks of one length.

    Args:
      counts: how many matrices each group has.
      most: how many matrices a device may solve at once.
      devices: how many devices share the work.
    """
    shares = [math.ceil(count / devices) for count in counts]
    chunks = math.ceil(sum(shares) / most)
    length = math.ceil(sum(shares) / chunks)
    stops = np.cumsum(shares)
    found = []
    for first in range(0, sum(shares), length):
        sections = []
        for group, (stop, share, count) in enumerate(zip(stops, shares, counts, strict=True)):
            begin = int(stop) - share
            start, end = max(first, begin) - begin, min(first + length, int(stop)) - begin
            if start < end:
                sections.append(Section(group, start * devices, min(end * devices, count), end - start))
        found.append(Chunk(tuple(sections), length))
    return found


def group_by(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Lists of the items with equal keys. Groups and items keep their order."""
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())
