"""Several reports side by side: what changed from one checkpoint to another, or over the steps of a run."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from tb_optax._report.record import LayerRecord
from tb_optax._report.report import Report


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Reports of checkpoints, in order, with short names of their own.

    Attributes:
      reports: of two checkpoints or more.
      labels: what tells their names apart: `"step_100"`, `"step_200"`.
    """

    reports: tuple[Report, ...]
    labels: tuple[str, ...]

    @property
    def layers(self) -> list[str]:
        """Of all reports, in the order of the first that has each."""
        return list(dict.fromkeys(record.layer for report in self.reports for record in report.records))

    def records(self, layer: str) -> list[LayerRecord | None]:
        """Of each report, the record of a layer, if it has it."""
        return [next((each for each in report.records if each.layer == layer), None) for report in self.reports]

    def values(self, layer: str, key: str) -> list[float]:
        """Of each report, a number of a layer's record; NaN where it has none."""
        return [math.nan if record is None else float(record.row()[key]) for record in self.records(layer)]

    def change(self, layer: str, key: str = "alpha") -> float:
        """Of a layer's number, from the first report to the last; NaN if either has none."""
        values = self.values(layer, key)
        return values[-1] - values[0]

    def rows(self) -> list[dict[str, Any]]:
        """A flat record for each layer: `alpha`, `lambda_max`, `stable_rank` and `scale` of each report, and changes."""
        rows = []
        for layer in self.layers:
            shape = next(record.row()["shape"] for record in self.records(layer) if record is not None)
            row: dict[str, Any] = {"layer": layer, "shape": shape}
            for key in ("alpha", "lambda_max", "stable_rank", "scale"):
                row |= {f"{key} {label}": value for label, value in zip(self.labels, self.values(layer, key), strict=True)}
                row[f"{key} change"] = self.change(layer, key)
            rows.append(row)
        return rows


def compare(reports: Sequence[Report]) -> Comparison:
    """Reports side by side.

    Raises:
      ValueError: there are fewer than two.
    """
    if len(reports) < 2:
        raise ValueError(f"compare: {len(reports)} reports; give at least two.")
    return Comparison(tuple(reports), tuple(labels([report.name for report in reports])))


def labels(names: Sequence[str]) -> list[str]:
    """Of each path, what tells it from the others: without the folders that all share at either end."""
    parts = [PurePath(os.path.normpath(name)).parts for name in names]
    if len(set(parts)) < len(parts):
        return [f"{number + 1}: {own[-1]}" for number, own in enumerate(parts)]
    start = _shared(parts)
    end = _shared([own[start:][::-1] for own in parts])
    return ["/".join(own[start : len(own) - end] or own[-1:]) for own in parts]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many of their first parts are the same for all."""
    return next((n for n, each in enumerate(zip(*parts, strict=False)) if len(set(each)) > 1), min(map(len, parts)))
