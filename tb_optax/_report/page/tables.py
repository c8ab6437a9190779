"""The page's tables of layers: a line for each kind, where there are many, and one for each layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tb_optax._report.comparison import Comparison
from tb_optax._report.page.markup import cell, frame, title_of
from tb_optax._report.record import LayerRecord
from tb_optax._report.report import Report
from tb_optax._report.text import breaking, escaped, kind

_MANY = 60


def kinds(last: Report, comparison: Comparison | None) -> str:
    """A line for each kind of layer, where there are many layers of few kinds: those whose names differ by numbers only."""
    groups: dict[str, list[LayerRecord]] = {}
    for record in last.records:
        groups.setdefault(kind(record.layer), []).append(record)
    if len(last.records) < _MANY or len(groups) > len(last.records) / 3:
        return ""
    changes = comparison.changes if comparison else {}
    titles = ["layers", "mean<br>alpha", "least", "greatest", "mean<br>deviations", "as noise", "poor fit"]
    titles += ["mean<br>|ΔW| of |W|", "greatest<br>rank of ΔW", "unchanged"] if changes else []
    lines = []
    for name, records in groups.items():
        alphas = [record.alpha for record in records]
        marks = [record.mark for record in records]
        own = [changes[record.layer] for record in records if record.layer in changes]
        values: list[Any] = [len(records), _over(np.mean, alphas), _over(min, alphas), _over(max, alphas)]
        values += [_over(np.mean, [record.noise.deviations for record in records])]
        values += [marks.count("as noise"), marks.count("poor fit")]
        if changes:
            values += [_over(np.mean, [change.relative for change in own]), max((change.rank for change in own), default=0)]
            values += [sum(change.is_unchanged for change in own)]
        cells = "".join(cell("", value) for value in values)
        lines.append(f'<tr data-kind="{escaped(name)}"><th scope="row">{breaking(name)}</th>{cells}</tr>')
    head = "".join(f"<th scope=col>{title}</th>" for title in ("", *titles))
    caption = "Layers whose names differ by their numbers only."
    table = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<section id="kinds"><h2>Kinds of layers</h2>{frame(table)}</section>'


def _over(function: Callable[[list[float]], Any], values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(function(known)) if known else math.nan


def layers(last: Report, comparison: Comparison | None) -> str:
    measured = {record.layer: record for record in last.records}
    if comparison is None:
        rows = last.rows()
        idle = {"reasons"} | ({"matrices"} if all(row["matrices"] == 1 for row in rows) else set())
        keys = [key for key in rows[0] if key not in idle]
        keys.insert(keys.index("alpha"), keys.pop(keys.index("mark")))  # where no narrow window hides it
        columns = [(key, title_of(key)) for key in keys]
        caption = "A layer's name opens its spectrum. Hold the pointer over a mark or a dash to see its reason."
    else:
        rows, columns = comparison.rows(), _compared(comparison)
        caption = f"A layer's name opens its spectrum in {escaped(comparison.labels[-1])}."
    head = "".join(
        f'<th scope="col"{" class=words" if key in ("shape", "mark") else ""}><button type="button">{title}</button></th>'
        for key, title in columns
    )
    lines = "".join(_row(row, columns, place, measured.get(row["layer"])) for place, row in enumerate(rows))
    table = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    tools = '<p class="tools"><input id="filter" type="search" placeholder="Filter by name" aria-label="Filter by name"></p>'
    return f'<section id="layers"><h2>All layers</h2>{tools}{frame(table)}</section>'


def _compared(comparison: Comparison) -> list[tuple[str, str]]:
    """The columns of a comparison: all numbers of two checkpoints, or alpha of more."""
    keys = ("alpha", "lambda_max", "stable_rank", "scale") if len(comparison.labels) == 2 else ("alpha",)
    columns = [("layer", "layer"), ("shape", "shape")]
    for key in keys:
        columns += [(f"{key} {label}", f"{title_of(key, ' ')}<br>{escaped(label, 40)}") for label in comparison.labels]
        columns.append((f"{key} change", f"{title_of(key, ' ')}<br>change"))
    if comparison.changes:
        columns[2:2] = [("relative_change", "|ΔW|<br>of |W|"), ("rank_of_change", "rank<br>of ΔW"), ("mark", "mark")]
    return columns


def _row(row: Mapping[str, Any], columns: Sequence[tuple[str, str]], place: int, record: LayerRecord | None) -> str:
    name = breaking(row["layer"])
    linked = f'<a href="#layer-{place}">{name}</a>' if record else name
    reasons = record.reasons if record else {}
    cells = "".join(cell(key, row[key], _reason(key, reasons)) for key, _ in columns[1:])
    return f'<tr data-place="{place}"><th scope="row">{linked}</th>{cells}</tr>'


def _reason(key: str, reasons: Mapping[str, str]) -> str:
    """Why a number is missing: what a fit finds is missing with its alpha."""
    if key in reasons:
        return reasons[key]
    for of_fit in ("ks_distance", "xmin", "tail"):
        if key.startswith(of_fit):
            return reasons.get("alpha" + key.removeprefix(of_fit), "")
    return reasons.get(
        {"standard_error": "alpha", "alpha_weighted": "alpha", "scale": "alpha", "lambda_max": "stable_rank"}.get(key, ""),
        "",
    )
