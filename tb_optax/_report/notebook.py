"""Reports as notebooks show them: a line, a table, a data frame."""

import importlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tb_optax._report.text import escaped, number


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows as a `pandas.DataFrame`.

    Raises:
      ImportError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError("to_pandas: pandas is not installed; pip install pandas, or take rows().") from error
    return pandas.DataFrame(list(rows))


def in_words(alphas: Sequence[float], marks: Sequence[str]) -> str:
    """How many layers, their alpha, and how many have which mark: `"44 layers, alpha 1.87 to 3.20, 2 as noise"`."""
    known = [alpha for alpha in alphas if math.isfinite(alpha)]
    spread = f"alpha {min(known):.2f} to {max(known):.2f} (mean {np.mean(known):.2f})" if known else "no alpha"
    counts = Counter(mark for mark in marks if mark)
    return ", ".join([f"{len(alphas)} layers", spread, *(f"{count} {mark}" for mark, count in counts.items())])


def table(heading: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """The given columns of the rows, with their titles, as HTML that scrolls where it is large."""
    head = "".join(f'<th style="text-align:{_side(key)}">{escaped(title)}</th>' for key, title in columns.items())
    lines = "".join(
        "<tr>" + "".join(f'<td style="text-align:{_side(key)}">{_cell(row[key])}</td>' for key in columns) + "</tr>"
        for row in rows
    )
    return (
        f"<p>{escaped(heading)}</p>"
        '<div style="max-height:32em;overflow:auto"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _side(key: str) -> str:
    return "left" if key in ("layer", "shape", "mark") else "right"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return escaped(value)
    return f"{value:,}" if isinstance(value, int) else number(value)
