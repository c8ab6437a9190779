"""How often a refresh needs singular values in a real run: `python -m benchmarks.fallbacks --epochs 200`.

Trains the network of `examples/digits.py`. Before each epoch, it counts the layers whose median eigenvalue is so far below
the largest that a Gram product cannot resolve it. For these layers, a refresh computes singular values.
"""

from typing import Literal

import jax
import numpy as np
import optax
import tyro
from flax import nnx

import tb_optax
from examples import digits
from tb_optax._spectra.execute import _RESOLVED


def main(optimizer: Literal["sgd", "adamw"] = "sgd", weight_decay: float = 5e-4, epochs: int = 200, seed: int = 0) -> None:
    """Counts the layers that need singular values.

    Args:
      optimizer: what trains.
      weight_decay: of SGD by the gradient, of AdamW decoupled. A strong one shrinks what learning does not hold up.
      epochs: of the run.
      seed: of the weights and the batches.
    """
    train_images, train_labels, test_images, test_labels = digits.load()
    model = digits.ResNet(nnx.Rngs(seed))
    layers = tb_optax.trace_layers(model, test_images[:1])
    balance = tb_optax.tempbalance(None, layers=layers)
    learning_rate = optax.cosine_decay_schedule(1e-3 if optimizer == "adamw" else 0.1, epochs * (len(train_images) // 64))
    sgd = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=0.9))
    inner = sgd if optimizer == "sgd" else optax.adamw(learning_rate, weight_decay=weight_decay)
    trained = nnx.Optimizer(model, optax.chain(inner, balance), wrt=nnx.Param)
    random = np.random.default_rng(seed)
    spectra = jax.jit(lambda params: tb_optax.spectra(params, layers=layers))

    medians = []
    for _ in range(epochs):
        params = nnx.state(model, nnx.Param)
        trained.opt_state = balance.refresh(trained.opt_state, params)
        medians += [values[values.size // 2] / values[-1] for values in map(np.asarray, spectra(params).values())]
        model.train()
        for batch in digits.batches(train_images, train_labels, 64, random):
            digits.train_step(model, trained, *batch)
    model.eval()
    print(
        f"{optimizer}, weight decay {weight_decay}: {sum(share < _RESOLVED for share in medians)} of {len(medians)} spectra "
        f"({epochs} refreshes of {len(layers)} layers) needed singular values; the smallest median was {min(medians):.1e} "
        f"of the largest; test accuracy {digits.accuracy(model, test_images, test_labels):.1%}"
    )


if __name__ == "__main__":
    tyro.cli(main)
