"""Numbers and names as people read them."""

import html
import math
import re
from collections import Counter
from collections.abc import Sequence

from tb_optax._report.source import printable, shortened

_SHORTEST_KEY = 5


def escaped(text: str, most: int = 400) -> str:
    """A name that stands in a checkpoint, as text of an HTML page; of a very long one, both ends."""
    return html.escape(shortened(printable(text), most))


def breaking(text: str, most: int = 400) -> str:
    """As `escaped`, for a name that may be broken into lines behind each `/` and `.`."""
    return re.sub(r"([/.])", r"\1<wbr>", escaped(text, most))


def labels_of_layers(names: Sequence[str], most: int) -> list[str]:
    """Short names that still differ: without the keys that all share at the start, then without the words that most share.

    The longest of such words go first, until no name is longer than `most`. In a name that still is, the longest keys lose
    their middle: short ones are often the numbers that tell layers apart.
    """
    parts = [re.split(r"[/.]", name) for name in names]
    while len(parts) > 1 and all(len(own) > 1 for own in parts) and len({own[0] for own in parts}) == 1:
        parts = [own[1:] for own in parts]
    counts = Counter(key for own in parts for key in set(own))
    common = [key for key, count in counts.items() if count > len(parts) / 2 > 1 and not key.isdecimal()]
    common.sort(key=len, reverse=True)
    for key in common:
        if max(len(".".join(own)) for own in parts) <= most:
            break
        without = [[each for each in own if each != key] for own in parts]
        if all(without) and len({tuple(own) for own in without}) == len({tuple(own) for own in parts}):
            parts = without
    return [shortened(_squeezed([printable(key) for key in own], most), most) for own in parts]


def _squeezed(keys: list[str], most: int) -> str:
    """A name whose longest keys are cut, each to the same length, until it fits."""
    length = max(map(len, keys))
    while length > _SHORTEST_KEY and len(".".join(shortened(key, length) for key in keys)) > most:
        length -= 1
    return ".".join(shortened(key, length) for key in keys)


def kind(layer: str) -> str:
    """The name of a layer without its numbers: `"blocks.*.attention"`."""
    return re.sub(r"\d+", "*", layer)


def number(value: float, sign: str = "") -> str:
    """With three digits: `1.50`, `0.0312`, `1,425`, `3.10e-06`."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 999.5:
        return f"{value:{sign},.0f}" if abs(value) < 1e6 else f"{value:{sign}.2e}"
    return f"{value:{sign}#.3g}".rstrip(".") if abs(value) >= 1e-4 or value == 0 else f"{value:{sign}.2e}"
