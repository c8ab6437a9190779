"""The controls of TempBalance: what they keep of its scales, and what they take away."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tb_optax
from examples.paper.balance import with_tempbalance
from examples.paper.controls import mean, placebo, reverse
from examples.paper.errors import UserError
from examples.paper.language.settings import Settings as LanguageSettings
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


def test_the_reverse_deals_the_same_scales_in_the_opposite_order():
    own, turned = many(assignments.linear, 10), many(reverse(assignments.linear), 10)
    np.testing.assert_array_equal(np.isnan(own), np.isnan(turned))
    own, turned = (np.delete(scales, 2, axis=1) for scales in (own, turned))
    np.testing.assert_array_equal(np.sort(own), np.sort(turned))
    np.testing.assert_array_equal(np.argsort(own), np.argsort(-turned))


SHAPES = {"attention": (60, 60), "up": (60, 240), "down": (240, 60), "out": (60, 60), "value": (60, 60)}
PARAMS = {
    name: {"kernel": jax.random.normal(key, shape)}
    for key, (name, shape) in zip(jax.random.split(jax.random.key(2), 5), SHAPES.items(), strict=True)
} | {"embed": {"embedding": jnp.ones((100, 60))}, "norm": {"scale": jnp.ones(60)}}
LLR = LanguageSettings(
    method="tb+adamw",
    min_scale=1.0,
    max_scale=3.0,
    greatest_ends=True,
    update_interval=4,
    transition_steps=3,
    refresh_fraction=0.2,
)


@functools.cache
def scales_after(settings):
    """What each parameter's step is multiplied by, after 15 updates."""
    layers = tb_optax.find_layers(PARAMS, unmeasured="embed*")
    return scales_of(with_tempbalance(optax.identity(), settings, settings.evaluation_interval, layers))


def scales_of(tx):
    update, state, ones = jax.jit(tx.update), tx.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for _ in range(15):
        updates, state = update(ones, state, PARAMS)
    return {name: float(jax.tree.leaves(leaf)[0].mean()) for name, leaf in updates.items()}


def test_flags_make_llr():
    found = scales_after(LLR)
    assert found["norm"] == 1 and found["embed"] == pytest.approx(3)
    assert [min(found[name] for name in SHAPES), max(found[name] for name in SHAPES)] == pytest.approx([1, 3])
    layers = tb_optax.find_layers(PARAMS, unmeasured="embed*")
    llr = tb_optax.llr(LLR.updates, layers=layers, update_interval=4, transition_steps=3)
    assert found == pytest.approx(scales_of(llr), rel=1e-5)


@pytest.mark.parametrize("control", ["mean", "shape", "embedding", "reversed", "placebo"])
def test_every_control_of_llr_keeps_the_greatest_scale_of_the_embedding_or_says_so(control):
    own, found = scales_after(LLR), scales_after(dataclasses.replace(LLR, control=control))
    assert found["norm"] == 1
    measured = [found[name] for name in SHAPES]
    if control == "mean":
        assert measured == pytest.approx([np.mean([own[name] for name in SHAPES])] * 5, rel=1e-5)
    elif control == "shape":
        assert measured == pytest.approx([1, 3, 3, 1, 1])
    elif control == "embedding":
        assert measured == [1] * 5
    else:
        assert sorted(measured) == pytest.approx(sorted(own[name] for name in SHAPES), rel=1e-4)
    assert found["embed"] == pytest.approx(max(measured) if control == "mean" else 3, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"greatest_ends": False, "control": "embedding"}, "--control embedding scales what --greatest-ends names"),
        ({"first_and_last": True}, "--first-and-last and --greatest-ends exclude each other"),
        ({"refresh_fraction": 1.5}, "--refresh-fraction 1.5 must be at most 1"),
        ({"transition_steps": 0}, "--transition-steps 0 must be above 0"),
    ],
)
def test_flags_that_contradict_each_other_end_in_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LLR, **changes).check()


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
