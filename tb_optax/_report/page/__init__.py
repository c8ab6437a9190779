"""Reports as a page: one document that needs no network, and no scripts but to sort, filter and open."""

import importlib.resources
from collections.abc import Sequence

from tb_optax._report.changes import LayerChange
from tb_optax._report.comparison import side_by_side
from tb_optax._report.page.overview import alphas, summary
from tb_optax._report.page.spectra import other_spectra, worst
from tb_optax._report.page.tables import kinds, layers
from tb_optax._report.report import Report
from tb_optax._report.text import breaking, escaped

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(reports: Sequence[Report], changes: Sequence[LayerChange] = ()) -> str:
    """One report, or several side by side, as an HTML document.

    Names in checkpoints may hold anything, and stand in it as text only.
    """
    comparison = side_by_side(reports, changes) if len(reports) > 1 else None
    last = reports[-1]
    names = " · ".join(escaped(label) for label in comparison.labels) if comparison else escaped(last.name)
    headings = "".join(_heading(report, len(reports) > 1) for report in reports)
    sections = [
        summary(reports, comparison),
        alphas(last, comparison),
        worst(last, comparison),
        kinds(last, comparison),
        layers(last, comparison),
        other_spectra(last, comparison),
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
    name = f"{breaking(report.name)}: " if several else ""
    windows = f" by windows of {report.windows.size} rows" if report.windows else ""
    lines = [f'<p class="quiet">{name}{report.format}, {len(report.records)} layers{windows}; fit: {fits}.</p>']
    if not report.complete:
        lines.append('<p class="warning">The report was interrupted: some layers are missing.</p>')
    broken = [record.layer for record in report.records if not record.is_finite]
    if broken:
        names = ", ".join(map(escaped, broken[:5])) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        lines.append(f'<p class="warning">The weights of {names} hold NaN or infinity.</p>')
    return "".join(lines)


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
    return (importlib.resources.files("tb_optax._report.page") / name).read_text("utf-8")


def _version() -> str:
    from tb_optax import __version__

    return __version__
