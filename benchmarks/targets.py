"""Targets of the library, and whether the results reach them."""

from collections.abc import Iterator
from typing import Any

from benchmarks import figure23

# What, where its figure is in the results, what divides it (if anything does), the bound, its unit.
_REFRESH = "refresh/resnet18/tb_optax, median/median"
_BY = "in refreshes by the median fit"
_FLOOR = "a refresh, in times of the eigenvalue routine alone"
_ON_CPU = (
    ("resnet18: PyTorch's refresh, in refreshes", "refresh/resnet18/PyTorch, median/ratio", "", "≥", 2.5, "x"),
    (f"resnet18: {_FLOOR}", "", "refresh/resnet18/eigenvalues alone/ratio", "≤", 1.3, "x"),
    ("resnet34: PyTorch's refresh, in refreshes", "refresh/resnet34/PyTorch, median/ratio", "", "≥", 2.5, "x"),
    (f"resnet34: {_FLOOR}", "", "refresh/resnet34/eigenvalues alone/ratio", "≤", 1.3, "x"),
    ("vgg16: PyTorch's refresh, in refreshes", "refresh/vgg16/PyTorch, median/ratio", "", "≥", 2.5, "x"),
    (f"vgg16: {_FLOOR}", "", "refresh/vgg16/eigenvalues alone/ratio", "≤", 1.3, "x"),
    (f"a refresh by goodness_of_fit, {_BY}", "refresh/resnet18/tb_optax, goodness_of_fit/median", _REFRESH, "≤", 1.25, "x"),
    (f"a refresh by fix_finger, {_BY}", "refresh/resnet18/tb_optax, fix_finger/median", _REFRESH, "≤", 1.25, "x"),
    ("20 updates in one program, in those without tempbalance", "steps/update_ratios/20", "", "≤", 1.01, "x"),
    ("an update by itself, in those without tempbalance", "steps/update_ratios/1", "", "≤", 1.01, "x"),
    ("resnet101: first call, compiled", "refresh/resnet101/tb_optax, median/first_seconds", "", "≤", 15, "s"),
    ("a refresh beside a busy program, in refreshes alone", "busy/tb_optax/ratio", "", "≤", 3, "x"),
)
_ON_GPU = (
    ("resnet18: a refresh", _REFRESH, "", "≤", 0.02, "s"),
    ("resnet18: PyTorch's refresh, in refreshes", "refresh/resnet18/PyTorch, median/ratio", "", "≥", 30, "x"),
    ("resnet18: the share of a refresh every 50 steps in training", "figure23/resnet18/share", "", "≤", 0.09, "x"),
    ("resnet18: an epoch of 50,000 images, batch 128, bfloat16", "figure23/resnet18/epoch/median", "", "≤", 2.5, "s"),
)


def targets(parts: dict[str, Any], platform: str) -> Iterator[tuple[str, str, str, str]]:
    """The targets of a platform, from the `cases` of each part: text, measured value, bound, verdict."""
    results = parts | {"refresh": {case["network"]: case["contenders"] for case in parts.get("refresh", [])}}
    results["figure23"] = {case["network"]: case | {"share": figure23.share(case, 50)} for case in parts.get("figure23", [])}
    for text, path, divisor, sign, bound, unit in _ON_CPU if platform == "cpu" else _ON_GPU:
        value, by = (_get(results, place) if place else 1 for place in (path, divisor))
        if value is None or by is None:
            yield text, "", f"{sign} {_number(bound, unit)}", "not measured"
        else:
            value /= by
            reached = value <= bound if sign == "≤" else value >= bound
            verdict = "reached" if reached else f"short by {abs(value / bound - 1):.0%}"
            yield text, _number(value, unit), f"{sign} {_number(bound, unit)}", verdict


def _get(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _number(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if unit != "x" else f"{value:.3f} x" if value < 1.1 else f"{value:.2f} x"
