"""What the parts of the page share: cards, cells of tables, titles of columns."""

import math
from typing import Any

from tb_optax._report.text import escaped, number

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


def frame(content: str, style: str = "") -> str:
    """A card that shows where its content goes on and can be scrolled to."""
    return f'<div class="card frame"><div class="scroll {style}" tabindex="0">{content}</div></div>'


def cell(key: str, value: Any, reason: str = "") -> str:
    title = f' title="{escaped(reason)}"' if reason else ""
    if isinstance(value, str):
        shown = value.replace("x", "×") if key == "shape" else value
        return f'<td class="words"{title if key == "mark" else ""}>{escaped(shown)}</td>'
    if not math.isfinite(value):
        return f'<td data-value="NaN"{title}>–</td>'
    shown = f"{value:,}" if isinstance(value, int) else number(value, "+" if key.endswith(" change") else "")
    return f'<td data-value="{value:.6g}">{shown}</td>'


def title_of(key: str, between: str = "<br>") -> str:
    column = next(name for name in sorted(_TITLES, key=len, reverse=True) if key == name or key.startswith(name + "_"))
    fit = key[len(column) + 1 :]
    return _TITLES[column].replace("<br>", between) + (f"{between}{escaped(fit)}" if fit else "")
