"""The contenders that train: an optimizer's update alone, and steps of the networks in `examples/paper/vision`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tb_optax
from benchmarks.contenders import Case, Prepared
from benchmarks.networks import create
from examples.paper.vision.models import create_model

# An update interval that is never reached.
NEVER = 10**6


def optimizer(case: Case) -> Prepared:
    """Updates of the paper's chain on given gradients, with TempBalance in it (`tb`) or without (`cal`).

    One program makes `case["updates"]` of them. With TempBalance, the first update refreshes and no other does.
    """
    network = create(case["network"])
    layers = functools.partial(tb_optax.find_layers, exclude=network.exclude)
    tx = _sgd() if case["method"] == "cal" else optax.chain(_sgd(), tb_optax.tempbalance(NEVER, layers=layers))
    params = jax.device_put(network.params)
    grads = jax.tree.map(lambda leaf: 1e-3 * leaf, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def steps(params: Any, opt_state: optax.OptState, grads: Any) -> tuple[Any, optax.OptState]:
        def step(carry: tuple[Any, optax.OptState], _: None) -> tuple[tuple[Any, optax.OptState], None]:
            params, opt_state = carry
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, opt_state), length=case["updates"])[0]

    held = [params, tx.init(params)]

    def run() -> None:
        held[:] = steps(*held, grads)
        jax.block_until_ready(held)

    return Prepared(run)


def training(case: Case) -> Prepared:
    """Steps without TempBalance on one batch of random images.

    The case gives `model`, `width`, `dtype`, `batch_size` and `steps`, the number of steps that are timed at once.
    """
    random, size = np.random.default_rng(0), case["batch_size"]
    images = jax.device_put(random.standard_normal((size, 32, 32, 3), np.float32))
    labels = jax.device_put(random.integers(0, 10, size, np.int32))
    options = {"width": case["width"], "dtype": jnp.dtype(case["dtype"]), "num_classes": 10, "image_shape": (32, 32, 3)}
    # One program, with keys that compile fast, takes 4 s on CPU instead of 20.
    build = nnx.jit(lambda key: create_model(case["model"], rngs=nnx.Rngs(key), **options))
    graphdef, params, statistics = nnx.split(build(jax.random.key(0, impl="rbg")), nnx.Param, ...)
    tx = _sgd()

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, statistics: Any, opt_state: Any, images: Any, labels: Any) -> tuple[Any, Any, Any]:
        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params, statistics, copy=True)
            logits = model(images).astype(jnp.float32)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, nnx.state(model, nnx.Not(nnx.Param))

        grads, new_statistics = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_statistics, opt_state

    held = [params, statistics, tx.init(params)]

    def run() -> None:
        for _ in range(case["steps"]):
            held[:] = step(*held, images, labels)
        jax.block_until_ready(held)

    return Prepared(run)


def _sgd() -> optax.GradientTransformation:
    """The paper's optimizer."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(optax.constant_schedule(0.1), momentum=0.9))
