"""The report on a network: a record for each layer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report import notebook
from tb_optax._report.record import LayerRecord
from tb_optax._report.text import escaped
from tb_optax._spectra.windows import Windows

# What a notebook's table shows; `to_pandas()` has all.
_SHOWN = {
    "layer": "layer",
    "shape": "shape",
    "alpha": "alpha",
    "noise": "noise's alpha",
    "noise_deviations": "deviations",
    "lambda_max": "λ max",
    "stable_rank": "stable rank",
    "beyond_noise": "beyond noise",
    "scale": "scale",
    "mark": "mark",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """Layers, measured: what `report` returns.

    Attributes:
      name: the checkpoint's path; `"params"` for a tree.
      format: the checkpoint's format, for people.
      records: a record for each layer, sorted by name with numbers as numbers; in the order of `layers` if those were given.
      fits: the names of the fits.
      left_out: why other arrays of two or more axes are no layers.
      others: how many arrays are no weights: an optimizer's state, statistics.
      complete: whether all layers were measured: false after an interrupt.
      windows: the windows of which these are spectra; `None` for whole weights.
    """

    name: str
    format: str
    records: tuple[LayerRecord, ...]
    fits: tuple[str, ...]
    left_out: Mapping[Path, str]
    others: int = 0
    complete: bool = True
    windows: Windows | None = None

    def __repr__(self) -> str:
        words = notebook.in_words([record.alpha for record in self.records], [record.mark for record in self.records])
        return f"Report({self.name!r}, {self.format}: {words}{'' if self.complete else ', interrupted'})"

    def _repr_html_(self) -> str:
        return notebook.table(repr(self), self.rows(), _SHOWN) if self.records else f"<p>{escaped(repr(self))}</p>"

    def rows(self) -> list[dict[str, Any]]:
        """A flat record for each layer."""
        return [record.row() for record in self.records]

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
          ImportError: pandas is not installed.
        """
        return notebook.data_frame(self.rows())

    def html(self) -> str:
        """The page that `tb-optax report --html` writes: one document that needs no network."""
        from tb_optax._report.page import page

        return page([self])

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, median, standard deviation, smallest and largest of each number, over the layers that have it."""
        rows = self.rows()
        found = {}
        for key in rows[0] if rows else ():
            values = [row[key] for row in rows if isinstance(row[key], float) and math.isfinite(row[key])]
            if values:
                found[key] = {
                    "mean": float(np.mean(values)),
                    "median": float(np.median(values)),
                    "deviation": float(np.std(values)),
                    "least": min(values),
                    "greatest": max(values),
                }
        return found

    def means(self) -> dict[str, float]:
        """The means over layers by which papers compare models (Martin et al., 2021).

        Of `alpha`, `alpha_weighted`, `log_alpha_norm`, `log_spectral_norm`, `log_norm` and `stable_rank`, each over the
        layers that have it. With windows of `alpha` alone, because the norms are of whole weights.
        """
        rows = [{"alpha": record.alpha} for record in self.records]
        if self.windows is None:
            rows = [
                {"alpha": record.alpha, "alpha_weighted": record.alpha_weighted}
                | record.norms
                | {"stable_rank": record.stable_rank}
                for record in self.records
            ]
        known = {key: [row[key] for row in rows if math.isfinite(row[key])] for key in (rows[0] if rows else ())}
        return {key: float(np.mean(values)) for key, values in known.items() if values}

    def plot(self, layer: str | None = None, *, ax: Any = None) -> Any:
        """Draws alpha by layer, or, given one's name, its spectrum with the fitted tails.

        Args:
          layer: the layer whose spectrum is drawn.
          ax: the `matplotlib.axes.Axes` to draw on; `None` for those of a new figure.

        Returns:
          The `matplotlib.figure.Figure`, which notebooks show and `savefig` writes.

        Raises:
          ValueError: there is no such layer.
          ImportError: matplotlib is not installed.
        """
        from tb_optax._report import figures

        return figures.alphas(self, ax) if layer is None else figures.spectrum(self.record(layer), ax)

    def record(self, layer: str) -> LayerRecord:
        """The record of the layer with this name.

        Raises:
          ValueError: there is no such layer.
        """
        for record in self.records:
            if record.layer == layer:
                return record
        raise ValueError(f"layer={layer!r} is not in the report; it has: {', '.join(each.layer for each in self.records)}.")
