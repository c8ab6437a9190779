"""Plots: refreshes by network, by depth and by width; fits by contender; the share of training that refreshes take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import figure23

_COLORS = plt.get_cmap("tab10").colors  # pyright: ignore[reportAttributeAccessIssue]


def plot(parts: Mapping[str, Any], devices: Mapping[str, str], directory: Path) -> list[Path]:
    """Writes `refresh.png`, `fits.png`, `share.png`, `figure23.png`, if there are figures for them; returns their paths.

    Each says the device that its part was measured on.
    """
    written = []
    refresh = {case["network"]: case["contenders"] for case in parts.get("refresh", [])}
    if refresh:
        series = ("PyTorch, median", "plain eigvalsh", "tb_optax, median", "eigenvalues alone", "Gram products alone")
        bars = {label: [_median(case, label) for case in refresh.values()] for label in series}
        written += _bars(list(refresh), bars, f"a refresh, median fit ({devices['refresh']})", directory / "refresh.png")
    fits = ("median", "goodness_of_fit", "fix_finger")
    for network, case in refresh.items():
        if f"tb_optax, {fits[1]}" in case and directory / "fits.png" not in written:
            bars = {
                name: [_median(case, f"{name}, {fit}") for fit in fits] for name in ("WeightWatcher", "PyTorch", "tb_optax")
            }
            written += _bars(fits, bars, f"a refresh of {network} ({devices['refresh']})", directory / "fits.png")
    shares = parts.get("steps", {}).get("training", {}).get("shares")
    if shares:
        written += _shares(shares, devices["steps"], directory / "share.png")
    timed = [case for case in parts.get("figure23", []) if "median" in case["refresh"]]
    if timed:
        written += _figure23(timed, devices["figure23"], directory / "figure23.png")
    return written


def _median(case: Mapping[str, Any], label: str) -> float:
    return 1e3 * case.get(label, {}).get("median", np.nan)


def _bars(groups: Sequence[str], bars: Mapping[str, Sequence[float]], title: str, path: Path) -> list[Path]:
    """A group of bars for each name, one of each series that has figures."""
    bars = {label: heights for label, heights in bars.items() if not np.isnan(heights).all()}
    if not bars:
        return []
    figure, axes = plt.subplots(figsize=(max(6, 1.1 * len(groups) + 2), 4), layout="constrained")
    width = 0.8 / max(len(bars), 1)
    for index, (label, heights) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (index - (len(bars) - 1) / 2) * width
        axes.bar(places, heights, width, label=label, color=_COLORS[index])
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 4 else 0)
    axes.set(title=title, ylabel="milliseconds", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _shares(shares: Mapping[str, Any], title: str, path: Path) -> list[Path]:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    intervals = sorted(map(int, shares))
    axes.plot(intervals, [100 * shares[str(interval)]["share"] for interval in intervals], marker="o")
    axes.set(title=f"share of training time in refreshes ({title})", xlabel="updates between refreshes", ylabel="%")
    axes.set_xscale("log")
    axes.set_xticks(intervals, map(str, intervals))
    return _save(figure, path)


def _figure23(cases: Sequence[Mapping[str, Any]], title: str, path: Path) -> list[Path]:
    """Seconds of a refresh by depth and by width, each with its part of an epoch where that is known."""
    figure, both = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    published = [case for case in cases if figure23.split(case["network"])[1] == 512]
    widths = [case for case in cases if figure23.split(case["network"])[0] == "resnet18"]
    for axes, group, part, label in ((both[0], published, 0, "depth"), (both[1], widths, 1, "width of resnet18")):
        bars = axes.bar(
            [str(figure23.split(case["network"])[part]) for case in group],
            [case["refresh"]["median"] for case in group],
            0.6,
            color=_COLORS[part],
        )
        ratios = map(figure23.share, group)
        axes.bar_label(bars, ["" if ratio is None else f"{ratio:.2%}" for ratio in ratios], fontsize=8)
        axes.set(title=f"by {label}", ylabel="seconds")
    figure.suptitle(f"a refresh, and its part of an epoch ({title})")
    return _save(figure, path)


def _save(figure: Any, path: Path) -> list[Path]:
    for axes in figure.axes:
        axes.grid(alpha=0.25, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return [path]
