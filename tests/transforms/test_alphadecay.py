"""`alphadecay` is AdamW with a decay for each layer, from the same core as `tempbalance`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import dense_params, numpy_scales, ones_like, tempbalance, tiny_layers, traced

import tb_optax

PARAMS = dense_params()
alphadecay = functools.partial(tb_optax.alphadecay, layers=tiny_layers)


def gradients_of(params):
    return jax.tree.map(lambda x: jnp.sin(3 * x), params)


def adam_by_hand(decay, steps, low, high, interval=2, learning_rate=0.05, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Adam with decoupled weight decay, `decay(step)` times each layer's scale, in double precision."""
    params = {name: {key: np.asarray(x, np.float64) for key, x in leaf.items()} for name, leaf in PARAMS.items()}
    first, second = jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params)
    for step in range(steps):
        if step % interval == 0:
            scales = numpy_scales(params, low, high)
        for name, leaf in params.items():
            for key, x in leaf.items():
                gradient = np.sin(3 * x)
                first[name][key] = beta1 * first[name][key] + (1 - beta1) * gradient
                second[name][key] = beta2 * second[name][key] + (1 - beta2) * gradient**2
                mean, square = first[name][key] / (1 - beta1 ** (step + 1)), second[name][key] / (1 - beta2 ** (step + 1))
                direction = mean / (np.sqrt(square) + epsilon)
                leaf[key] = x - learning_rate * (direction + decay(step) * scales[name] * x)
    return params


@pytest.mark.parametrize("schedule", [None, optax.linear_schedule(0.5, 0.0, 5)])
def test_behind_adam_it_is_adamw_with_a_decay_for_each_layer(schedule):
    decay = alphadecay(0.3 if schedule is None else schedule, 2, min_scale=0.67, max_scale=5.0)
    tx = optax.chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(0.05))
    params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
    for _ in range(6):
        updates, state = update(gradients_of(params), state, params)
        params = optax.apply_updates(params, updates)
    expected = adam_by_hand(lambda step: 0.3 if schedule is None else float(schedule(step)), 6, 0.67, 5.0)
    for name, leaf in expected.items():
        for key, x in leaf.items():
            np.testing.assert_allclose(params[name][key], x, rtol=2e-4, atol=2e-5)


def test_with_scales_of_one_it_is_add_decayed_weights():
    ours = alphadecay(0.1, 1, min_scale=1.0, max_scale=1.0)
    theirs = optax.add_decayed_weights(0.1)
    updates = gradients_of(PARAMS)
    found, _ = ours.update(updates, ours.init(PARAMS), PARAMS)
    expected, _ = theirs.update(updates, theirs.init(PARAMS), PARAMS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_what_is_in_no_balanced_layer_has_the_decay_itself():
    params = PARAMS | {"norm": {"scale": jnp.full(5, 3.0)}}
    tx = alphadecay(0.1, 1)
    found, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(found["norm"]["scale"], 0.3, rtol=1e-6)
    for name, scale in state.scale.items():
        np.testing.assert_allclose(found[name]["bias"], 0.1 * scale * 0.5, rtol=1e-6)


@pytest.mark.parametrize("form", ["tree", "function"])
def test_a_mask_leaves_out_as_in_add_decayed_weights(form):
    matrices = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    tx = alphadecay(0.1, 1, mask=matrices if form == "function" else matrices(PARAMS))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    found, state = tx.update(zeros, tx.init(PARAMS), PARAMS)
    scales = optax.tree_utils.tree_get(state, "scale")
    for name, scale in numpy_scales(PARAMS, 0.67, 5.0).items():
        assert scales[name] == pytest.approx(scale, rel=1e-3)
        np.testing.assert_array_equal(found[name]["bias"], 0)
        np.testing.assert_allclose(found[name]["kernel"], 0.1 * scale * PARAMS[name]["kernel"], rtol=1e-3)


def test_with_tempbalance_behind_it_a_layers_decay_is_scaled_by_both():
    tx = optax.chain(alphadecay(0.1, 1), tempbalance(1))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    found, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    decays, rates = numpy_scales(PARAMS, 0.67, 5.0), numpy_scales(PARAMS)
    for name, leaf in PARAMS.items():
        np.testing.assert_allclose(found[name]["kernel"], 0.1 * decays[name] * rates[name] * leaf["kernel"], rtol=2e-3)


def test_an_unusable_spectrum_keeps_its_scale_and_no_decay_is_nan_where_weights_are_not():
    tx = alphadecay(0.1, 1)
    state = tx.init(PARAMS)
    _, state = tx.update(ones_like(PARAMS), state, PARAMS)
    broken = PARAMS | {"dense1": {"kernel": PARAMS["dense1"]["kernel"].at[0, 0].set(jnp.nan), "bias": jnp.ones(12)}}
    found, after = tx.update(ones_like(PARAMS), state, broken)
    assert after.scale["dense1"] == state.scale["dense1"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found["dense0"], found["dense2"])))


def test_it_compiles_once_and_a_seed_under_vmap_is_a_seed_alone():
    metric, traces = traced(tb_optax.metrics.pl_alpha_hill)
    tx = alphadecay(0.1, 2, metric=metric)
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for _ in range(4):
        _, state = update(gradients_of(PARAMS), state, PARAMS)
    assert len(traces) == 1
    seeds = [dense_params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *seeds)
    together, _ = jax.vmap(tx.update)(gradients_of(stacked), jax.vmap(tx.init)(stacked), stacked)
    for number, params in enumerate(seeds):
        alone, _ = tx.update(gradients_of(params), tx.init(params), params)
        own = jax.tree.map(lambda x, number=number: x[number], together)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), own, alone)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_keep_their_dtype(dtype):
    updates = jax.tree.map(lambda x: x.astype(dtype), gradients_of(PARAMS))
    tx = alphadecay(0.1, 1)
    found, _ = tx.update(updates, tx.init(PARAMS), PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


def test_numbers_can_be_schedules_under_inject_hyperparams():
    inject = optax.inject_hyperparams(tb_optax.alphadecay, static_args=("metric", "assign", "layers", "mask"))
    tx = inject(optax.linear_schedule(1.0, 0.0, 2), update_interval=1, layers=tiny_layers, min_scale=1.0, max_scale=1.0)
    state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for expected in (1.0, 0.5, 0.0):
        found, state = tx.update(zeros, state, PARAMS)
        np.testing.assert_allclose(found["dense0"]["bias"], 0.5 * expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"weight_decay": -0.1}, ValueError, "alphadecay: weight_decay=-0.1"),
        ({"weight_decay": float("nan")}, ValueError, "alphadecay: weight_decay=nan"),
        ({"update_interval": 0}, ValueError, "alphadecay: update_interval=0"),
        ({"min_scale": 6.0}, ValueError, "alphadecay: min_scale=6.0"),
        ({"metric": "alpha"}, TypeError, "alphadecay: metric='alpha'"),
    ],
)
def test_bad_arguments_are_named(settings, error, says):
    with pytest.raises(error, match=says):
        alphadecay(**({"weight_decay": 0.1, "update_interval": 1} | settings))


def test_without_params_it_says_what_to_pass():
    tx = alphadecay(0.1, 1)
    with pytest.raises(ValueError, match="alphadecay: params=None"):
        tx.update(PARAMS, tx.init(PARAMS))
