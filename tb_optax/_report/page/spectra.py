"""The spectrum of each layer as a card of the page."""

import math
from collections.abc import Sequence

from tb_optax._report.changes import LayerChange
from tb_optax._report.comparison import Comparison
from tb_optax._report.page import drawings
from tb_optax._report.page.drawings import SERIES
from tb_optax._report.record import LayerRecord
from tb_optax._report.report import Report
from tb_optax._report.text import breaking, escaped, number

_WORST = 6


def worst(last: Report, comparison: Comparison | None) -> str:
    of = f" in {escaped(comparison.labels[-1])}" if comparison else ""
    places = _places(last, comparison)
    cards = "".join(
        f'<figure class="card" id="layer-{places[record.layer]}">{_figure(record, comparison)}</figure>'
        for record in _worst_records(last)
    )
    than = " relative to noise" if any(math.isfinite(record.noise.alpha) for record in last.records) else ""
    title = f"Layers with the largest alpha{than}{of}"
    return f'<section><h2>{title}</h2><div class="cards">{cards}</div></section>' if cards else ""


def other_spectra(last: Report, comparison: Comparison | None) -> str:
    shown = {record.layer for record in _worst_records(last)}
    places = _places(last, comparison)
    details = "".join(
        f'<details class="card" id="layer-{places[record.layer]}"><summary>{breaking(record.layer)}</summary>'
        f"<figure>{_figure(record, comparison)}</figure></details>"
        for record in last.records
        if record.layer not in shown
    )
    return f"<section><h2>Other spectra</h2>{details}</section>" if details else ""


def _worst_records(report: Report) -> list[LayerRecord]:
    """The layers of the largest alpha, divided by that of noise where it is known, because alpha depends on the shape."""
    known = [record for record in report.records if math.isfinite(record.alpha)]
    of_noise = lambda record: record.noise.alpha if math.isfinite(record.noise.alpha) else 1.0
    return sorted(known, key=lambda record: -record.alpha / of_noise(record))[:_WORST]


def _places(last: Report, comparison: Comparison | None) -> dict[str, int]:
    """The number by which the table, the drawing and the spectra know each layer."""
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
    change = comparison.changes.get(record.layer) if comparison else None
    if change:
        moved = f"|ΔW| / |W| {number(change.relative)}, rank of ΔW {change.rank}"
        outline += f"; {'<strong>unchanged</strong>' if change.is_unchanged else moved}"
    caption = f"<figcaption>{shape}{'; ' if laws else ''}{laws}{outline}{mark}{reasons}</figcaption>"
    drawing = drawings.spectrum(record, before) + _legend(record, comparison, before)
    return f"<h3>{breaking(record.layer)}</h3>{caption}{drawing}{_change(change) if change else ''}"


def _change(change: LayerChange) -> str:
    """The spectrum of the change of a layer."""
    drawing = drawings.spectrum_of_change(change)
    if not drawing:
        return ""
    zero = int((change.eigenvalues == 0).sum())
    keys = [("bars", "eigenvalues of the change ΔW" + (f", {zero} of {len(change.eigenvalues)} are zero" if zero else ""))]
    if 0 < change.edge < math.inf:
        keys.append(("dots s1", "edge of noise"))
    return drawing + _swatches(keys)


def _legend(record: LayerRecord, comparison: Comparison | None, before: LayerRecord | None) -> str:
    """The legend of a spectrum's figure."""
    keys = [("bars", f"eigenvalues{f' in {escaped(comparison.labels[-1], 40)}' if comparison else ''}")]
    if comparison and before:
        keys.append(("outline", f"in {escaped(comparison.labels[0], 40)}"))
    if math.isfinite(record.noise.edge):
        keys.append(("dots noise", "edge of noise"))
    for place, (fit, law) in enumerate(record.fits.items()):
        if math.isfinite(law.alpha):
            keys += [
                (f"line s{place % SERIES}", f"fitted tail, {escaped(fit)}"),
                (f"dots s{place % SERIES}", "its threshold"),
            ]
    return _swatches(keys)


def _swatches(keys: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><span class="swatch {style}"></span>{words}</span>' for style, words in keys)
    return f'<p class="legend">{items}</p>'
