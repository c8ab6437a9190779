"""Markdown tables, and cells that show a result or its error."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], right: Collection[int] = ()) -> str:
    """A Markdown table that reads well as text too.

    Args:
      columns: their titles.
      rows: the cells of each row.
      right: the numbers of the columns that are aligned to the right.
    """
    cells = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    pad = lambda row: [
        cell.rjust(width) if index in right else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    rule = ["-" * (max(width, 3) - (index in right)) + ":" * (index in right) for index, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (pad(cells[0]), rule, *map(pad, cells[1:])))


def or_error(result: Mapping[str, Any], show: Callable[[Any], str]) -> str:
    """The text of a result, or its error."""
    return result["error"] if "error" in result else show(result)


def milliseconds(result: Mapping[str, Any], digits: int = 0) -> str:
    return f"{1e3 * result['median']:,.{digits}f}"


def ratio(result: Mapping[str, Any]) -> str:
    return "" if result["ratio"] is None else f"{result['ratio']:.2f}"


def show(text: str, out: Path | None) -> None:
    """Prints a text, and writes it to a file if there is one."""
    print(text)
    if out is not None:
        out.write_text(text + "\n")
