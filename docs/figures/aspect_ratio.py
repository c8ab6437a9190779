"""Draws docs/images/aspect_ratio.png: alpha of random matrices by their aspect ratio, whole and by windows.

Run from the repository's root: `python -m docs.figures.aspect_ratio`.
"""

import jax
import numpy as np
from matplotlib.figure import Figure

import tb_optax

_ROWS = 256
_RATIOS = (1, 1.5, 2, 3, 4, 6, 8)
_SEEDS = 5


def main() -> None:
    """Each matrix is drawn anew, with independent normal entries: there is no training in any of them."""
    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    choices = {
        "whole matrices": tb_optax.Solver(),
        "81 windows of 100 x 100": tb_optax.Solver(windows=tb_optax.Windows()),
    }
    for label, solver in choices.items():
        found = np.array([_alphas(seed, solver) for seed in range(_SEEDS)])
        axes.errorbar(_RATIOS, found.mean(axis=0), found.std(axis=0, ddof=1), marker="o", capsize=3, label=label)
        print(label, found.mean(axis=0).round(3).tolist())
    axes.set(
        xlabel="columns over rows", ylabel="alpha, median fit", title=f"Random matrices of {_ROWS} rows", ylim=(0, None)
    )
    axes.legend(frameon=False)
    figure.savefig("docs/images/aspect_ratio.png")


def _alphas(seed: int, solver: tb_optax.Solver) -> list[float]:
    keys = jax.random.split(jax.random.key(seed), len(_RATIOS))
    shapes = [(_ROWS, round(_ROWS * ratio)) for ratio in _RATIOS]
    params = {
        f"{columns}": {"kernel": jax.random.normal(key, (rows, columns))}
        for key, (rows, columns) in zip(keys, shapes, strict=True)
    }
    spectra = tb_optax.spectra(params, solver=solver)
    return [float(tb_optax.pl_alpha_hill(spectra[f"{columns}"])) for _, columns in shapes]


if __name__ == "__main__":
    main()
