"""The page's sections on all layers together: a summary, alpha by layer, how far each weight moved."""

import math
from collections.abc import Sequence

from tb_optax._report.comparison import Comparison
from tb_optax._report.page import drawings
from tb_optax._report.page.drawings import SERIES
from tb_optax._report.page.markup import cell, frame, title_of
from tb_optax._report.report import Report
from tb_optax._report.text import breaking, escaped

_ALPHA = (
    "Alpha is the exponent of the power law that is fitted to the tail of a layer's spectrum. A smaller alpha means a "
    "heavier tail. The theory of heavy-tailed self-regularization takes that for a better trained layer, and TempBalance "
    "gives layers of larger alpha larger learning rates. Alpha depends on the shape: compare it with the alpha of noise of "
    "the layer's shape. A layer marked <em>as noise</em> has learned nothing that its spectrum shows. In a layer marked "
    "<em>poor fit</em> the tail follows no power law, and its alpha says nothing about training."
)


def summary(reports: Sequence[Report], comparison: Comparison | None) -> str:
    statistics = ("mean", "median", "deviation", "least", "greatest")
    rows = []
    for place, report in enumerate(reports):
        prefix = f"{breaking(comparison.labels[place])}: " if comparison else ""
        for key, values in report.summary().items():
            if key.startswith("alpha") or key in ("lambda_max", "stable_rank"):
                cells = "".join(cell("", values[name]) for name in statistics)
                rows.append(f"<tr><th scope=row>{prefix}{title_of(key, ' ')}</th>{cells}</tr>")
    head = "".join(f"<th scope=col>{name}</th>" for name in ("", *statistics))
    table = f"<table><caption>Over all layers</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    means = [report.means() for report in reports]
    lines = [
        f"<tr><th scope=row>{breaking(name)}</th>{''.join(cell('', own.get(key, math.nan)) for key in means[0])}</tr>"
        for name, own in zip(comparison.labels if comparison else ("mean",), means, strict=True)
    ]
    head = "".join(f"<th scope=col>{key.replace('_', ' ').replace('log', 'log₁₀')}</th>" for key in means[0])
    models = (
        "<table><caption>Means over layers by which papers compare models</caption>"
        f"<thead><tr><th scope=col></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
    cards = "".join(f"{frame(each)}" for each in (table, models))
    return f'<section class="summary"><h2>Summary</h2>{cards}</section>'


def alphas(last: Report, comparison: Comparison | None) -> str:
    title = "Alpha by layer"
    noise: list[float] = []
    if comparison is None:
        layers = [record.layer for record in last.records]
        series = {fit: [float(record.fits[fit].alpha) for record in last.records] for fit in last.fits}
        styles = [f"s{place % SERIES}" for place in range(len(series))]
        noise = [record.noise.alpha for record in last.records]
        drawing = drawings.by_layer(layers, series, styles, noise=noise)
    else:
        courses = {layer: comparison.values(layer, "alpha") for layer in comparison.layers}
        if len(comparison.labels) == 2:
            series = {label: [values[at] for values in courses.values()] for at, label in enumerate(comparison.labels)}
            styles = ["before", "s0"]
            noise_of = {record.layer: record.noise.alpha for record in last.records}
            noise = [noise_of.get(layer, math.nan) for layer in courses]
            drawing = drawings.by_layer(list(courses), series, styles, noise=noise)
        else:
            title, series, styles = "Alpha over the checkpoints", {}, []
            drawing = drawings.over_checkpoints(comparison.labels, courses)
    keys = [f'<span class="key {style}"></span>{escaped(name)}' for name, style in zip(series, styles, strict=True)]
    if any(map(math.isfinite, noise)):
        keys.append('<span class="key noise"></span>noise of the layer’s shape')
    shown = f'<p class="quiet">{"".join(keys)}</p>' if len(keys) > 1 else ""
    return _changed(comparison) + f"<section><h2>{title}</h2><p>{_ALPHA}</p>{shown}{frame(drawing, 'figure')}</section>"


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
        "of its eigenvalues beyond the edge of noise. The spectrum of each ΔW is below that of its layer."
    )
    return f"<section><h2>What changed</h2><p>{words}</p>{frame(drawing, 'figure')}</section>"
