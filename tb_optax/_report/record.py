"""The numbers of one layer: how far it is from noise, and why a number is missing or means nothing."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from tb_optax._balance.fits import PowerLaw
from tb_optax._layers.layer import Path
from tb_optax._report.layer_spectra import Unsquarable
from tb_optax._report.noise import UNKNOWN, AgainstNoise

# The KS distance of the median fit from noise is 0.16 to 0.25 for 50 to 512 rows (`tests/report/test_as_noise.py`).
MOST_DISTANCE = 0.3
# The first twentieth of a tail spans less than a factor of 1.6 in noise of any shape.
_START_OF_TAIL = 0.05
_GAP = 10

Mark = Literal["", "as noise", "poor fit", "no fit"]


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """The numbers of one layer; each layer of a stack has its own record.

    Attributes:
      layer: its name, with its place in a stack: `"blocks/mlp[3]"`.
      kernel: the path of its weight.
      shape: of the weight, without the axes of a stack.
      matrices: how many share the spectrum: the places of a convolution's window.
      fits: power laws of the spectrum's tail, by the name of the fit.
      eigenvalues: the spectrum, ascending, as `tb_optax.spectra` has it up to rounding.
      scale: the learning-rate scale that TempBalance would assign by the first fit's alpha, if all layers of the report
        were balanced; NaN where alpha is.
      noise: how far the spectrum is from that of a weight of independent random entries of this shape.
      no_rank: why the spectrum does not tell the numerical rank, if it does not.
      too: `"large"` or `"small"` if the squares of the weight's finite, nonzero entries overflow or vanish in float32.
    """

    layer: str
    kernel: Path
    shape: tuple[int, ...]
    matrices: int
    fits: Mapping[str, PowerLaw]
    eigenvalues: Float[np.ndarray, " n"]
    scale: float = math.nan
    noise: AgainstNoise = UNKNOWN
    no_rank: str = ""
    too: Unsquarable = ""

    def __repr__(self) -> str:
        mark = f", {self.mark}" if self.mark else ""
        return f"LayerRecord({self.layer!r}, {'x'.join(map(str, self.shape))}, alpha {self.alpha:.2f}{mark})"

    @property
    def alpha(self) -> float:
        """Alpha of the first fit."""
        return float(next(iter(self.fits.values())).alpha)

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[-1])

    @property
    def stable_rank(self) -> float:
        """The sum of the eigenvalues over the largest: the squared Frobenius norm over the squared spectral norm."""
        total = float(self.eigenvalues.astype(np.float64).sum())
        return total / self.lambda_max if self.lambda_max > 0 else math.nan

    @property
    def alpha_weighted(self) -> float:
        """`alpha log10(λ_max)` by the first fit, as in `tb_optax.metrics.alpha_weighted`."""
        return self.alpha * self._log10(self.lambda_max)

    @property
    def rank(self) -> float:
        """The numerical rank of all matrices together: how many singular values are not zero within rounding of float32.

        NaN where the small singular values were not resolved.
        """
        known = self.is_finite and not self.too and not self.no_rank
        return int((self.eigenvalues > 0).sum()) if known else math.nan

    @property
    def norms(self) -> dict[str, float]:
        """Logarithms of norms to the base 10, which papers average over layers to compare models.

        `log_norm` is of the squared Frobenius norm, `log_spectral_norm` of the squared spectral norm, and `log_alpha_norm`
        of `Σ λ^alpha`, with the alpha of the first fit.
        """
        positive = self.eigenvalues[self.eigenvalues > 0].astype(np.float64)
        if not len(positive) or not math.isfinite(self.lambda_max):
            return dict.fromkeys(("log_norm", "log_spectral_norm", "log_alpha_norm"), math.nan)
        relative = (positive / positive[-1]) ** self.alpha
        return {
            "log_norm": self._log10(float(positive.sum())),
            "log_spectral_norm": self._log10(self.lambda_max),
            "log_alpha_norm": self.alpha_weighted + float(np.log10(relative.sum())),
        }

    @property
    def is_finite(self) -> bool:
        """Whether its weight holds neither a NaN nor an infinity."""
        return math.isfinite(self.lambda_max) or self.too == "large"

    @property
    def standard_error(self) -> float:
        """`(alpha - 1) / √k` by the first fit, with `k` eigenvalues in the tail: as for independent numbers."""
        return (self.alpha - 1) / math.sqrt(max(self._tail_length(next(iter(self.fits))), 1))

    @property
    def mark(self) -> Mark:
        """`"as noise"` where the layer cannot be distinguished from noise; `"poor fit"` or `"no fit"`; or empty.

        A layer is as noise if its alpha is within 3 deviations of that of noise of its shape, no eigenvalue is beyond the
        edge of noise, and its stable rank is within 20% of that of noise. A fit is poor if its KS distance is above 0.3, or
        if the first twentieth of its tail spans more than a factor of 10: then its threshold lies in a gap of the spectrum.
        There is no fit if the rank is below the length of the tail, or the eigenvalues in it are equal.
        """
        if not math.isfinite(self.alpha):
            return "no fit"
        if self.noise.is_noise:
            return "as noise"
        return "poor fit" if self._poor_fit() else ""

    @property
    def reasons(self) -> dict[str, str]:
        """Why the layer is marked (`"mark"`), and why numbers are missing, by their names in `row`."""
        found: dict[str, str] = {}
        if self.mark == "as noise":
            found["mark"] = "alpha, the largest eigenvalue and the stable rank are those of noise of this shape"
        elif self.mark:
            found["mark"] = self._poor_fit() or self._no_fit(next(iter(self.fits)))
        for number, fit in enumerate(self.fits):
            if reason := self._no_fit(fit):
                found["alpha" + (f"_{fit}" if number else "")] = reason
        if not 0 < self.lambda_max < math.inf:
            found["stable_rank"] = self._no_spectrum()
        if math.isnan(self.rank):
            found["rank"] = self.no_rank or self._no_spectrum()
        return found | dict(self.noise.missing)

    def tail(self, fit: str) -> float:
        """The share of the eigenvalues that a fit takes for the tail; NaN where it found none."""
        return self._tail_length(fit) / len(self.eigenvalues) if math.isfinite(self.fits[fit].alpha) else math.nan

    def row(self) -> dict[str, Any]:
        """One flat record: `alpha`, `ks_distance`, `xmin` and `tail` of the first fit; `alpha_NAME`, ... of the others."""
        row = {
            "layer": self.layer,
            "shape": "x".join(map(str, self.shape)),
            "matrices": self.matrices,
            "eigenvalues": len(self.eigenvalues),
        }
        for number, (name, law) in enumerate(self.fits.items()):
            numbers = {"alpha": law.alpha, "ks_distance": law.ks_distance, "xmin": law.xmin, "tail": self.tail(name)}
            row |= {key + (f"_{name}" if number else ""): float(value) for key, value in numbers.items()}
        return row | {
            "standard_error": self.standard_error,
            "noise": self.noise.alpha,
            "noise_deviations": self.noise.deviations,
            "alpha_weighted": self.alpha_weighted,
            "lambda_max": self.lambda_max,
            "rank": self.rank,
            "stable_rank": self.stable_rank,
            "stable_rank_over_noise": self.noise.stable_rank_ratio,
            "beyond_noise": int(self.noise.beyond) if math.isfinite(self.noise.beyond) else math.nan,
            "scale": self.scale,
            "mark": self.mark,
            "reasons": "; ".join(f"{key}: {reason}" for key, reason in self.reasons.items()),
        }

    @staticmethod
    def _log10(value: float) -> float:
        return math.log10(value) if 0 < value < math.inf else math.nan

    def _tail_length(self, fit: str) -> int:
        return int((self.eigenvalues >= self.fits[fit].xmin).sum())

    def _poor_fit(self) -> str:
        """Why the first fit is poor, although it has an alpha; empty if it is not."""
        fit, law = next(iter(self.fits.items()))
        if not math.isfinite(law.alpha):
            return ""
        if law.ks_distance > MOST_DISTANCE:
            return f"the KS distance is above {MOST_DISTANCE}: the tail follows no power law"
        tail = self.eigenvalues[-self._tail_length(fit) :]
        span = float(tail[math.ceil(_START_OF_TAIL * len(tail))] / law.xmin) if len(tail) > 1 and law.xmin > 0 else 1.0
        return f"the threshold lies in a gap: the first 5% of the tail span a factor above {_GAP}" if span > _GAP else ""

    def _no_fit(self, fit: str) -> str:
        """Why a fit has no alpha; empty if it has one."""
        if math.isfinite(self.fits[fit].alpha):
            return ""
        if not 0 < self.lambda_max < math.inf:
            return self._no_spectrum()
        positive = int((self.eigenvalues > 0).sum())
        if positive == len(self.eigenvalues):
            return "no tail has a spread: the eigenvalues are equal"
        return f"only {positive} of {len(self.eigenvalues)} eigenvalues are above zero: the rank is below the tail"

    def _no_spectrum(self) -> str:
        if self.too:
            return f"the weight is too {self.too} to be squared in float32"
        return "all eigenvalues are zero" if self.lambda_max == 0 else "the weight holds NaN or infinity"
