"""Windows: of every matrix, pieces of one aspect ratio, whose eigenvalues are pooled."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Windows:
    """Pieces of one aspect ratio, cut out of every matrix in place of the whole: FARMS.

    The exponent of a spectrum depends on the matrix's aspect ratio, so that layers of other shapes are not comparable.
    Windows of one shape are (Hu et al., "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias", ICML 2025):
    a layer's spectrum is that of all its windows together.

    - Dense: windows of `rows` rows, along the smaller side, and `int(rows * ratio)` columns, at `places` equally spaced
      places along each side. Of a matrix that is smaller, the largest window of the ratio.
    - Convolution: of each place of its window, square blocks as large as the smaller side, one behind another along the
      larger one.

    Attributes:
      rows: of a window. The released programs have 100 for image networks and 2,000 for LLaMA.
      ratio: columns over rows, at least 1.
      places: along each side, so that there are as many windows squared.

    Raises:
      ValueError: a number is out of range.
      TypeError: `rows` or `places` is not a whole number.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (256, 1024))}}
      >>> windows = tb_optax.Solver(windows=tb_optax.Windows(rows=100, places=9))
      >>> tb_optax.spectra(params, solver=windows)["dense"].shape  # 100 eigenvalues of each of 81 windows
      (8100,)
    """

    rows: int = 100
    ratio: float = 1.0
    places: int = 9

    def __post_init__(self):
        for name, least in (("rows", 2), ("places", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Windows: {name}={value!r} must be a whole number.")
            if value < least:
                raise ValueError(f"Windows: {name}={value} must be at least {least}.")
        if not 1 <= self.ratio < np.inf:
            raise ValueError(f"Windows: ratio={self.ratio} must be at least 1: columns over rows.")


class Grid(NamedTuple):
    """Where the windows of a matrix begin, at each of these rows with each of these columns, and how large they are."""

    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]
    rows: int
    columns: int

    @property
    def pieces(self) -> int:
        return len(self.row_starts) * len(self.column_starts)


def grid_of(windows: Windows | None, rows: int, columns: int, *, is_convolution: bool) -> Grid:
    """The windows of a matrix whose smaller side is its rows; without windows, the whole."""
    if windows is None:
        return Grid((0,), (0,), rows, columns)
    if is_convolution:
        return Grid((0,), tuple(range(0, columns - rows + 1, rows)), rows, rows)
    own = max(1, min(windows.rows, rows, int(columns / windows.ratio)))
    wide = min(int(own * windows.ratio), columns)
    return Grid(_starts(rows, own, windows.places), _starts(columns, wide, windows.places), own, wide)


def cut_out(matrices: Float[Array, "stack n m"], grid: Grid) -> Float[Array, "pieces r c"]:
    """The windows of each matrix, those of one row of windows after another."""
    if (grid.rows, grid.columns) == matrices.shape[1:]:
        return matrices
    index = lambda starts, size: np.add.outer(np.array(starts), np.arange(size))
    bands = jnp.take(matrices, index(grid.row_starts, grid.rows), axis=1)
    pieces = jnp.take(bands, index(grid.column_starts, grid.columns), axis=3)
    return jax.lax.transpose(pieces, (0, 1, 3, 2, 4)).reshape(-1, grid.rows, grid.columns)


def _starts(size: int, own: int, places: int) -> tuple[int, ...]:
    """As many as there are places, or fit at steps of 1."""
    step = max(1, (size - own) // max(1, places - 1))
    return tuple(range(0, size - own + 1, step))[:places]
