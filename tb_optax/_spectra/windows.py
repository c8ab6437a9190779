"""Windows: submatrices of one aspect ratio, whose eigenvalues are pooled into one spectrum for each layer (FARMS)."""

import dataclasses
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of one aspect ratio, taken from every matrix instead of the whole matrix: FARMS.

    The exponent of a spectrum depends on the aspect ratio of the matrix, so layers of different shapes are hard to compare.
    Windows of one shape are comparable (Hu et al., "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias",
    ICML 2025): a layer's spectrum is that of all its windows together.

    - Dense weights: windows of `size` rows (along the smaller side) and `int(size * ratio)` columns, at `grid` equally
      spaced positions along each side. A smaller matrix has the largest possible windows of this ratio.
    - Convolutions: for each position of the kernel's own window, square blocks as large as the smaller side, next to each
      other along the larger side.

    Attributes:
      size: rows of a window. The released programs use 100 for image networks and 2,000 for LLaMA.
      ratio: columns divided by rows, at least 1.
      grid: positions along each side; a matrix has `grid * grid` windows.

    Raises:
      ValueError: a number is out of range.
      TypeError: `size` or `grid` is not a whole number.

    Example:
      >>> import jax, tb_optax
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (256, 1024))}}
      >>> windows = tb_optax.Windows(size=100, grid=9)
      >>> tb_optax.spectra(params, windows=windows)["dense"].shape  # 100 eigenvalues for each of 81 windows
      (8100,)
    """

    size: int = 100
    ratio: float = 1.0
    grid: int = 9

    def __post_init__(self):
        for name, least in (("size", 2), ("grid", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"Windows: {name}={value!r} must be a whole number.")
            if value < least:
                raise ValueError(f"Windows: {name}={value} must be at least {least}.")
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, numbers.Real):
            raise TypeError(f"Windows: ratio={self.ratio!r} must be a number.")
        if not 1 <= self.ratio < np.inf:
            raise ValueError(f"Windows: ratio={self.ratio} must be at least 1: columns divided by rows.")


def check_windows(argument_of: str, windows: Any) -> None:
    if not isinstance(windows, (Windows, type(None))):
        raise TypeError(f"{argument_of}: windows={windows!r} must be a tb_optax.Windows, such as {Windows()}, or None.")


class WindowGrid(NamedTuple):
    """The windows of a matrix: one begins at each of these rows and columns, and each has this size."""

    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]
    rows: int
    columns: int


def window_grid(windows: Windows | None, rows: int, columns: int, *, is_convolution: bool) -> WindowGrid:
    """The windows of a matrix with `rows <= columns`; without `windows`, the whole matrix as its only window."""
    if windows is None:
        return WindowGrid((0,), (0,), rows, columns)
    if is_convolution:
        return WindowGrid((0,), tuple(range(0, columns - rows + 1, rows)), rows, rows)
    height = max(1, min(windows.size, rows, int(columns / windows.ratio)))
    width = min(int(height * windows.ratio), columns)
    return WindowGrid(_starts(rows, height, windows.grid), _starts(columns, width, windows.grid), height, width)


def extract_windows(matrices: Float[Array, "stack n m"], grid: WindowGrid) -> Float[Array, "windows rows columns"]:
    """The windows of each matrix, in the order of their rows, then columns."""
    if (grid.rows, grid.columns) == matrices.shape[1:]:
        return matrices
    indices = lambda starts, size: np.add.outer(np.array(starts), np.arange(size))
    bands = jnp.take(matrices, indices(grid.row_starts, grid.rows), axis=1)
    windows = jnp.take(bands, indices(grid.column_starts, grid.columns), axis=3)
    return jax.lax.transpose(windows, (0, 1, 3, 2, 4)).reshape(-1, grid.rows, grid.columns)


def _starts(size: int, window: int, count: int) -> tuple[int, ...]:
    """Up to `count` equally spaced positions of a window along a side."""
    step = max(1, (size - window) // max(1, count - 1))
    return tuple(range(0, size - window + 1, step))[:count]
