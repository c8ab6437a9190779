"""Reports as programs read them: JSON and CSV."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from tb_optax._report.changes import LayerChange
from tb_optax._report.report import Report


def as_json(reports: Sequence[Report], changes: Sequence[LayerChange] = ()) -> str:
    """All there is of each report but the spectra.

    `{"tb_optax": version, "reports": [{"checkpoint": ..., "layers": [...], ...}], "changes": [{"layer": ...}, ...]}`; what
    is NaN or infinite is null. Changes are from the first of two checkpoints to the second.
    """
    from tb_optax import __version__

    content = {"tb_optax": __version__, "reports": [_content(report) for report in reports]}
    if len(reports) == 2:
        content["changes"] = [change.row() for change in changes]
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _content(report: Report) -> dict[str, Any]:
    return {
        "checkpoint": report.name,
        "format": report.format,
        "complete": report.complete,
        "windows": None if report.windows is None else dataclasses.asdict(report.windows),
        "fits": list(report.fits),
        "layers": [{"kernel": record.kernel} | row for record, row in zip(report.records, report.rows(), strict=True)],
        "summary": report.summary(),
        "means": report.means(),
        "left_out": dict(report.left_out),
        "other_arrays": report.others,
    }


def as_csv(reports: Sequence[Report], changes: Sequence[LayerChange] = ()) -> str:
    """A line for each layer of each report, with the checkpoint it is of; what is NaN or infinite is empty.

    The lines of the second of two checkpoints have the changes from the first.
    """
    rows = [{"checkpoint": report.name} | row for report in reports for row in report.rows()]
    changed = {change.layer: change.row() for change in changes}
    for row in rows[len(reports[0].records) :]:
        row |= changed.get(row["layer"], {})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in _finite(row).items()} for row in rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
