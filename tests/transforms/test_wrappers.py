"""TempBalance with Optax's wrappers: inside those that keep their own iterate, behind those that only make a step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import dense_params, tiny_layers

import tb_optax

PARAMS = dense_params()
TARGET = dense_params(seed=7)
LABELS = jax.tree.map_with_path(lambda path, _: "b" if "dense2" in str(path[0]) else "a", PARAMS)


def tempbalance(update_interval=1000):
    return tb_optax.tempbalance(update_interval, layers=tiny_layers)


def iterates(tx, steps, params=PARAMS):
    """Parameters and states of a quadratic problem, before the first update and after each."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    history = [(params, state)]
    for _ in range(steps):
        grads = jax.tree.map(lambda param, target: param - target, params, TARGET)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


def distance(tree, other):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, tree, other)))


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def schedule_free(optimizer):
    return optax.contrib.schedule_free(optimizer, 0.1, b1=0.9)


def averaged(history):
    """How far the evaluation point is from the mean of the points that the inner optimizer stepped to."""
    params, state = history[-1]
    own = state[0] if isinstance(state, tuple) and not hasattr(state, "z") else state
    stepped = [(state[0] if not hasattr(state, "z") else state).z for _, state in history[1:]]
    return distance(optax.contrib.schedule_free_eval_params(own, params), mean(stepped))


def test_schedule_free_averages_what_tempbalance_scaled_only_if_it_is_inside():
    assert averaged(iterates(schedule_free(optax.chain(optax.sgd(0.1), tempbalance())), 6)) < 1e-5
    assert averaged(iterates(optax.chain(schedule_free(optax.sgd(0.1)), tempbalance()), 6)) > 1e-2


def test_lookahead_synchronizes_with_tempbalance_inside():
    tx = optax.lookahead(optax.chain(optax.sgd(0.1), tempbalance()), sync_period=3, slow_step_size=0.5)
    state = tx.init(params := optax.LookaheadParams.init_synced(PARAMS))
    for step in range(1, 7):
        grads = jax.tree.map(lambda param, target: param - target, params.fast, TARGET)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert (distance(params.fast, params.slow) < 1e-5) == (step % 3 == 0)


@pytest.mark.parametrize("transform", [tempbalance(), tb_optax.alphadecay(0.1, 10, layers=tiny_layers)])
def test_behind_lookahead_it_is_refused(transform):
    """It would scale the fast and the slow weights each on their own, and they would never meet again."""
    tx = optax.chain(optax.lookahead(optax.sgd(0.1), sync_period=3, slow_step_size=0.5), transform)
    params = optax.LookaheadParams.init_synced(PARAMS)
    with pytest.raises(ValueError, match=r"params has fast and slow weights.*inside: lookahead"):
        tx.init(params)
    with pytest.raises(ValueError, match="params has fast and slow weights"):
        transform.update(PARAMS, transform.init(PARAMS), params)


def mechanized(history, own, scale):
    """How far mechanize's distance from its start is from the sum of the inner updates that are scaled like this."""
    params, state = history[-1]
    state = own(state)
    total = jax.tree.map(jnp.zeros_like, PARAMS)
    for before, _ in history[:-1]:
        inner = jax.tree.map(lambda param, target: -0.1 * (param - target), before, TARGET)
        total = jax.tree.map(
            jnp.add, total, {name: jax.tree.map(lambda u, s=scale[name]: s * u, inner[name]) for name in inner}
        )
    moved = jax.tree.map(lambda param, start: (param - start) / jnp.sum(state.s), params, state.x0)
    return distance(moved, total) / float(optax.tree.norm(total))


def test_mechanize_sums_what_tempbalance_scaled_only_if_it_is_inside():
    tb = tempbalance()
    _, first = tb.update(PARAMS, tb.init(PARAMS), PARAMS)
    wrapped = lambda optimizer: optax.contrib.mechanize(optimizer, weight_decay=0.0, s_init=1e-2)
    inside = iterates(wrapped(optax.chain(optax.sgd(0.1), tempbalance())), 6)
    behind = iterates(optax.chain(wrapped(optax.sgd(0.1)), tempbalance()), 6)
    # `mechanize` recomputes the sum from float32 weights and a small factor, so it is known to a percent.
    assert mechanized(inside, lambda state: state, first.scale) < 0.01
    assert mechanized(behind, lambda state: state[0], first.scale) > 0.05


def test_a_step_that_apply_if_finite_skips_is_not_counted():
    tx = optax.apply_if_finite(optax.chain(optax.sgd(0.1), tempbalance()), 3)
    _, state = tx.update(jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS), tx.init(PARAMS), PARAMS)
    assert int(optax.tree.get(state, "TempBalanceState").count) == 0
    _, state = tx.update(PARAMS, state, PARAMS)
    assert int(optax.tree.get(state, "TempBalanceState").count) == 1


def test_sam_balances_its_outer_steps():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(optax.chain(optax.sgd(0.1), tempbalance()), adversary, sync_period=2, opaque_mode=False)
    history = iterates(tx, 4)
    assert int(optax.tree.get(history[-1][1], "TempBalanceState").count) == 2


STEPS = {
    "muon": lambda: optax.contrib.muon(0.1),
    "partition": lambda: optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, LABELS),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "prodigy": lambda: optax.contrib.prodigy(0.1),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 1).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "flatten": lambda: optax.flatten(optax.adam(0.1)),
}


@pytest.mark.parametrize("name", STEPS)
def test_behind_a_wrapper_that_only_makes_a_step_it_scales_that_step(name):
    tx, own = optax.chain(STEPS[name](), tempbalance()), STEPS[name]()
    updates, state = tx.update(TARGET, tx.init(PARAMS), PARAMS)
    alone, _ = own.update(TARGET, own.init(PARAMS), PARAMS)
    scale = state[-1].scale
    assert len({float(number) for number in scale.values()}) == 3
    expected = {layer: jax.tree.map(lambda u, layer=layer: u * scale[layer], alone[layer]) for layer in alone}
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_inside_flatten_there_are_no_matrices():
    with pytest.raises(ValueError, match="single array of shape"):
        optax.flatten(optax.chain(optax.sgd(0.1), tempbalance())).init(PARAMS)


def test_an_update_with_other_layers_frozen_leaves_them_out_only_inside_partition():
    frozen = {"a": optax.chain(optax.sgd(0.1), tempbalance()), "b": optax.set_to_zero()}
    state = optax.partition(frozen, LABELS).init(PARAMS)
    assert set(optax.tree.get(state, "TempBalanceState").scale) == {"dense0", "dense1"}
    state = optax.chain(optax.partition({"a": optax.sgd(0.1), "b": optax.set_to_zero()}, LABELS), tempbalance()).init(PARAMS)
    assert set(state[-1].scale) == {"dense0", "dense1", "dense2"}
    np.testing.assert_array_equal(state[-1].count, 0)
