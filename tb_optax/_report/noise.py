"""A layer against noise: what a weight of independent random entries of the layer's shape would have."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from tb_optax._balance.noise import noise_alpha, noise_alpha_deviation
from tb_optax._spectra.noise import noise_edge, noise_largest

# Of 100 matrices of noise, 97 or more are within these bounds (`tests/report/test_as_noise.py`): the edge is exceeded by 1
# of 100, and the stable rank of a 50 x 50 matrix differs by up to 15% from the median.
MOST_DEVIATIONS = 3
STABLE_RANK_WITHIN = 0.2


@dataclasses.dataclass(frozen=True)
class AgainstNoise:
    """How far the spectrum of a layer is from that of noise: a weight of its shape with independent random entries.

    Attributes:
      alpha: of noise of this shape, by the median fit. NaN for other fits.
      deviations: the layer's alpha minus that of noise, in standard deviations of noise's alpha.
      beyond: the number of eigenvalues that exceed the edge of noise's spectrum. The largest eigenvalue of noise exceeds it
        with a probability of 1%.
      stable_rank_ratio: the layer's stable rank over the median of noise's.
      missing: why a number is missing, by its name in the report's rows.
      edge: the edge of noise's spectrum with the layer's mean eigenvalue, in units of the layer's eigenvalues.
    """

    alpha: float = math.nan
    deviations: float = math.nan
    beyond: float = math.nan
    stable_rank_ratio: float = math.nan
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    edge: float = math.nan

    @property
    def is_noise(self) -> bool:
        """Whether the layer cannot be distinguished from noise.

        Three conditions: alpha is within 3 deviations of noise's, no eigenvalue is beyond noise's edge, and the stable rank
        is within 20% of noise's.
        """
        near = abs(self.stable_rank_ratio - 1) <= STABLE_RANK_WITHIN
        return abs(self.deviations) <= MOST_DEVIATIONS and self.beyond == 0 and near


NAMES = ("noise", "noise_deviations", "beyond_noise", "stable_rank_over_noise")
UNKNOWN = AgainstNoise(missing=dict.fromkeys(NAMES, "the layer was not compared with noise"))


def against_noise(
    eigenvalues: Float[np.ndarray, " n"],
    alpha: float,
    sides: tuple[int, int],
    matrices: int = 1,
    *,
    unknown_spectrum: str = "",
    unknown_alpha: str = "",
) -> AgainstNoise:
    """Compares a spectrum with that of noise.

    Args:
      eigenvalues: ascending, of all matrices of the layer.
      alpha: of the layer.
      sides: the smaller and the larger side of its matrices.
      matrices: how many share the spectrum.
      unknown_spectrum: why the spectrum of noise is not known; nothing is compared.
      unknown_alpha: why the alpha of noise is not known; alpha is not compared.
    """
    if unknown_spectrum:
        return AgainstNoise(missing=dict.fromkeys(NAMES, unknown_spectrum))
    total = float(eigenvalues.astype(np.float64).sum())
    if not 0 < total < math.inf:
        return AgainstNoise(missing=dict.fromkeys(NAMES, "the layer has no spectrum"))
    mean = total / len(eigenvalues)
    relative = eigenvalues / mean
    edge = _edge(*sides, matrices)
    beyond = float((relative > edge).sum())
    ratio = noise_largest(*sides, matrices) / float(relative[-1])
    if unknown_alpha:
        return AgainstNoise(math.nan, math.nan, beyond, ratio, dict.fromkeys(NAMES[:2], unknown_alpha), mean * edge)
    expected, deviation = _alpha(*sides, matrices)
    missing = {} if math.isfinite(alpha) else {"noise_deviations": "the layer has no alpha"}
    return AgainstNoise(expected, (alpha - expected) / deviation, beyond, ratio, missing, mean * edge)


_edge = functools.lru_cache(noise_edge)


@functools.lru_cache
def _alpha(rows: int, columns: int, matrices: int) -> tuple[float, float]:
    return noise_alpha(rows, columns, matrices), noise_alpha_deviation(rows, columns, matrices)
