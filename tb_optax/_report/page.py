"""Reports as a page: one document that needs no network, and no scripts but to sort, filter and open."""

import importlib.resources
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tb_optax._report import drawings
from tb_optax._report.changes import LayerChange
from tb_optax._report.comparison import Comparison, side_by_side
from tb_optax._report.drawings import SERIES
from tb_optax._report.record import LayerRecord
from tb_optax._report.report import Report
from tb_optax._report.text import breaking, escaped, kind, number

_WORST = 6
_MANY = 60
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_TITLES = {
    "layer": "layer",
    "shape": "shape",
    "matrices": "matrices",
    "eigenvalues": "eigenvalues",
    "alpha": "alpha",
    "ks_distance": "KS<br>distance",
    "xmin": "tail<br>from",
    "tail": "tail<br>share",
    "standard_error": "standard<br>error",
    "noise": "noise’s<br>alpha",
    "noise_deviations": "deviations<br>from noise",
    "alpha_weighted": "alpha<br>weighted",
    "lambda_max": "λ max",
    "rank": "rank",
    "stable_rank": "stable<br>rank",
    "stable_rank_over_noise": "stable rank<br>over noise’s",
    "beyond_noise": "beyond<br>noise",
    "scale": "scale",
    "mark": "mark",
}
_ALPHA = (
    "Alpha is the exponent of the power law that is fitted to the tail of a layer's spectrum. A smaller alpha means a "
    "heavier tail. The theory of heavy-tailed self-regularization takes that for a better trained layer, and TempBalance "
    "gives layers of larger alpha larger learning rates. Alpha depends on the shape: compare it with the alpha of noise of "
    "the layer's shape. A layer marked <em>as noise</em> cannot be told from random numbers. In a layer marked "
    "<em>poor fit</em> the tail follows no power law, and its alpha says nothing about training."
)


def page(reports: Sequence[Report], changes: Sequence[LayerChange] = ()) -> str:
    """One report, or several side by side, as an HTML document.

    Names in checkpoints may hold anything, and stand in it as text only.
    """
    comparison = side_by_side(reports, changes) if len(reports) > 1 else None
    last = reports[-1]
    names = " · ".join(escaped(label) for label in comparison.labels) if comparison else escaped(last.name)
    headings = "".join(_heading(report, len(reports) > 1) for report in reports)
    sections = [
        _summary(reports, comparison),
        _alphas(last, comparison),
        _worst(last, comparison),
        _kinds(last, comparison),
        _layers(last, comparison),
        _other_spectra(last, comparison),
        _left_out(reports),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="referrer" content="no-referrer">
<title>{names} – weights</title>
<style>
{_resource("page.css")}</style>
</head>
<body>
<header><h1>{names}</h1>{headings}</header>
<main>
{"".join(sections)}
</main>
<dialog class="card" aria-label="Spectrum of a layer"><figure></figure>
<form method="dialog"><button>Close</button></form></dialog>
<footer>Made by tb_optax {escaped(_version())}, <code>tb-optax report</code>.
Eigenvalues are those of WWᵀ on its smaller side.</footer>
<script>
{_resource("page.js")}</script>
</body>
</html>
"""


def _heading(report: Report, several: bool) -> str:
    fits = ", ".join(map(escaped, report.fits))
    name = f"{escaped(report.name)}: " if several else ""
    windows = f" by windows of {report.windows.size} rows" if report.windows else ""
    lines = [f'<p class="quiet">{name}{report.format}, {len(report.records)} layers{windows}; fit: {fits}.</p>']
    if not report.complete:
        lines.append('<p class="warning">It was interrupted: some layers are missing.</p>')
    broken = [record.layer for record in report.records if not record.is_finite]
    if broken:
        names = ", ".join(map(escaped, broken[:5])) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        lines.append(f'<p class="warning">The weights of {names} hold NaN or infinity.</p>')
    return "".join(lines)


def _summary(reports: Sequence[Report], comparison: Comparison | None) -> str:
    statistics = ("mean", "median", "deviation", "least", "greatest")
    rows = []
    for place, report in enumerate(reports):
        prefix = f"{breaking(comparison.labels[place])}: " if comparison else ""
        for key, values in report.summary().items():
            if key.startswith("alpha") or key in ("lambda_max", "stable_rank"):
                cells = "".join(_cell("", values[name]) for name in statistics)
                rows.append(f"<tr><th scope=row>{prefix}{_title(key, ' ')}</th>{cells}</tr>")
    head = "".join(f"<th scope=col>{name}</th>" for name in ("", *statistics))
    table = f"<table><caption>Over all layers</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    means = [report.means() for report in reports]
    lines = [
        f"<tr><th scope=row>{breaking(name)}</th>{''.join(_cell('', own.get(key, math.nan)) for key in means[0])}</tr>"
        for name, own in zip(comparison.labels if comparison else ("mean",), means, strict=True)
    ]
    head = "".join(f"<th scope=col>{key.replace('_', ' ').replace('log', 'log₁₀')}</th>" for key in means[0])
    models = (
        "<table><caption>Means over layers by which papers compare models</caption>"
        f"<thead><tr><th scope=col></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
    cards = "".join(f"{_frame(each)}" for each in (table, models))
    return f'<section class="summary"><h2>Summary</h2>{cards}</section>'


def _frame(content: str, style: str = "") -> str:
    """A card that shows where its content goes on and can be scrolled to."""
    return f'<div class="card frame"><div class="scroll {style}" tabindex="0">{content}</div></div>'


def _alphas(last: Report, comparison: Comparison | None) -> str:
    title = "Alpha by layer"
    if comparison is None:
        layers = [record.layer for record in last.records]
        series = {fit: [float(record.fits[fit].alpha) for record in last.records] for fit in last.fits}
        styles = [f"s{place % SERIES}" for place in range(len(series))]
        drawing = drawings.by_layer(layers, series, styles)
    else:
        courses = {layer: comparison.values(layer, "alpha") for layer in comparison.layers}
        if len(comparison.labels) == 2:
            series = {label: [values[at] for values in courses.values()] for at, label in enumerate(comparison.labels)}
            styles = ["before", "s0"]
            drawing = drawings.by_layer(list(courses), series, styles)
        else:
            title, series, styles = "Alpha over the checkpoints", {}, []
            drawing = drawings.over_checkpoints(comparison.labels, courses)
    keys = "".join(f'<span class="key {style}"></span>{escaped(name)}' for name, style in zip(series, styles, strict=True))
    shown = f'<p class="quiet">{keys}</p>' if len(series) > 1 else ""
    return _changed(comparison) + f"<section><h2>{title}</h2><p>{_ALPHA}</p>{shown}{_frame(drawing, 'figure')}</section>"


def _changed(comparison: Comparison | None) -> str:
    """How far each weight moved."""
    if comparison is None or not comparison.changes:
        return ""
    rows = comparison.rows()
    values = {"|ΔW| / |W|": [row["relative_change"] for row in rows]}
    drawing = drawings.by_layer(comparison.layers, values, ["s0"], "|ΔW| / |W|")
    same = sum(change.is_unchanged for change in comparison.changes.values())
    words = (
        "The Frobenius norm of each weight's change over that of the weight before. "
        f"{same} of {len(comparison.changes)} layers are unchanged in every entry. The table has the rank of ΔW: the number "
        "of its eigenvalues beyond the edge of noise."
    )
    return f"<section><h2>What changed</h2><p>{words}</p>{_frame(drawing, 'figure')}</section>"


def _worst_records(report: Report) -> list[LayerRecord]:
    known = [record for record in report.records if math.isfinite(record.alpha)]
    return sorted(known, key=lambda record: -record.alpha)[:_WORST]


def _worst(last: Report, comparison: Comparison | None) -> str:
    of = f" of {escaped(comparison.labels[-1])}" if comparison else ""
    places = _places(last, comparison)
    cards = "".join(
        f'<figure class="card" id="layer-{places[record.layer]}">{_figure(record, comparison)}</figure>'
        for record in _worst_records(last)
    )
    return f'<section><h2>Layers of greatest alpha{of}</h2><div class="cards">{cards}</div></section>' if cards else ""


def _places(last: Report, comparison: Comparison | None) -> dict[str, int]:
    """Of each layer, its place in the table's first order, by which table, drawing and spectra know it."""
    layers = comparison.layers if comparison else [record.layer for record in last.records]
    return {layer: place for place, layer in enumerate(layers)}


def _figure(record: LayerRecord, comparison: Comparison | None) -> str:
    """The spectrum of a layer; of two checkpoints, with the first's outline."""
    before = comparison.records(record.layer)[0] if comparison and len(comparison.labels) == 2 else None
    laws = "; ".join(
        f"{escaped(fit)}: alpha {law.alpha:.2f}, distance {law.ks_distance:.3f}, tail {record.tail(fit):.0%}"
        for fit, law in record.fits.items()
        if math.isfinite(law.alpha)
    )
    shape = record.row()["shape"].replace("x", "×")
    outline = f"; outline: {escaped(comparison.labels[0])}" if comparison and before else ""
    reasons = "".join(f"; {escaped(reason)}" for reason in dict.fromkeys(record.reasons.values()))
    mark = f"; <strong>{record.mark}</strong>" if record.mark else ""
    if comparison and (change := comparison.changes.get(record.layer)):
        moved = f"|ΔW| / |W| {number(change.relative)}, rank of ΔW {change.rank}"
        outline += f"; {'<strong>unchanged</strong>' if change.is_unchanged else moved}"
    caption = f"<figcaption>{shape}{'; ' if laws else ''}{laws}{outline}{mark}{reasons}</figcaption>"
    return (
        f"<h3>{breaking(record.layer)}</h3>{caption}{drawings.spectrum(record, before)}{_legend(record, comparison, before)}"
    )


def _legend(record: LayerRecord, comparison: Comparison | None, before: LayerRecord | None) -> str:
    """What the parts of a spectrum's figure are."""
    keys = [("bars", f"eigenvalues{f' in {escaped(comparison.labels[-1], 40)}' if comparison else ''}")]
    if comparison and before:
        keys.append(("outline", f"in {escaped(comparison.labels[0], 40)}"))
    for place, (fit, law) in enumerate(record.fits.items()):
        if math.isfinite(law.alpha):
            keys += [
                (f"line s{place % SERIES}", f"fitted tail, {escaped(fit)}"),
                (f"dots s{place % SERIES}", "its threshold"),
            ]
    return '<p class="legend">' + "".join(f'<span class="swatch {style}"></span>{words}' for style, words in keys) + "</p>"


def _kinds(last: Report, comparison: Comparison | None) -> str:
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
        cells = "".join(_cell("", value) for value in values)
        lines.append(f'<tr data-kind="{escaped(name)}"><th scope="row">{breaking(name)}</th>{cells}</tr>')
    head = "".join(f"<th scope=col>{title}</th>" for title in ("", *titles))
    caption = "Layers whose names differ by their numbers only."
    table = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<section id="kinds"><h2>Kinds of layers</h2>{_frame(table)}</section>'


def _over(function: Callable[[list[float]], Any], values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(function(known)) if known else math.nan


def _layers(last: Report, comparison: Comparison | None) -> str:
    measured = {record.layer: record for record in last.records}
    if comparison is None:
        rows = last.rows()
        idle = {"reasons"} | ({"matrices"} if all(row["matrices"] == 1 for row in rows) else set())
        columns = [(key, _title(key)) for key in rows[0] if key not in idle]
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
    return f'<section id="layers"><h2>All layers</h2>{tools}{_frame(table)}</section>'


def _compared(comparison: Comparison) -> list[tuple[str, str]]:
    """Of two checkpoints all numbers; of more, alpha."""
    keys = ("alpha", "lambda_max", "stable_rank", "scale") if len(comparison.labels) == 2 else ("alpha",)
    columns = [("layer", "layer"), ("shape", "shape")]
    for key in keys:
        columns += [(f"{key} {label}", f"{_title(key, ' ')}<br>{escaped(label, 40)}") for label in comparison.labels]
        columns.append((f"{key} change", f"{_title(key, ' ')}<br>change"))
    if comparison.changes:
        columns[2:2] = [("relative_change", "|ΔW|<br>of |W|"), ("rank_of_change", "rank<br>of ΔW"), ("mark", "mark")]
    return columns


def _row(row: Mapping[str, Any], columns: Sequence[tuple[str, str]], place: int, record: LayerRecord | None) -> str:
    name = breaking(row["layer"])
    linked = f'<a href="#layer-{place}">{name}</a>' if record else name
    reasons = record.reasons if record else {}
    cells = "".join(_cell(key, row[key], _reason(key, reasons)) for key, _ in columns[1:])
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


def _cell(key: str, value: Any, reason: str = "") -> str:
    title = f' title="{escaped(reason)}"' if reason else ""
    if isinstance(value, str):
        shown = value.replace("x", "×") if key == "shape" else value
        return f'<td class="words"{title if key == "mark" else ""}>{escaped(shown)}</td>'
    if not math.isfinite(value):
        return f'<td data-value="NaN"{title}>–</td>'
    shown = f"{value:,}" if isinstance(value, int) else number(value, "+" if key.endswith(" change") else "")
    return f'<td data-value="{value:.6g}">{shown}</td>'


def _title(key: str, between: str = "<br>") -> str:
    column = next(name for name in sorted(_TITLES, key=len, reverse=True) if key == name or key.startswith(name + "_"))
    fit = key[len(column) + 1 :]
    return _TITLES[column].replace("<br>", between) + (f"{between}{escaped(fit)}" if fit else "")


def _other_spectra(last: Report, comparison: Comparison | None) -> str:
    shown = {record.layer for record in _worst_records(last)}
    places = _places(last, comparison)
    details = "".join(
        f'<details class="card" id="layer-{places[record.layer]}"><summary>{breaking(record.layer)}</summary>'
        f"<figure>{_figure(record, comparison)}</figure></details>"
        for record in last.records
        if record.layer not in shown
    )
    return f"<section><h2>Other spectra</h2>{details}</section>" if details else ""


def _left_out(reports: Sequence[Report]) -> str:
    reasons = {path: reason for report in reports for path, reason in report.left_out.items()}
    others = sum(report.others for report in reports)
    if not reasons and not others:
        return ""
    lines = "".join(f"<dt>{escaped(path)}</dt><dd>{escaped(reason)}</dd>" for path, reason in reasons.items())
    unread = f"<p>Not read: {others} arrays of an optimizer's state and the like.</p>" if others else ""
    inner = (
        f"<details><summary>Arrays of two axes or more: {len(reasons)}</summary><dl>{lines}</dl></details>" if lines else ""
    )
    return f"<section><h2>Left out</h2>{unread}{inner}</section>"


def _resource(name: str) -> str:
    return (importlib.resources.files("tb_optax._report") / name).read_text("utf-8")


def _version() -> str:
    from tb_optax import __version__

    return __version__
