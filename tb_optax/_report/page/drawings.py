"""Figures of the page, as SVG that takes its colours from the page's style, for light and dark."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tb_optax._report.changes import LayerChange
from tb_optax._report.figures import density, tail_line
from tb_optax._report.record import LayerRecord
from tb_optax._report.source import printable
from tb_optax._report.text import escaped, labels_of_layers, number

SERIES = 4  # colours that the style has
_NAMES_SHOWN = 48
_LONGEST_NAME = 30
_LABELS_SHOWN = 8
_MOST_BINS = 60
_LEFT = 46


def short(text: str, most: int = _LONGEST_NAME) -> str:
    """The end of a name, which is more telling than its start."""
    shown = printable(text)
    return html.escape(shown if len(shown) <= most else "…" + shown[1 - most :])


class _Axis(NamedTuple):
    """A range of values on a range of places."""

    least: float
    greatest: float
    start: float
    stop: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        scale = math.log10 if self.logarithmic else float
        share = (scale(value) - scale(self.least)) / (scale(self.greatest) - scale(self.least))
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers within, with what stands beside them."""
        decades = math.log10(self.greatest / self.least) if self.logarithmic else 0
        if decades < 0.6:
            return self._even_ticks()
        powers = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.greatest)) + 1)
        factors = (1, 2, 5) if decades < 1.8 else (1,)
        found = [factor * 10.0**power for power in powers[:: math.ceil(decades / 6)] for factor in factors]
        return [(value, _tick(value)) for value in found if self.least <= value <= self.greatest]

    def _even_ticks(self) -> list[tuple[float, str]]:
        rough = (self.greatest - self.least) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.99 * rough)
        first, last = math.ceil(self.least / step), math.floor(self.greatest / step)
        return [(place * step, f"{place * step:.6g}") for place in range(first, last + 1)]


def _tick(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digit, power = f"{value:.0e}".split("e")
    raised = f'10<tspan class="up" dy="-4">{int(power)}</tspan>'.replace("-", "−").replace("−4", "-4", 1)
    return raised if digit == "1" else f"{digit}·{raised}"


def spectrum(record: LayerRecord, before: LayerRecord | None = None) -> str:
    """The eigenvalues' density on logarithmic axes, with the edge of noise; each fit's tail and its beginning.

    Of an earlier spectrum, the outline of its density.
    """
    found = _density(record.eigenvalues)
    if found is None:
        return '<p class="nothing">No eigenvalue is above zero, or the weight holds NaN or infinity.</p>'
    edges, heights = found
    earlier = _density(before.eigenvalues) if before is not None else None
    least, greatest = _extremes([found, earlier], 0)
    lowest, highest = _extremes([found, earlier], 1)
    lowest /= 2
    has_edge = math.isfinite(record.noise.edge)
    if has_edge:
        greatest = max(greatest, record.noise.edge)
    tails = {}
    for place, law in enumerate(record.fits.values()):
        if math.isfinite(law.alpha) and law.xmin > 0:
            x, y = tail_line(record.eigenvalues, float(law.alpha), float(law.xmin))
            shown = y >= lowest  # A steep tail would press all else together.
            if shown.any():
                tails[place] = x[shown], y[shown]
                highest = max(highest, float(y[0]))
    across, up = _of_densities(least, greatest, lowest, highest)
    parts = [_grid(across, up, 394, "density"), _steps("bars", across, up, edges, heights)]
    if earlier is not None:
        parts.append(_steps("before", across, up, *earlier))
    if has_edge:
        parts.append(_mark("noise", across, up, record.noise.edge))
    for place, (x, y) in tails.items():
        parts.append(_mark(f"s{place % SERIES}", across, up, x[0]))
        ends = "L".join(f"{across.place(x[end])} {up.place(y[end])}" for end in (0, -1))
        parts.append(f'<path class="line s{place % SERIES}" d="M{ends}"/>')
    label = f"Spectrum of {escaped(record.layer)}: density of {len(record.eigenvalues)} eigenvalues, logarithmic axes"
    return _of_spectrum("spectrum", label, "WWᵀ", parts)


def spectrum_of_change(change: LayerChange) -> str:
    """The density of the eigenvalues above zero of `ΔW ΔWᵀ`, with the edge of noise; nothing if there are none."""
    found = _density(change.eigenvalues)
    if found is None:
        return ""
    least, greatest = _extremes([found], 0)
    has_edge = 0 < change.edge < math.inf
    if has_edge:
        least, greatest = min(least, change.edge), max(greatest, change.edge)
    lowest, highest = _extremes([found], 1)
    across, up = _of_densities(least, greatest, lowest / 2, highest)
    parts = [_grid(across, up, 394, "density"), _steps("bars", across, up, *found)]
    if has_edge:
        parts.append(_mark("s1", across, up, change.edge))
    label = f"Spectrum of the change of {escaped(change.layer)}: {change.rank} eigenvalues are beyond the edge of noise"
    return _of_spectrum("spectrum of-change", label, "ΔWΔWᵀ", parts)


def by_layer(
    layers: Sequence[str],
    series: Mapping[str, Sequence[float]],
    styles: Sequence[str],
    quantity: str = "alpha",
    noise: Sequence[float] = (),
) -> str:
    """A quantity of each layer, a point for each series; where the first series is `before`, a line from it to the last.

    `noise` is the quantity of noise of each layer's shape, a short line.
    """
    known = [value for values in series.values() for value in values if math.isfinite(value)]
    if not known:
        return f'<p class="nothing">No layer has {quantity}.</p>'
    across = _Axis(-0.5, len(layers) - 0.5, _LEFT, 892)
    up = _around([*known, *filter(math.isfinite, noise)], 250, 20)
    half = min(7.0, (892 - _LEFT) / len(layers) / 2)
    parts = [_grid(None, up, 892, quantity)]
    for place, layer in enumerate(layers):
        x = across.place(place)
        points = [(name, style, values[place]) for (name, values), style in zip(series.items(), styles, strict=True)]
        heights = [up.place(value) if math.isfinite(value) else None for _, _, value in points]
        words = "; ".join((f"{escaped(name)} " if len(points) > 1 else "") + number(value) for name, _, value in points)
        has_noise = bool(noise) and math.isfinite(noise[place])
        if has_noise:
            words += f"; noise {number(noise[place])}"
        parts.append(f'<g data-row="{place}"><title>{escaped(layer)}: {quantity} {words}</title>')
        if has_noise:
            parts.append(f'<path class="noise" d="M{x - half:.1f} {up.place(noise[place])}h{2 * half:.1f}"/>')
        if styles[0] == "before" and heights[0] is not None and heights[-1] is not None:
            parts.append(f'<path class="change" d="M{x} {heights[0]}V{heights[-1]}"/>')
        for (_, style, _), y in zip(points, heights, strict=True):
            if y is not None:
                parts.append(f'<circle class="{style}" cx="{x}" cy="{y}" r="{4 if len(layers) < 120 else 3}"/>')
        parts.append("</g>")
    every = math.ceil(len(layers) / _NAMES_SHOWN)
    names = labels_of_layers(layers, _LONGEST_NAME)
    parts += [
        f'<text class="name" transform="translate({across.place(place) + 3:.1f} 262)rotate(-90)">'
        f"{html.escape(names[place])}</text>"
        for place in range(0, len(layers), every)
    ]
    height = 270 + 5.8 * max(map(len, names[::every]))
    label = f"{quantity.capitalize()} of {len(layers)} layers, in the order of the table"
    return f'<svg class="wide" viewBox="0 0 900 {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def over_checkpoints(labels: Sequence[str], courses: Mapping[str, Sequence[float]]) -> str:
    """Alpha of each layer over several checkpoints, a line for each layer."""
    known = [value for values in courses.values() for value in values if math.isfinite(value)]
    if not known:
        return '<p class="nothing">No layer has an alpha.</p>'
    across, up = _Axis(0, len(labels) - 1, 90, 840), _around(known, 290, 20)
    parts = [_grid(None, up, 892, "alpha")]
    for place, (layer, values) in enumerate(courses.items()):
        points = [f"{across.place(at)} {up.place(value)}" for at, value in enumerate(values) if math.isfinite(value)]
        words = f"{escaped(layer)}: alpha {number(values[0])} to {number(values[-1])}"
        share = place / max(len(courses) - 1, 1)
        line = f"M{'L'.join(points)}{'h0' if len(points) == 1 else ''}" if points else ""  # One point is a dot.
        parts.append(
            f'<g data-row="{place}"><title>{words}</title><path class="course" style="--share:{share:.2f}" d="{line}"/>'
            f'<path class="touch" d="{line}"/></g>'
        )
    shown = sorted({round(at * (len(labels) - 1) / (_LABELS_SHOWN - 1)) for at in range(_LABELS_SHOWN)})
    for at in shown:
        x = across.place(at)
        parts.append(f'<path class="axis" d="M{x} {up.start}v4"/>')
        parts.append(f'<text x="{x}" y="310" text-anchor="middle">{short(labels[at], 16)}</text>')
    label = f"Alpha of {len(courses)} layers over {len(labels)} checkpoints"
    return f'<svg class="wide" viewBox="0 0 900 318" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _density(eigenvalues: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The histogram. Few eigenvalues get fewer bins: many bins would look like a comb."""
    return density(eigenvalues, min(_MOST_BINS, max(12, round(2 * math.sqrt(len(eigenvalues))))))


def _mark(style: str, across: _Axis, up: _Axis, value: float) -> str:
    """A vertical line at a value."""
    return f'<path class="mark {style}" d="M{across.place(value)} {up.start}V{up.stop}"/>'


def _of_densities(least: float, greatest: float, lowest: float, highest: float) -> tuple[_Axis, _Axis]:
    """The axes of a spectrum: its values and its densities."""
    narrow = max(0.0, 0.1 - math.log10(greatest / least) / 2)  # The spectrum of an orthogonal matrix is a spike.
    across = _Axis(least / 10**narrow, greatest * 10**narrow, _LEFT, 394, True)
    return across, _Axis(lowest, max(highest * 1.5, lowest * 4), 206, 16, True)


def _of_spectrum(style: str, label: str, of: str, parts: Sequence[str]) -> str:
    title = f'<text x="220" y="240" text-anchor="middle">eigenvalue of {of}</text>'
    return f'<svg class="{style}" viewBox="0 0 400 246" role="img" aria-label="{label}">{"".join(parts)}{title}</svg>'


def _extremes(densities: Sequence[tuple[np.ndarray, np.ndarray] | None], part: int) -> tuple[float, float]:
    """The least and the greatest above zero, of edges (part 0) or of heights (1)."""
    values = np.concatenate([found[part] for found in densities if found is not None])
    return float(values[values > 0].min()), float(values.max())


def _around(values: Sequence[float], start: float, stop: float) -> _Axis:
    """An axis with a margin; logarithmic if the largest value would press all others together."""
    least, greatest = min(values), max(values)
    if 0 < 8 * least < greatest:
        return _Axis(least / 1.15, greatest * 1.15, start, stop, True)
    margin = 0.06 * (greatest - least) or 0.05 * abs(least) or 0.5
    return _Axis(least - margin, greatest + margin, start, stop)


def _grid(across: _Axis | None, up: _Axis, right: float, title: str) -> str:
    lines = [(up.place(value), words) for value, words in up.ticks()]
    parts = [f'<path class="grid" d="{"".join(f"M{_LEFT} {y}H{right}" for y, _ in lines)}"/>']
    parts += [f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>' for y, words in lines]
    parts.append(f'<text x="{_LEFT}" y="9">{title}</text>')
    ticks = [(across.place(value), words) for value, words in across.ticks()] if across else []
    marks = "".join(f"M{x} {up.start}v4" for x, _ in ticks)
    parts.append(f'<path class="axis" d="M{_LEFT} {up.start}H{right}{marks}"/>')
    parts += [f'<text x="{x}" y="{up.start + 17}" text-anchor="middle">{words}</text>' for x, words in ticks]
    return "".join(parts)


def _steps(style: str, across: _Axis, up: _Axis, edges: np.ndarray, heights: np.ndarray) -> str:
    """A histogram's outline, from the axis to the axis."""
    path = [f"M{across.place(edges[0])} {up.start}"]
    for right, height in zip(edges[1:], heights, strict=True):
        path.append(f"V{up.place(height) if height > 0 else up.start}H{across.place(right)}")
    return f'<path class="{style}" d="{"".join(path)}V{up.start}"/>'
