"""Targets of the library, and whether the results reach them."""

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]
Row = tuple[str, str, str, str]


def targets(parts: Results, platform: str) -> Iterator[Row]:
    """The targets of a platform, from the `cases` of each part: text, measured value, bound, verdict."""
    refresh = {case["network"]: case["contenders"] for case in parts.get("refresh", [])}
    return (_on_cpu if platform == "cpu" else _on_gpu)(refresh, parts)


def _on_cpu(refresh: Results, parts: Results) -> Iterator[Row]:
    for network in ("resnet18", "resnet34", "vgg16"):
        times = _get(refresh, network, "PyTorch, median", "ratio")
        yield _row(f"{network}: PyTorch's refresh, in refreshes", times, at_least=2.5)
        floor = _get(refresh, network, "eigenvalues alone", "ratio")
        yield _row(f"{network}: a refresh, in times of the eigenvalue routine alone", floor and 1 / floor, at_most=1.3)
    median = _get(refresh, "resnet18", "tb_optax, median", "median")
    for fit in ("goodness_of_fit", "fix_finger"):
        own = _get(refresh, "resnet18", f"tb_optax, {fit}", "median")
        times = own and median and own / median
        yield _row(f"resnet18: a refresh by {fit}, in refreshes by the median fit", times, at_most=1.25)
    for count, what in (("20", "20 updates in one program that refresh"), ("1", "an update by itself that refreshes")):
        times = _get(parts, "steps", "update_ratios", count)
        yield _row(f"{what} nothing, in those without tempbalance", times, at_most=1.01)
    first = _get(refresh, "resnet101", "tb_optax, median", "first_seconds")
    yield _row("resnet101: first call, compiled", first, at_most=15, unit="s")
    yield _row("a refresh beside a busy program, in refreshes alone", _get(parts, "busy", "tb_optax", "ratio"), at_most=3)


def _on_gpu(refresh: Results, parts: Results) -> Iterator[Row]:
    own = _get(refresh, "resnet18", "tb_optax, median", "median")
    yield _row("resnet18: a refresh", own and 1e3 * own, at_most=20, unit="ms")
    times = _get(refresh, "resnet18", "PyTorch, median", "ratio")
    yield _row("resnet18: PyTorch's refresh, in refreshes", times, at_least=30)
    epochs = _get(parts, "steps", "training", "epochs") or {}
    times, seconds = _get(epochs, "50", "ratio"), _get(epochs, "390", "median")
    yield _row("an epoch with a refresh every 50 steps, in epochs without", times, at_most=1.1)
    yield _row("an epoch of 50,000 images, batch 128, bfloat16, one refresh", seconds, at_most=2.5, unit="s")


def _row(
    text: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None, unit: str = "x"
) -> Row:
    sign, bound = ("≤", at_most) if at_least is None else ("≥", at_least)
    assert bound is not None
    if value is None:
        return text, "", f"{sign} {_number(bound, unit)}", "not measured"
    reached = value <= bound if sign == "≤" else value >= bound
    verdict = "reached" if reached else f"short by {abs(value / bound - 1):.0%}"
    return text, _number(value, unit), f"{sign} {_number(bound, unit)}", verdict


def _get(tree: Results, *keys: str) -> Any:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.3f} x" if value < 1.1 else f"{value:.2f} x"
    return f"{value:.3g} {unit}"
