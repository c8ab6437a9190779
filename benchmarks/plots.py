"""Plots: refreshes by network, by depth and by width; fits by contender; the share of training that refreshes take."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks import figure23

_COLORS = plt.get_cmap("tab10").colors  # pyright: ignore[reportAttributeAccessIssue]
_FITS = ("median", "goodness_of_fit", "fix_finger")


def plot(parts: Mapping[str, Any], devices: Mapping[str, str], directory: Path) -> list[Path]:
    """Writes `refresh.png`, `fits.png`, `share.png`, `figure23.png`, where there are results for them; returns their paths.

    Each title names the device of its part.
    """
    written = []
    for name, figure in _figures(parts, devices):
        for axes in figure.axes:
            axes.grid(alpha=0.25, axis="y")
            axes.spines[["top", "right"]].set_visible(False)
        written.append(directory / f"{name}.png")
        figure.savefig(written[-1], dpi=150)
        plt.close(figure)
    return written


def _figures(parts: Mapping[str, Any], devices: Mapping[str, str]) -> Iterator[tuple[str, Figure]]:
    refresh = {case["network"]: case["contenders"] for case in parts.get("refresh", [])}
    series = ("PyTorch, median", "plain eigvalsh", "tb_optax, median", "eigenvalues alone", "Gram products alone")
    bars = _known({label: [_median(case, label) for case in refresh.values()] for label in series})
    if bars:
        yield "refresh", _bars(list(refresh), bars, f"a refresh, median fit ({devices['refresh']})")
    network = next((name for name, case in refresh.items() if "tb_optax, goodness_of_fit" in case), None)
    if network is not None:
        median = lambda name, fit: _median(refresh[network], f"{name}, {fit}")
        bars = _known({name: [median(name, fit) for fit in _FITS] for name in ("WeightWatcher", "PyTorch", "tb_optax")})
        if bars:
            yield "fits", _bars(_FITS, bars, f"a refresh of {network} ({devices['refresh']})")
    shares = parts.get("steps", {}).get("training", {}).get("shares")
    if shares:
        yield "share", _shares(shares, devices["steps"])
    timed = [case for case in parts.get("figure23", []) if "median" in case["refresh"]]
    if timed:
        yield "figure23", _figure23(timed, devices["figure23"])


def _median(case: Mapping[str, Any], label: str) -> float:
    return 1e3 * case.get(label, {}).get("median", np.nan)


def _known(bars: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    return {label: heights for label, heights in bars.items() if not np.isnan(heights).all()}


def _bars(groups: Sequence[str], bars: Mapping[str, Sequence[float]], title: str) -> Figure:
    """A group of bars for each name, with one bar of each series."""
    figure, axes = plt.subplots(figsize=(max(6, 1.1 * len(groups) + 2), 4), layout="constrained")
    width = 0.8 / len(bars)
    for index, (label, heights) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (index - (len(bars) - 1) / 2) * width
        axes.bar(places, heights, width, label=label, color=_COLORS[index])
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 4 else 0)
    axes.set(title=title, ylabel="milliseconds", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _shares(shares: Mapping[str, Any], title: str) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    intervals = sorted(map(int, shares))
    axes.plot(intervals, [100 * shares[str(interval)]["share"] for interval in intervals], marker="o")
    axes.set(title=f"share of training time in refreshes ({title})", xlabel="updates between refreshes", ylabel="%")
    axes.set_xscale("log")
    axes.set_xticks(intervals, map(str, intervals))
    return figure


def _figure23(cases: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Seconds of a refresh by depth and by width, each with its share of an epoch where that is known."""
    figure, both = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    published = [case for case in cases if figure23.split(case["network"])[1] == 512]
    widths = [case for case in cases if figure23.split(case["network"])[0] == "resnet18"]
    for axes, group, place, label in ((both[0], published, 0, "depth"), (both[1], widths, 1, "width of resnet18")):
        names = [str(figure23.split(case["network"])[place]) for case in group]
        bars = axes.bar(names, [case["refresh"]["median"] for case in group], 0.6, color=_COLORS[place])
        ratios = map(figure23.share, group)
        axes.bar_label(bars, ["" if ratio is None else f"{ratio:.2%}" for ratio in ratios], fontsize=8)
        axes.set(title=f"by {label}", ylabel="seconds")
    figure.suptitle(f"a refresh, and its part of an epoch ({title})")
    return figure
