"""Figures over the runs of all seeds: results, final alphas and their distribution, how far apart alphas are."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from examples.paper.report.alphas import balanced_layers, final_alphas, layer_history
from examples.paper.report.figures import BLUE, GREY, ORANGE, method_color, panels, panels_by_task
from tb_optax import fits

DECAYS = np.linspace(0.5, 4, 15)
_EIGENVALUES = 1000
_PUBLISHED: dict[str, Any] = dict(marker="D", markerfacecolor="none", markeredgecolor="black", linestyle="none", zorder=4)
_POINTS = 200
_HEIGHT = 0.4
"""Of half a violin where it is widest; a row is 1."""
_MARKS: dict[str, dict[str, Any]] = {
    "median": dict(marker="|", markersize=11, markeredgewidth=1.6, color="black"),
    "mean": dict(marker="D", markersize=5.5, color="white", markeredgecolor="black"),
    "a layer of a seed": dict(marker="o", markersize=3, color="#404040"),
}


def result_bars(title: str, runs: pd.DataFrame, quantity: str, path: Path) -> None:
    """A panel for each task, with a bar for each method: mean, standard deviation, and a dot for each seed.

    Bars do not start at zero; a point is as long in one panel as in any other.

    Args:
      title: of the figure.
      runs: a line for each, with `task`, `label`, `result` and `published`, a mean or NaN.
      quantity: what the results are.
      path: where to write.
    """
    ends = runs.melt("task", ["result", "published"], value_name="value").groupby("task")["value"].agg(["min", "max"])
    reach = ends["max"] - ends["min"]
    span = 1.5 * max(reach.max(), 0.4)
    high = ends["max"] + 0.25 * reach.clip(lower=0.4)  # a deviation reaches 0.21 of two results' distance beyond them
    with panels_by_task(path, title, runs) as (figure, rows):
        for axes, task, place, label, of in rows:
            start, mean, color = max(0.0, high[task] - span), of.result.mean(), method_color(label)
            axes.barh(place, mean - start, left=start, height=0.7, color=color, alpha=0.55)
            axes.errorbar(mean, place, xerr=of.result.std(), color="black", capsize=3, linewidth=1.2)
            beside = place + np.linspace(-0.2, 0.2, len(of)) * (len(of) > 1)
            axes.scatter(of.result, beside, s=12, color=color, edgecolor="white", linewidth=0.5, zorder=3)
            axes.plot(of.published.iloc[0], place, **_PUBLISHED)
            axes.set_xlim(start, start + span)
        diamond = "; diamond: published" * bool(runs.published.notna().any())
        figure.supxlabel(f"{quantity}; the axes do not start at 0{diamond}", fontsize=9)


def alphas_by_layer(title: str, runs: pd.DataFrame, path: Path) -> None:
    """The final alphas of the balanced layers under each method: mean and deviation over its seeds; published ones."""
    layers, methods = balanced_layers(runs.row), runs.groupby("label", sort=False)
    with panels(path, title, (2 + 0.32 * len(layers), 3.8)) as (_, [[axes]]):
        for shift, (label, of) in zip(np.linspace(-0.15, 0.15, len(methods)), methods, strict=True):
            places, alphas = np.arange(len(layers)) + shift, final_alphas(of, layers)
            style = dict(color=method_color(str(label)), linestyle="none", marker="o", capsize=2, label=label)
            axes.errorbar(places, alphas.mean(), yerr=alphas.std().fillna(0), **style)  # pyright: ignore[reportArgumentType]
            theirs = [figure.alphas for figure in of.published.iloc[0] if figure.alphas]
            for values in theirs[:1]:
                axes.plot(places, [values.get(layer, np.nan) for layer in layers], **_PUBLISHED, label="published")
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
        axes.set_ylabel("PL_Alpha_Hill at the end,\nmean and deviation over the seeds")
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))  # what is published, once
        axes.legend(list(named.values()), list(named), frameon=False, fontsize=8)


def deviations_over_intervals(title: str, runs: pd.DataFrame, interval: str, path: Path) -> None:
    """How far apart the alphas of the balanced layers are after each interval: under each method, a line for each seed."""
    layers = balanced_layers(runs.row)
    with panels(path, title, (5.5, 3.2)) as (_, [[axes]]):
        for label, of in runs.groupby("label", sort=False):
            lines = pd.concat([layer_history(row, "alpha", layers).std(axis=1, ddof=0) for row in of.row], axis=1)
            axes.plot(lines, color=method_color(str(label)), marker=".", label=[label, *[None] * (len(of) - 1)])
        axes.set(xlabel=interval, ylabel="deviation of PL_Alpha_Hill\nover the balanced layers", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8, title="a line for each seed", title_fontsize=8)


def outline(alphas: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """A kernel estimate of the density between the extremes; no points where they are no distribution, being all alike."""
    if len(alphas) < 2 or np.ptp(alphas) < 1e-6:
        return np.zeros(0), np.zeros(0)
    places = np.linspace(alphas.min(), alphas.max(), _POINTS)
    return places, stats.gaussian_kde(alphas)(places)


def alpha_distributions(title: str, alphas: pd.DataFrame, path: Path) -> None:
    """Figures 11 and 12: a panel for each task, with a violin for each method; all violins are of one area.

    Args:
      title: of the figure.
      alphas: a line for each, with `task`, `label`, `seed` and `alpha`.
      path: where to write.
    """
    methods = alphas.groupby(["task", "label"])
    highest = max(outline(of.dropna().to_numpy(float))[1].max(initial=0.0) for _, of in methods.alpha) or 1.0
    named = alphas.assign(label=alphas.label + ", seeds: " + methods.seed.transform("nunique").astype(str))
    with panels_by_task(path, title, named, sharex=True) as (figure, rows):
        for axes, _, place, label, of in rows:
            values, color = of.alpha.dropna().to_numpy(float), method_color(label)
            if not len(values):
                continue
            places, density = outline(values)
            half = _HEIGHT * density / highest
            axes.fill_between(places, place - half, place + half, facecolor=(color, 0.4), edgecolor=color, linewidth=1)
            # Each layer of each seed is seen: of one seed's few layers the outline alone would tell too much.
            inside = np.random.default_rng(0).uniform(-0.8, 0.8, len(values))
            widths = np.interp(values, places, half) if len(half) else np.zeros(len(values))
            axes.scatter(values, place + inside * widths, s=7, color=color, edgecolor="white", linewidth=0.25, zorder=3)
            axes.vlines(np.median(values), place - _HEIGHT, place + _HEIGHT, color="black", linewidth=1.6, zorder=4)
            axes.plot(values.mean(), place, zorder=5, **_MARKS["mean"])
        rows[-1][0].set_xlabel("PL_Alpha_Hill of the balanced layers at the end")
        marks = [Line2D([], [], linestyle="none", label=name, **style) for name, style in _MARKS.items()]
        figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def synthetic_alphas() -> dict[str, np.ndarray]:
    """What each fit gives for the spectra `λ_i = i^-s`, for each `s` of `DECAYS`; their tails have `1 + 1/s`."""
    ranks = np.arange(_EIGENVALUES, 0.0, -1)
    spectra = jnp.asarray([ranks**-decay for decay in DECAYS])
    tails = {"median": fits.median, "goodness of fit": fits.goodness_of_fit, "fix finger": fits.fix_finger}
    return {name: np.asarray(fit(spectra).alpha) for name, fit in tails.items()}


def synthetic_figure(path: Path) -> None:
    """Figure 10: alpha of spectra that decay as a power of the rank, by each fit, beside what theory has."""
    with panels(path, "", (6, 3.8)) as (_, [[axes]]):
        axes.plot(DECAYS, 1 + 1 / DECAYS, color="black", linewidth=1, label="theory: 1 + 1/s")
        # Hollow and of different sizes: the fits agree, and each must be seen.
        styles = [("s", 10, GREY), ("o", 6, ORANGE), ("x", 4, BLUE)]
        for (name, alphas), (marker, size, color) in zip(synthetic_alphas().items(), styles, strict=True):
            style: dict[str, Any] = dict(markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.5, label=name)
            axes.plot(DECAYS, alphas, linestyle="none", marker=marker, markersize=size, **style)
        axes.set(xlabel="s, of eigenvalues that decay as $\\lambda_i = i^{-s}$", ylabel="alpha")
        axes.legend(frameon=False)
