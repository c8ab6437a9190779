"""
Scales of an untrained network follow its shapes
================================================

Alpha of a random matrix depends on its aspect ratio. So before anything has been learned, TempBalance's default gives the
MLPs of a Transformer three times the learning rate of its attention. A metric relative to noise does not.
"""

import jax
import matplotlib.pyplot as plt

import tb_optax
from tb_optax import assignments, metrics

shapes = {"query": (384, 384), "value": (384, 384), "out": (384, 384), "up": (384, 1536), "down": (1536, 384)}
keys = iter(jax.random.split(jax.random.key(0), 100))
params = {
    f"block{block}": {name: {"kernel": jax.random.normal(next(keys), shape)} for name, shape in shapes.items()}
    for block in range(6)
}


def scales(params, **options):
    tempbalance = tb_optax.tempbalance(None, **options)
    return tempbalance.refresh(tempbalance.init(params), params).scale


relative = metrics.relative_to_noise(metrics.pl_alpha_hill)
ways = {
    "alpha, linear: the default": {},
    "alpha relative to noise, sqrt": {"metric": relative, "assign": assignments.sqrt},
}


def plot(params, axes):
    for label, options in ways.items():
        found = scales(params, **options)
        axes.plot(
            [name.replace("block", "") for name in found], [float(scale) for scale in found.values()], "o", label=label
        )
        by_kernel = {name: [float(v) for layer, v in found.items() if layer.endswith(name)] for name in shapes}
        print(label, {name: f"{min(values):.2f} to {max(values):.2f}" for name, values in by_kernel.items()})
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set(ylabel="scale", ylim=(0.4, 1.8))


figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
plot(params, axes)
axes.legend(frameon=False, loc="upper center", ncols=2)
plt.show()

# %%
# Relative to noise, every scale is within 1% of 1. Now one square kernel and one of the MLP's learn: their singular values
# fall like a power of their rank. Both get small scales, whatever their shapes.


def learned(weight):
    left, values, right = jax.numpy.linalg.svd(weight, full_matrices=False)
    return (left * (1.0 + jax.numpy.arange(len(values))) ** -0.7) @ right


for block, name in (("block2", "query"), ("block4", "up")):
    params[block][name]["kernel"] = learned(params[block][name]["kernel"])
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
plot(params, axes)
axes.legend(frameon=False, loc="upper center", ncols=2)
plt.show()

# %%
# Under the default, the learned kernels set the lower bound, and the untrained attention still learns more slowly than
# the untrained MLPs. In a trained GPT the two groups of scales do not overlap either (:doc:`/reading`).
