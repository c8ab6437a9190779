"""The controls of TempBalance: what they keep of its scales, and what they take away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tb_optax
from examples.paper.controls import mean, placebo
from examples.paper.vision.methods import create_optimizer
from examples.paper.vision.settings import Settings
from tb_optax import assignments

METRICS = jnp.array([2.0, 3.0, jnp.nan, 4.0, 5.0, 2.5])


def many(assign, count=600):
    """The scales at so many refreshes, between which alphas move by as little as they do in a few steps."""
    noise = 1e-4 * jax.random.normal(jax.random.key(0), (count, len(METRICS)))
    return np.asarray(jax.vmap(lambda metrics: assign(metrics, 0.5, 1.5))(METRICS + noise))


def test_the_placebo_deals_the_same_scales_to_random_layers():
    """Each layer gets each scale about as often: of 600 a fifth, give or take five standard deviations."""
    own, dealt = many(assignments.linear), many(placebo(assignments.linear))
    assert np.isnan(dealt[:, 2]).all() and np.isfinite(np.delete(dealt, 2, axis=1)).all()
    np.testing.assert_array_equal(np.sort(own), np.sort(dealt))
    order = np.argsort(np.delete(dealt, 2, axis=1))
    counts = np.array([[np.sum(order[:, rank] == layer) for layer in range(5)] for rank in range(5)])
    assert (abs(counts - 120) < 5 * np.sqrt(600 * 0.2 * 0.8)).all()


def test_the_placebo_says_nothing_of_alpha():
    """What a layer is dealt is not correlated with what it would have."""
    own, dealt = (
        np.delete(scales, 2, axis=1).ravel() for scales in (many(assignments.linear), many(placebo(assignments.linear)))
    )
    assert abs(np.corrcoef(own, dealt)[0, 1]) < 5 / np.sqrt(len(own))


def test_the_placebo_is_dealt_anew_where_any_alpha_or_their_order_has_changed():
    dealt = lambda metrics: placebo(assignments.linear)(metrics, 0.5, 1.5)
    layers = jnp.linspace(2.0, 5.0, 20)
    nudged = layers.at[7].set(jnp.nextafter(layers[7], 9.0))
    np.testing.assert_array_equal(dealt(layers), dealt(layers))
    assert (np.asarray(dealt(layers)) != np.asarray(dealt(nudged))).sum() > 10
    assert (np.asarray(dealt(layers)[::-1]) != np.asarray(dealt(layers[::-1]))).sum() > 10


def test_the_mean_keeps_the_mean_rate_alone():
    own, level = many(assignments.linear, 10), many(mean(assignments.linear), 10)
    assert np.isnan(level[:, 2]).all() and (np.ptp(np.delete(level, 2, axis=1), axis=1) == 0).all()
    np.testing.assert_allclose(level[:, 0], np.nanmean(own, axis=1), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "placebo", "mean"])
def test_a_flag_puts_the_control_in_tempbalances_place(control):
    keys = jax.random.split(jax.random.key(1), 8)  # So many that hardly ever each is dealt its own.
    params = {f"layer{index}": {"kernel": jax.random.normal(key, (60, 60 + index))} for index, key in enumerate(keys)}
    settings = dataclasses.replace(Settings(method="tb", control=control).resolved(), weight_decay=0.0)
    tx = create_optimizer(settings, lambda _: 0.1, 1, tb_optax.find_layers, tb_optax.find_layers)
    state = tx.refresh(tx.init(params), params)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    scales = np.array([float(updates[name]["kernel"][0, 0]) / -0.1 for name in params])
    alphas = jnp.stack([tb_optax.metrics.pl_alpha_hill(values) for values in tb_optax.spectra(params).values()])
    own = np.asarray(assignments.linear(alphas))
    if control == "mean":
        np.testing.assert_allclose(scales, own.mean(), rtol=1e-4)
    else:
        np.testing.assert_allclose(np.sort(scales), np.sort(own), rtol=1e-4)
    assert np.allclose(scales, own, rtol=1e-4) == (control == "none")


def test_a_method_without_tempbalance_has_no_control():
    assert Settings(method="cal", control="mean").resolved() == Settings(method="cal").resolved()
    assert Settings(method="tb", control="mean").resolved() != Settings(method="tb").resolved()
