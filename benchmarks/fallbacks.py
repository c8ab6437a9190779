"""How often a refresh needs singular values in a real run: `python -m benchmarks.fallbacks --epochs 200`.

Trains the network of `examples/digits.py`. Before each epoch, it counts the layers whose median eigenvalue is so far below
the largest that a Gram product cannot resolve it. For these layers, a refresh computes singular values.
"""

import dataclasses
from typing import Annotated, Literal

import jax
import numpy as np
import optax
import tyro
from flax import nnx

import tb_optax
from examples import digits
from tb_optax._spectra.execute import _RESOLVED


@dataclasses.dataclass(frozen=True)
class Settings:
    """Counts the layers that need singular values."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    """Weight decay: in the gradient of SGD, decoupled in AdamW. A strong one shrinks directions that are not learned."""
    epochs: int = 200
    seed: int = 0


def optimizer_of(settings: Settings, steps: int) -> optax.GradientTransformation:
    if settings.optimizer == "adamw":
        return optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=settings.weight_decay)
    sgd = optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9)
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), sgd)


def run(settings: Settings) -> None:
    train_images, train_labels, test_images, test_labels = digits.load()
    model = digits.ResNet(nnx.Rngs(settings.seed))
    layers = tb_optax.trace_layers(model, test_images[:1])
    balance = tb_optax.tempbalance(None, layers=layers)
    inner = optimizer_of(settings, settings.epochs * (len(train_images) // 64))
    optimizer = nnx.Optimizer(model, optax.chain(inner, balance), wrt=nnx.Param)
    random = np.random.default_rng(settings.seed)
    spectra = jax.jit(lambda params: tb_optax.spectra(params, layers=layers))

    medians = []
    for _ in range(settings.epochs):
        params = nnx.state(model, nnx.Param)
        optimizer.opt_state = balance.refresh(optimizer.opt_state, params)
        medians += [values[values.size // 2] / values[-1] for values in map(np.asarray, spectra(params).values())]
        model.train()
        for batch in digits.batches(train_images, train_labels, 64, random):
            digits.train_step(model, optimizer, *batch)
    model.eval()
    print(
        f"{settings.optimizer}, weight decay {settings.weight_decay}: {sum(share < _RESOLVED for share in medians)} of "
        f"{len(medians)} spectra ({settings.epochs} refreshes of {len(layers)} layers) needed singular values; the smallest "
        f"median was {min(medians):.1e} of the largest; test accuracy {digits.accuracy(model, test_images, test_labels):.1%}"
    )


if __name__ == "__main__":
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))
