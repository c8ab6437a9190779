r"""
Alpha and how fast eigenvalues decay
====================================

The paper's Figure 10. If eigenvalues fall with their rank as :math:`\lambda_k = \lambda_1 k^{-s}`, their density is a
power law of exponent :math:`\alpha`, and :math:`s = 1 / (\alpha - 1)`. How accurate is the fit that training uses?
"""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import tb_optax

sizes = (16, 32, 64, 128, 256, 512, 768, 1024)
decays = jnp.arange(0.2, 3.25, 0.1)

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
colors = plt.colormaps["viridis"](np.linspace(0, 0.9, len(sizes)))
for size, color in zip(sizes, colors, strict=True):
    ranks = jnp.arange(size, 0, -1)
    eigenvalues = ranks.astype("float32") ** -decays[:, None]  # ascending, a row for each decay
    alphas = tb_optax.metrics.pl_alpha_hill(eigenvalues)
    axes.plot(decays, alphas, color=color, marker=".", lw=1, label=f"{size} eigenvalues")
axes.plot(decays, 1 + 1 / decays, "--", color="black", lw=1, label=r"$\alpha = 1 + 1/s$")
axes.set(xlabel="s", ylabel="alpha, median fit", yscale="log", yticks=[1.3, 2, 3, 4, 6], ylim=(1.25, None))
axes.yaxis.set_major_formatter("{x:g}")
axes.yaxis.set_minor_formatter("")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %%
# At every size, a faster decay has a smaller alpha. With few eigenvalues the fitted alpha is too large; with 50 the
# error is a tenth. So compare alphas of spectra of one size. Layers with fewer than 50 eigenvalues are not balanced.

for size in (16, 64, 256, 1024):
    eigenvalues = jnp.arange(size, 0, -1).astype("float32") ** -1.0
    alpha = float(tb_optax.metrics.pl_alpha_hill(eigenvalues))
    print(f"{size:5d} eigenvalues, s = 1: alpha {alpha:.3f}, where 2 would be right")
