r"""
A spectrum before, during and after training
============================================

The paper's Figure 1 shows, for two layers of a ResNet, the eigenvalues of :math:`W W^\top` and the power law fitted to
the upper half of them. This page shows one layer of a small network while it learns to read handwritten digits.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import tb_optax
from examples.digits import load

images, labels, test_images, test_labels = load()
images, test_images = images.reshape(-1, 64), test_images.reshape(-1, 64)

# %%
# A network of three layers. The middle one is square: 400 eigenvalues.

sizes = {"first": (64, 400), "middle": (400, 400), "last": (400, 10)}
keys = jax.random.split(jax.random.key(0), len(sizes))
params = {
    name: {"kernel": jax.random.normal(key, shape) / (2 * shape[0]) ** 0.5, "bias": jnp.zeros(shape[1])}
    for key, (name, shape) in zip(keys, sizes.items(), strict=True)
}


def forward(params, x):
    for name in ("first", "middle"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["last"]["kernel"] + params["last"]["bias"]


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()


tx = optax.sgd(0.1, momentum=0.9)


@jax.jit
def epoch(params, opt_state, order):
    def step(carry, batch):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, images[batch], labels[batch]), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, opt_state), order)[0]


# %%
# The spectrum at the start, after an epoch, and at the end.

random, opt_state, kept = np.random.default_rng(0), tx.init(params), {0: params}
for number in range(1, 41):
    order = random.permutation(len(images))[: 22 * 64].reshape(22, 64)
    params, opt_state = epoch(params, opt_state, order)
    if number in (1, 40):
        kept[number] = params
accuracy = float((forward(params, test_images).argmax(-1) == test_labels).mean())
print(f"{accuracy:.1%} of the test images are read right")

# %%
# The eigenvalues of a random matrix have the density of Marchenko and Pastur (dashed): a bulk with an edge. Training
# pulls a few eigenvalues out of the bulk, one after another; the bulk itself hardly moves.

figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
grid = np.geomspace(0.02, 30, 45)
edge = 4 / 2  # four times the variance of the entries, 1 / 800, times their number in a row
law = np.linspace(0.02, edge - 1e-6, 2000)
density = 2 / (np.pi * edge) * np.sqrt((edge - law) / law)
for axes, (number, each) in zip(panels, kept.items(), strict=True):
    eigenvalues = tb_optax.spectra(each)["middle"]
    fit = tb_optax.fits.median(eigenvalues)
    counts, _ = np.histogram(eigenvalues, grid)
    axes.stairs(counts / len(eigenvalues) / np.diff(grid), grid, fill=True, color="#0072B2", alpha=0.6)
    axes.plot(law, density, "--", color="black", lw=1)
    tail = np.geomspace(float(fit.xmin), float(eigenvalues.max()), 50)
    law_of_tail = 0.5 * (fit.alpha - 1) / fit.xmin * (tail / fit.xmin) ** -fit.alpha  # the tail is half of all
    axes.plot(tail, law_of_tail, color="#D55E00", lw=2)
    axes.set(xscale="log", yscale="log", title=f"after {number} epochs: alpha {fit.alpha:.2f}", xlabel="eigenvalue")
    axes.set_ylim(1e-4, 10)
    print(f"after {number:2d} epochs: alpha {fit.alpha:.3f}, largest eigenvalue {eigenvalues.max():.1f}")
panels[0].set_ylabel("density")
plt.show()
