r"""
What a rank-one update does to a spectrum
=========================================

The paper's Figure 20 shows a large eigenvalue that leaves the others within the first epoch. A gradient is a sum of
few directions, so at a high learning rate a step is a large matrix of low rank. Here is the simplest case: a random
matrix plus :math:`\theta u v^\top`.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import tb_optax

rows, columns = 400, 800
noise_key, u_key, v_key = jax.random.split(jax.random.key(0), 3)
noise = jax.random.normal(noise_key, (rows, columns)) / columns**0.5
u, v = (jax.random.normal(key, (size,)) for key, size in ((u_key, rows), (v_key, columns)))
update = jnp.outer(u / jnp.linalg.norm(u), v / jnp.linalg.norm(v))

strengths = np.arange(0, 4.01, 0.25)
params = {f"{strength:.2f}": {"kernel": noise + strength * update} for strength in strengths}
spectra = tb_optax.spectra(params)

# %%
# Up to a strength of :math:`c^{1/4}`, where :math:`c` is the number of rows divided by that of columns, the update is
# invisible in the noise. Above it one eigenvalue leaves the bulk, and has the value that random matrix theory
# predicts, :math:`(1 + \theta^2)(c + \theta^2) / \theta^2`.

ratio = rows / columns
above = np.linspace(ratio**0.25, 4, 100)
largest = [float(spectra[name].max()) for name in params]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for strength, color in ((0.0, "#8c8c8c"), (1.5, "#0072B2"), (4.0, "#D55E00")):
    eigenvalues = np.asarray(spectra[f"{strength:.2f}"])
    left.hist(eigenvalues, np.linspace(0, 18, 90), histtype="step", color=color, label=f"strength {strength:g}")
left.set(xlabel="eigenvalue", ylabel="how many", yscale="log")
left.legend(frameon=False)
right.plot(strengths, largest, "o", color="#0072B2", label="measured")
right.plot(above, (1 + above**2) * (ratio + above**2) / above**2, color="black", lw=1, label="theory")
right.hlines((1 + ratio**0.5) ** 2, 0, ratio**0.25, color="black", lw=1)
right.set(xlabel="strength of the update", ylabel="largest eigenvalue")
right.legend(frameon=False)
plt.show()

# %%
# The spectral norm is the root of that eigenvalue, so it changes at once. Alpha depends on the mean of 200 logarithms,
# of which one has changed: it reflects the whole tail, not a spike.

for strength in (0.0, 1.0, 2.0, 4.0):
    eigenvalues = spectra[f"{strength:.2f}"]
    alpha, norm = tb_optax.metrics.pl_alpha_hill(eigenvalues), tb_optax.metrics.spectral_norm(eigenvalues)
    print(f"strength {strength:g}: alpha {float(alpha):.3f}, spectral norm {float(norm):.2f}")
