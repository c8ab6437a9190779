"""Reports as a terminal shows them."""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tb_optax._report.comparison import Comparison
from tb_optax._report.report import Report
from tb_optax._report.source import printable

_SUMMARY = ("mean", "median", "deviation", "least", "greatest")
_SPARKS = "▁▂▃▄▅▆▇█"
_MOST_LEFT_OUT = 6
_MOST_NAMED = 5
_MOST_CHECKPOINTS = 8
_LAYER_AT_LEAST = 20
_LAYER_WISHES = 40
_PIPED_WIDTH = 240


class _Column(NamedTuple):
    key: str
    title: str
    spare: int = 0
    """The greater, the sooner it is left out where the terminal is narrow; 0 for never."""


_COLUMNS = {
    "layer": _Column("layer", "layer"),
    "shape": _Column("shape", "shape", 1),
    "matrices": _Column("matrices", "matri-\nces", 4),
    "eigenvalues": _Column("eigenvalues", "eigen-\nvalues", 3),
    "alpha": _Column("alpha", "alpha"),
    "ks_distance": _Column("ks_distance", "KS dis-\ntance", 5),
    "xmin": _Column("xmin", "tail\nfrom", 6),
    "tail": _Column("tail", "tail\nshare", 5),
    "standard_error": _Column("standard_error", "std.\nerror", 10),
    "noise": _Column("noise", "noise's\nalpha", 8),
    "noise_deviations": _Column("noise_deviations", "devi-\nations", 2),
    "alpha_weighted": _Column("alpha_weighted", "alpha\nweighted", 11),
    "lambda_max": _Column("lambda_max", "λ max"),
    "rank": _Column("rank", "rank", 6),
    "stable_rank": _Column("stable_rank", "stable\nrank"),
    "stable_rank_over_noise": _Column("stable_rank_over_noise", "over\nnoise's", 9),
    "beyond_noise": _Column("beyond_noise", "beyond\nnoise", 2),
    "scale": _Column("scale", "scale", 4),
    "mark": _Column("mark", "mark"),
}


def console() -> Console:
    """A console on standard output; wide enough for everything if that is not a terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_report(to: Console, report: Report, sort: str | None, reverse: bool, pattern: str) -> None:
    """One report: its layers, their summary, and what was left out."""
    rows, summary = chosen(report.rows(), sort, reverse, pattern), report.summary()
    of_all = "" if len(rows) == len(report.records) else f" of all {len(report.records)} layers"
    foot = [
        {"layer": name + of_all, **{key: numbers[name] for key, numbers in summary.items()}}
        for name in _SUMMARY
        if len(report.records) > 1
    ]
    to.print(_title(report))
    _print_table(to, _columns(report), rows, foot)
    if len(report.records) > 1:
        means = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in report.means().items())
        to.print(Text(f"means over layers: {means}"))
    _print_reasons(to, report)
    _print_notes(to, report)


def _columns(report: Report) -> list[_Column]:
    """Those of the first fit, and alpha and distance of others; no matrices where each layer has one, no empty marks."""
    found = []
    rows = report.rows()
    idle = {"matrices": 1, "mark": ""}
    for key in rows[0]:
        number, _, fit = key.partition("_")
        if key in _COLUMNS:
            if key not in idle or any(row[key] != idle[key] for row in rows):
                found.append(_COLUMNS[key])
        elif number in ("alpha", "ks_distance"):
            title = "alpha" if number == "alpha" else "KS"
            found.append(_Column(key, f"{title} {fit}".replace(" ", "\n").replace("_", "\n", 1).replace("_", " "), 1))
    return found


def print_comparison(to: Console, comparison: Comparison, sort: str | None, reverse: bool, pattern: str) -> None:
    """Two reports, and what changed; of more, alpha over all of them."""
    rows = comparison.rows()
    for row in rows:  # Without a label, what is sorted by is the last checkpoint's.
        *_, last = (record for record in comparison.records(row["layer"]) if record is not None)
        alphas = comparison.values(row["layer"], "alpha")
        row |= last.row() | row | {"change": comparison.change(row["layer"]), "course": sparkline(alphas)}
    rows = chosen(rows, sort, reverse, pattern)
    for label, report in zip(comparison.labels, comparison.reports, strict=True):
        to.print(Text.assemble((printable(label), "bold"), ": ", _title(report)))
    columns = _columns_of_two(comparison) if len(comparison.labels) == 2 else _columns_of_many(comparison)
    _print_table(to, columns, rows, [])
    if len({tuple(report.left_out.items()) for report in comparison.reports}) == 1:
        _print_notes(to, comparison.reports[0])
        return
    for label, report in zip(comparison.labels, comparison.reports, strict=True):
        _print_notes(to, report, f" of {printable(label)}")


def _columns_of_two(comparison: Comparison) -> list[_Column]:
    columns = [_COLUMNS["layer"], _COLUMNS["shape"]]
    if comparison.changes:
        columns += [_Column("relative_change", "|ΔW|\nof |W|"), _Column("rank_of_change", "rank\nof ΔW")]
    for spare, key in ((0, "alpha"), (4, "lambda_max"), (3, "stable_rank"), (2, "scale")):
        title = _COLUMNS[key].title.replace("\n", " ")
        columns += [_Column(f"{key} {label}", f"{title}\n{printable(label)}", spare) for label in comparison.labels]
        columns.append(_Column(f"{key} change", f"{title}\nchange", spare))
    marked = comparison.changes and any(row["mark"] for row in comparison.rows())
    return [*columns, _COLUMNS["mark"]] if marked else columns


def _columns_of_many(comparison: Comparison) -> list[_Column]:
    shown, last = comparison.labels, len(comparison.labels) - 1
    if len(shown) > _MOST_CHECKPOINTS:
        shown = [shown[round(place * last / (_MOST_CHECKPOINTS - 1))] for place in range(_MOST_CHECKPOINTS)]
    columns = [_Column(f"alpha {label}", f"alpha\n{printable(label)}", 1) for label in shown[1:-1]]
    first, newest = (_Column(f"alpha {label}", f"alpha\n{printable(label)}") for label in (shown[0], shown[-1]))
    return [_COLUMNS["layer"], first, *columns, newest, _Column("change", "change"), _Column("course", "course")]


def chosen(rows: Sequence[dict[str, Any]], sort: str | None, reverse: bool, pattern: str) -> list[dict[str, Any]]:
    """The rows whose layers match a shell-style pattern, sorted by a column, what is NaN last."""
    found = [row for row in rows if matches(row["layer"], pattern)]
    if sort is None:
        return found[::-1] if reverse else found
    is_nan = lambda row: isinstance(row[sort], float) and math.isnan(row[sort])
    known = sorted((row for row in found if not is_nan(row)), key=lambda row: row[sort], reverse=reverse)
    return known + [row for row in found if is_nan(row)]


def matches(layer: str, pattern: str) -> bool:
    """Whether it is a layer's name, whose brackets are a pattern's too, or a shell-style pattern of it."""
    return layer == pattern or fnmatch.fnmatchcase(layer, pattern)


def sparkline(values: Sequence[float]) -> str:
    """A line of blocks from the least value to the greatest; a space where there is none."""
    known = [value for value in values if math.isfinite(value)]
    least, spread = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    height = lambda value: round((value - least) / spread * (len(_SPARKS) - 1)) if spread else len(_SPARKS) // 2
    return "".join(_SPARKS[height(value)] if math.isfinite(value) else " " for value in values)


def _print_table(
    to: Console, columns: Sequence[_Column], rows: Sequence[dict[str, Any]], foot: Sequence[dict[str, Any]]
) -> None:
    """Prints as many columns as fit; the names of layers take the rest of the width."""
    cells = {column: [_cell(column.key, row.get(column.key)) for row in (*rows, *foot)] for column in columns}
    widths = {
        column: max(len(text) for text in (*column.title.split("\n"), *(cell.plain for cell in column_cells)))
        for column, column_cells in cells.items()
    }
    layer, *others = columns
    needed = lambda: min(widths[layer], _LAYER_WISHES) + sum(widths[column] + 1 for column in others)
    while needed() > to.width - 1 and max(column.spare for column in others):
        others.remove(max(others, key=lambda column: column.spare))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")
    room = max(to.width - 1 - sum(widths[column] + 1 for column in others), _LAYER_AT_LEAST)
    table.add_column(Text(layer.title), overflow="fold", width=min(widths[layer], room), vertical="bottom")
    for column in others:
        justify = "left" if column.key in ("shape", "course", "mark") else "right"
        table.add_column(Text(column.title), justify=justify, no_wrap=True, width=widths[column], vertical="top")
    for number in range(len(rows) + len(foot)):
        if number == len(rows):
            table.add_section()
        table.add_row(*(cells[column][number] for column in (layer, *others)), style="dim" if number >= len(rows) else None)
    to.print(table)
    if len(others) < len(columns) - 1:
        to.print(Text("A wider terminal shows more columns, --json and --csv all.", style="dim"))


def _cell(key: str, value: Any) -> Text:
    if value is None:
        return Text()
    if isinstance(value, str):
        return Text(value.replace("x", "×") if key == "shape" else value if key == "course" else printable(value))
    if isinstance(value, int):
        return Text(str(value))
    if not math.isfinite(value):
        return Text("–")
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    if key == "change" or key.endswith(" change"):
        return Text(f"{value:+.{digits}f}" if abs(value) < 1000 else f"{value:+.2e}")
    return Text(f"{value:.{digits}f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.2e}")


def _title(report: Report) -> Text:
    stops = "" if report.complete else ", interrupted"
    others = f"; not read: {report.others} arrays of an optimizer's state and the like" if report.others else ""
    windows = f"; spectra of windows of {report.windows.size} rows" if report.windows else ""
    fits = ", ".join(report.fits)
    what = f"{printable(report.name)} ({report.format}): {len(report.records)} layers{stops}"
    return Text(f"{what}{windows}; fit: {fits}{others}")


def _print_reasons(to: Console, report: Report) -> None:
    """Why layers are marked, and why a number is missing, a line for each reason."""
    layers: dict[tuple[str, str], list[str]] = {}
    for record in report.records:
        by_reason: dict[str, list[str]] = {}
        for key, reason in record.reasons.items():
            by_reason.setdefault(reason, []).append(record.mark if key == "mark" else key)
        for reason, keys in by_reason.items():
            layers.setdefault((", ".join(keys), reason), []).append(record.layer)
    for (keys, reason), names in layers.items():
        of = "all layers" if len(names) == len(report.records) else ", ".join(map(printable, names[:_MOST_NAMED]))
        more = f" and {len(names) - _MOST_NAMED} more" if _MOST_NAMED < len(names) < len(report.records) else ""
        to.print(Text(f"{keys}: {of}{more}: {reason}", style="dim"))


def _print_notes(to: Console, report: Report, of: str = "") -> None:
    left_out = list(report.left_out.items())
    for path, reason in left_out[:_MOST_LEFT_OUT]:
        to.print(Text(f"left out{of}: {printable(path)}: {printable(reason)}", style="dim"))
    if len(left_out) > _MOST_LEFT_OUT:
        to.print(Text(f"left out{of}: {len(left_out) - _MOST_LEFT_OUT} more; --json lists them", style="dim"))
