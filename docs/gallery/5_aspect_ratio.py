"""
Alpha of matrices that are not square
=====================================

A random matrix has learned nothing, whatever its shape. Its alpha still depends on its aspect ratio, and so do
comparisons between layers of different shapes. Windows of one shape (Hu et al., FARMS, ICML 2025) remove this effect.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

import tb_optax

rows, ratios, seeds = 256, (1, 1.5, 2, 3, 4, 6, 8), 5
kinds = {
    "whole matrices": None,
    "81 windows of 100 x 100": tb_optax.Windows(),
}


def alphas(seed, windows):
    keys = jax.random.split(jax.random.key(seed), len(ratios))
    params = {
        str(ratio): {"kernel": jax.random.normal(key, (rows, round(rows * ratio)))}
        for key, ratio in zip(keys, ratios, strict=True)
    }
    spectra = tb_optax.spectra(params, windows=windows)
    return [float(tb_optax.metrics.pl_alpha_hill(spectra[str(ratio)])) for ratio in ratios]


figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for label, windows in kinds.items():
    found = np.array([alphas(seed, windows) for seed in range(seeds)])
    axes.errorbar(ratios, found.mean(axis=0), found.std(axis=0, ddof=1), marker="o", capsize=3, label=label)
    print(f"{label}: {found.mean(axis=0).round(2).tolist()}")
axes.set(xlabel="columns for each row", ylabel="alpha, median fit", ylim=(0, None))
axes.legend(frameon=False)
plt.show()

# %%
# Means and deviations of five matrices each. Random matrices of other sizes have the same alphas, which scatter less
# for larger matrices. So compare a layer with the noise of its shape. The stable rank, the sum of the eigenvalues
# divided by the largest, also distinguishes a layer from noise.

for rows in (64, 256, 1024):
    for ratio in (1, 2, 4):
        matrices = {
            str(seed): {"kernel": np.random.default_rng(seed).normal(size=(rows, rows * ratio)).astype("float32")}
            for seed in range(seeds)
        }
        spectra = tb_optax.spectra(matrices).values()
        found = np.array([float(tb_optax.metrics.pl_alpha_hill(each)) for each in spectra])
        by_distance = [float(tb_optax.fits.goodness_of_fit(each).alpha) for each in spectra]
        stable_rank = np.mean([float(each.sum() / each.max()) for each in spectra]) / rows
        print(
            f"{rows:4d} x {rows * ratio:4d}: alpha {found.mean():.2f} +- {found.std(ddof=1):.2f}, by goodness of fit from "
            f"{min(by_distance):.1f} to {max(by_distance):.1f}; stable rank {stable_rank:.2f} of the rows"
        )

# %%
# Whether windows help in training is another question: in our runs, balancing by windows made results worse
# (:doc:`/evidence`).
