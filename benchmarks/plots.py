"""Plots: refreshes by network, by depth and by width; fits by contender."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks import figure23
from benchmarks.refresh import FITS

_SERIES = ("PyTorch, median", "plain eigvalsh", "tb_optax, median", "eigenvalues alone", "Gram products alone")


def plot(parts: Mapping[str, Any], devices: Mapping[str, str], directory: Path) -> list[Path]:
    """Writes `refresh.png`, `fits.png`, `figure23.png`, where there are results for them; returns their paths.

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
    for case in (cases := parts.get("refresh", []))[:1]:
        contenders = [case["contenders"] for case in cases]
        bars = {label: [_median(found, label) for found in contenders] for label in _SERIES}
        yield "refresh", _bars([case["network"] for case in cases], bars, f"a refresh, median fit ({devices['refresh']})")
    for case in [case for case in cases if "tb_optax, goodness_of_fit" in case["contenders"]][:1]:
        names = ("WeightWatcher", "PyTorch", "tb_optax")
        bars = {name: [_median(case["contenders"], f"{name}, {fit}") for fit in FITS] for name in names}
        yield "fits", _bars(FITS, bars, f"a refresh of {case['network']} ({devices['refresh']})")
    timed = [case for case in parts.get("figure23", []) if "median" in case["refresh"]]
    if timed:
        yield "figure23", _figure23(timed, devices["figure23"])


def _median(contenders: Mapping[str, Any], label: str) -> float:
    return 1e3 * contenders.get(label, {}).get("median", np.nan)


def _bars(groups: Sequence[str], bars: Mapping[str, Sequence[float]], title: str) -> Figure:
    """A group of bars for each name, with one bar of each series that has a time."""
    bars = {label: heights for label, heights in bars.items() if not np.isnan(heights).all()}
    figure, axes = plt.subplots(figsize=(max(6, 1.1 * len(groups) + 2), 4), layout="constrained")
    width = 0.8 / max(len(bars), 1)
    for index, (label, heights) in enumerate(bars.items()):
        axes.bar(np.arange(len(groups)) + (index - (len(bars) - 1) / 2) * width, heights, width, label=label)
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 4 else 0)
    axes.set(title=title, ylabel="milliseconds", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _figure23(cases: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Seconds of a refresh by depth and by width, each with its share of an epoch where that is known."""
    figure, both = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    named = [(figure23.split(case["network"]), case) for case in cases]
    published = [(model, case) for (model, channels), case in named if channels == 512]
    widths = [(str(channels), case) for (model, channels), case in named if model == "resnet18"]
    for axes, group, label in zip(both, (published, widths), ("depth", "width of resnet18"), strict=True):
        bars = axes.bar([name for name, _ in group], [case["refresh"]["median"] for _, case in group], 0.6)
        ratios = (figure23.share(case) for _, case in group)
        axes.bar_label(bars, ["" if ratio is None else f"{ratio:.2%}" for ratio in ratios], fontsize=8)
        axes.set(title=f"by {label}", ylabel="seconds")
    figure.suptitle(f"a refresh, and its part of an epoch ({title})")
    return figure
