"""What the library is to reach, and whether the figures do."""

import dataclasses
from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure and its bound.

    Attributes:
      text: what is measured.
      value: None where it was not.
      bound: the most it may be; with `at_least`, the least.
      at_least: which of the two.
      unit: `x`, `ms` or `s`.
    """

    text: str
    value: float | None
    bound: float
    at_least: bool = False
    unit: str = "x"

    def row(self) -> tuple[str, str, str, str]:
        """Text, figure, bound and verdict."""
        bound = f"{'≥' if self.at_least else '≤'} {_number(self.bound, self.unit)}"
        if self.value is None:
            return self.text, "", bound, "not measured"
        reached = self.value >= self.bound if self.at_least else self.value <= self.bound
        # How much of the bound is missing, or is too much.
        short = abs(self.value / self.bound - 1)
        return self.text, _number(self.value, self.unit), bound, "reached" if reached else f"short by {short:.0%}"


def targets(parts: Results, platform: str) -> list[Target]:
    """Those of a platform, from the `cases` of each part."""
    refresh = {case["network"]: case["contenders"] for case in parts.get("refresh", [])}
    return list((_on_cpu if platform == "cpu" else _on_gpu)(refresh, parts))


def _on_cpu(refresh: Results, parts: Results) -> Iterator[Target]:
    for network in ("resnet18", "resnet34", "vgg16"):
        yield Target(
            f"{network}: PyTorch's refresh, in refreshes", _get(refresh, network, "PyTorch, median", "ratio"), 2.5, True
        )
        floor = _get(refresh, network, "eigenvalues alone", "ratio")
        yield Target(f"{network}: a refresh, in times of the eigenvalue routine alone", floor and 1 / floor, 1.3)
    median = _get(refresh, "resnet18", "tb_optax, median", "median")
    for fit in ("goodness_of_fit", "fix_finger"):
        own = _get(refresh, "resnet18", f"tb_optax, {fit}", "median")
        yield Target(f"resnet18: a refresh by {fit}, in refreshes by the median fit", own and median and own / median, 1.25)
    steps = parts.get("steps", {})
    for count, what in (("20", "20 updates in one program that refresh"), ("1", "an update by itself that refreshes")):
        yield Target(f"{what} nothing, in those without tempbalance", _get(steps, "update_ratios", count), 1.01)
    yield Target(
        "resnet101: first call, compiled", _get(refresh, "resnet101", "tb_optax, median", "first_seconds"), 15, unit="s"
    )
    busy = _get(parts, "busy", "tb_optax", "ratio")
    yield Target("a refresh beside a busy program, in refreshes alone", busy, 3)


def _on_gpu(refresh: Results, parts: Results) -> Iterator[Target]:
    own = _get(refresh, "resnet18", "tb_optax, median", "median")
    yield Target("resnet18: a refresh", own and 1e3 * own, 20, unit="ms")
    yield Target(
        "resnet18: PyTorch's refresh, in refreshes", _get(refresh, "resnet18", "PyTorch, median", "ratio"), 30, True
    )
    epochs = _get(parts, "steps", "training", "epochs") or {}
    yield Target("an epoch with a refresh every 50 steps, in epochs without", _get(epochs, "50", "ratio"), 1.1)
    yield Target("an epoch of 50,000 images, batch 128, bfloat16, one refresh", _get(epochs, "390", "median"), 2.5, unit="s")


def _get(tree: Results, *keys: str) -> Any:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.3f} x" if value < 1.1 else f"{value:.2f} x"
    return f"{value:.3g} {unit}"
