"""What changed from one checkpoint to another, weight by weight."""

import dataclasses
import functools
import math
from collections.abc import Generator
from typing import Any

import numpy as np
from jaxtyping import Float

from tb_optax._layers.layer import Layer, Path, kernel_shape
from tb_optax._report.layer_spectra import spectra_in_turn
from tb_optax._report.measuring import Measuring
from tb_optax._spectra.noise import noise_edge, noise_spectrum
from tb_optax._spectra.options import DEFAULT_SOLVER


@dataclasses.dataclass(frozen=True)
class LayerChange:
    """How the weight of a layer changed.

    Attributes:
      layer: its name, as in the reports.
      relative: the Frobenius norm of the change over that of the weight before, `|ΔW| / |W|`. NaN if the weight was zero or
        either is not finite.
      rank: the number of eigenvalues of `ΔW ΔWᵀ` beyond the edge of noise: the rank of what was learned. Noise is scaled to
        the median eigenvalue, so a change of low rank has exactly its rank.
      eigenvalues: of `ΔW ΔWᵀ`, ascending, as `tb_optax.spectra` has them.
      is_unchanged: whether the two weights are equal in every entry.
      edge: the edge of noise that has the median eigenvalue of the change: `rank` counts the eigenvalues beyond it.
    """

    layer: str
    relative: float
    rank: int
    eigenvalues: Float[np.ndarray, " n"]
    is_unchanged: bool
    edge: float = math.nan

    def __repr__(self) -> str:
        change = "unchanged" if self.is_unchanged else f"|ΔW| / |W| = {self.relative:.3g}, rank {self.rank}"
        return f"LayerChange({self.layer!r}, {change})"

    def row(self) -> dict[str, Any]:
        """One flat record."""
        known = bool(np.isfinite(self.eigenvalues[-1]))
        return {
            "layer": self.layer,
            "relative_change": self.relative,
            "rank_of_change": self.rank if known else math.nan,
            "unchanged": self.is_unchanged,
        }


def shared_layers(before: Measuring, after: Measuring) -> list[Layer]:
    """The layers that both have in the same shape."""
    shapes = {layer.kernel: after.shapes[layer.kernel].shape for layer in after.layers}
    return [layer for layer in before.layers if shapes.get(layer.kernel) == before.shapes[layer.kernel].shape]


def changes(before: Measuring, after: Measuring) -> Generator[tuple[LayerChange, ...]]:
    """The change of each layer that both have in the same shape, and of each slice of a stack.

    Singular values are computed, because a Gram product does not resolve a change of low rank.
    """
    layers = shared_layers(before, after)
    by_kernel = {layer.kernel: layer for layer in layers}
    sizes: dict[Path, tuple[Any, Any]] = {}

    def difference(path: Path) -> Any:
        old, new = (_wide(each.weight(path)) for each in (before, after))
        axes = kernel_shape(by_kernel[path], old.shape)
        others = tuple(axis for axis in range(old.ndim) if axis not in axes.layer_axes)
        norm = lambda array: np.asarray((array * array).sum(axis=others)).reshape(-1) ** 0.5
        change = new - old
        is_zero = np.asarray((change == 0).all(axis=others)).reshape(-1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            sizes[path] = norm(change) / norm(old), is_zero
        return change

    spectra = spectra_in_turn(layers, before.shapes, difference, DEFAULT_SOLVER, None)
    for layer, found in zip(layers, spectra, strict=True):
        relative, unchanged = sizes.pop(layer.kernel)
        of_layer = []
        for place, of in enumerate(before.slices(layer)):
            size = 0.0 if unchanged[place] else float(relative[place]) if np.isfinite(relative[place]) else math.nan
            edge = edge_of_noise(found[place], of.sides, of.matrices)
            rank = int((found[place] > edge).sum())
            of_layer.append(LayerChange(of.name, size, rank, found[place], bool(unchanged[place]), edge))
        yield tuple(of_layer)


def edge_of_noise(eigenvalues: Float[np.ndarray, " n"], sides: tuple[int, int], matrices: int = 1) -> float:
    """The edge of noise whose median eigenvalue is that of these."""
    return _edge(*sides, matrices) / _median_of_noise(*sides, matrices) * float(np.median(eigenvalues))


def _wide(array: Any) -> Any:
    return array.astype(np.promote_types(array.dtype, np.float32))


_edge = functools.lru_cache(noise_edge)


@functools.lru_cache
def _median_of_noise(rows: int, columns: int, matrices: int) -> float:
    return float(np.median(noise_spectrum(rows, columns, rows * matrices)))
