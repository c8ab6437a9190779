"""Numbers and names as people read them."""

import html
import math

from tb_optax._report.source import printable, shortened


def escaped(text: str, most: int = 400) -> str:
    """A name that stands in a checkpoint, as text of an HTML page; of a very long one, both ends."""
    return html.escape(shortened(printable(text), most))


def number(value: float, sign: str = "") -> str:
    """With three digits: `1.50`, `0.0312`, `1,425`, `3.10e-06`."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 999.5:
        return f"{value:{sign},.0f}" if abs(value) < 1e6 else f"{value:{sign}.2e}"
    return f"{value:{sign}#.3g}".rstrip(".") if abs(value) >= 1e-4 or value == 0 else f"{value:{sign}.2e}"
