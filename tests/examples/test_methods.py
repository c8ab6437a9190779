import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tb_optax
from examples.vision.methods import cosine_per_epoch, create_optimizer


def test_the_learning_rate_is_a_cosine_constant_within_an_epoch():
    schedule = cosine_per_epoch(0.1, epochs=4, steps_per_epoch=10)
    for step in range(40):
        assert float(schedule(step)) == pytest.approx(0.05 * (1 + np.cos(np.pi * (step // 10) / 4)))


@pytest.mark.parametrize("method", ["cal", "tb"])
def test_steps_are_those_of_pytorchs_sgd_with_a_learning_rate_for_each_layer(method):
    """`g += wd * w; buf = 0.9 buf + g; w -= lr * buf`, written out, with the scales that the state shows."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {f"layer{i}": {"kernel": jax.random.normal(key, (50, 60))} for i, key in enumerate(keys)}
    schedule = cosine_per_epoch(0.1, epochs=3, steps_per_epoch=2)
    tx = create_optimizer(
        method,
        schedule,
        weight_decay=5e-4,
        update_interval=2,
        min_scale=0.5,
        max_scale=1.5,
        layers=tb_optax.find_layers,
    )
    state = tx.init(params)
    weights = {name: np.asarray(layer["kernel"], np.float64) for name, layer in params.items()}
    buffers = {name: 0.0 for name in weights}
    for step in range(6):
        grads = jax.tree.map(lambda w: jnp.cos(w + step), params)  # noqa: B023
        updates, state = tx.update(grads, state, params)
        balance = optax.tree_utils.tree_get(state, "TempBalanceState")
        for name in weights:
            buffers[name] = 0.9 * buffers[name] + np.asarray(grads[name]["kernel"]) + 5e-4 * weights[name]
            scale = 1.0 if balance is None else float(balance.scale[name])
            weights[name] = weights[name] - float(schedule(step)) * scale * buffers[name]
        params = optax.apply_updates(params, updates)
    assert (balance is None) == (method == "cal")
    for name, layer in params.items():
        np.testing.assert_allclose(layer["kernel"], weights[name], atol=1e-5)
