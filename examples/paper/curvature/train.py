"""Trains and measures: `python -m examples.paper curvature train --seeds 1 2 3`.

Adds a line for each run to a file of results. A run that the file has already is not done again.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples import digits
from examples.paper.curvature.mlp import MLP, Penalty, cross_entropy, train_epoch
from examples.paper.curvature.spectra import hessian, output_covariance
from examples.paper.provenance import provenance
from examples.paper.results import append_row, read_rows, rounded

RESULTS = Path(__file__).parent / "results" / "digits.jsonl"
MEASURED = (1, 10, 20, 30, 40, 50)
COVARIANCE_EIGENVALUES, HESSIAN_EIGENVALUES = 100, 50
WIDTH, BATCH_SIZE, LEARNING_RATE = 2000, 128, 1e-3


def train(
    seeds: tuple[int, ...] = tuple(range(1, 11)),
    exponents: tuple[float, ...] = (1.0, 0.5, 1.5),
    without: bool = True,
    results: Path = RESULTS,
) -> None:
    """Trains an MLP of 2,000 hidden units on digits for 50 epochs, with Adam.

    Args:
      seeds: of the initialization and the order of the images.
      exponents: of the power law that the penalty asks of the output covariance, a run each.
      without: also trains without a penalty.
      results: the file that lines are added to.
    """
    wanted = [(seed, exponent) for seed in seeds for exponent in (*exponents, *[None] * without)]
    for seed, exponent in wanted:
        settings = {"exponent": exponent, "seed": seed}
        done = read_rows(results) if results.exists() else []
        if settings not in [row["settings"] for row in done]:
            row = {"settings": settings, "history": run(seed, exponent), **provenance()}
            append_row(results, row)
            last = row["history"][-1]
            print(f"seed {seed}, exponent {exponent}: test accuracy {last['test_accuracy']:.1%}", flush=True)


def run(seed: int, exponent: float | None) -> list[dict[str, Any]]:
    """What is measured at each of the epochs."""
    train_images, labels, test_images, test_labels = digits.load()
    images, test_images = (each.reshape(len(each), -1) for each in (train_images, test_images))
    model, optimizer = MLP(WIDTH), optax.adam(LEARNING_RATE)
    penalty = None if exponent is None else Penalty(exponent)
    params = model.init(jax.random.key(seed), images[:1])
    state = (params, optimizer.init(params))
    epoch = jax.jit(partial(train_epoch, model, optimizer, penalty))

    random, history = np.random.default_rng(seed), []
    steps = len(images) // BATCH_SIZE
    for number in range(1, max(MEASURED) + 1):
        order = random.permutation(len(images))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        state = epoch(state, images, labels, jnp.asarray(order))
        if number in MEASURED:
            history.append({"epoch": number, **measure(model, state[0], images, labels, test_images, test_labels)})
    return history


def measure(model: MLP, params: Any, images: Any, labels: Any, test_images: Any, test_labels: Any) -> dict[str, Any]:
    """Eigenvalues on the training images, largest first, and how well the network does."""
    covariance = output_covariance(model.apply(params, images)[1], COVARIANCE_EIGENVALUES)  # pyright: ignore
    loss = partial(cross_entropy, model, images=images, labels=labels)
    right = model.apply(params, test_images)[0].argmax(-1) == test_labels  # pyright: ignore
    return {
        "train_loss": float(loss(params)),
        "test_accuracy": float(right.mean()),
        "output_covariance": list(map(rounded, covariance)),
        "hessian": list(map(rounded, hessian(loss, params, HESSIAN_EIGENVALUES))),
    }
