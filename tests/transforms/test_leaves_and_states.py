"""Leaves that are no floating-point arrays are left alone, and states of something else are refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import dense_params, ones_like, tempbalance, tiny_layers

import tb_optax
from tb_optax import baselines

PARAMS = dense_params()
TRANSFORMATIONS = {
    "tempbalance": lambda: tempbalance(1),
    "alphadecay": lambda: tb_optax.alphadecay(0.1, 1, layers=tiny_layers),
    "sgdp": lambda: baselines.sgdp(0.1, weight_decay=0.1, layers=tiny_layers),
    "adamp": lambda: baselines.adamp(0.1, weight_decay=0.1, layers=tiny_layers),
}
OTHER_LEAVES = {"steps": jnp.int32(3), "flag": jnp.array(True), "ids": jnp.arange(4)}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("as_float0", [False, True], ids=["own dtype", "float0"])
def test_integers_bools_and_float0_are_left_as_they_are(name, as_float0):
    tx, params = TRANSFORMATIONS[name](), {**PARAMS, **OTHER_LEAVES}
    zero = lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0) if as_float0 else jnp.zeros_like(leaf)
    updates = {**ones_like(PARAMS), **jax.tree.map(zero, OTHER_LEAVES)}
    state = tx.init(params)
    for _ in range(2):
        found, state = tx.update(updates, state, params)
    for key in OTHER_LEAVES:
        assert found[key].dtype == updates[key].dtype and (as_float0 or not np.any(found[key]))
    alone = tx.init(PARAMS)
    for _ in range(2):
        expected, alone = tx.update(ones_like(PARAMS), alone, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, {key: found[key] for key in PARAMS}, expected)


@pytest.mark.parametrize("name", ["alphadecay", "sgdp", "adamp"])
def test_complex_parameters_are_trained_and_decay(name):
    value, gradient = jnp.array([1 + 2j, 3 - 1j]), jnp.array([2 - 1j, 1j])
    tx = TRANSFORMATIONS[name]()
    params, updates = PARAMS | {"filter": value}, ones_like(PARAMS) | {"filter": gradient}
    found, _ = tx.update(updates, tx.init(params), params)
    expected = {
        "alphadecay": gradient + 0.1 * value,
        "sgdp": -0.1 * (gradient + 0.1 / (1 - 0.9) * value),
        "adamp": -0.1 * (gradient / jnp.abs(gradient) + 0.1 * value),
    }[name]
    np.testing.assert_allclose(found["filter"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (dict(b1=2.0), ValueError, "adamp: b1=2.0 must be below 1"),
        (dict(b1=-1.0), ValueError, "adamp: b1=-1.0 must be finite and at least 0"),
        (dict(b2=1.0), ValueError, "adamp: b2=1.0 must be below 1"),
        (dict(b1="x"), TypeError, "adamp: b1='x' is not a number"),
        (dict(learning_rate="a"), TypeError, "adamp: learning_rate='a' is not a number"),
    ],
)
def test_a_number_out_of_range_is_an_error(arguments, error, says):
    with pytest.raises(error, match=says):
        baselines.adamp(**(dict(learning_rate=0.1) | arguments))


def both():
    return [tempbalance(1), tb_optax.alphadecay(0.1, 1, layers=tiny_layers)]


@pytest.mark.parametrize("tx", both(), ids=["tempbalance", "alphadecay"])
def test_a_state_of_something_else_is_one_line(tx):
    state = tx.init(PARAMS)
    cases = {
        "state is a plain dict of count, metric and scale": (PARAMS, state._asdict(), PARAMS),
        r"state is a dict with the keys .*tx\.update\(updates, state, params\)": (state, PARAMS, PARAMS),
        r"state has \(2,\) numbers for each layer of params.*jax.vmap": (
            PARAMS,
            jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state),
            PARAMS,
        ),
        r"state has the layers": (PARAMS, state._replace(metric={}), PARAMS),
    }
    for says, arguments in cases.items():
        with pytest.raises((TypeError, ValueError), match=says) as raised:
            tx.update(*arguments)
        assert "\n" not in str(raised.value)


def test_a_state_of_something_else_is_one_line_in_spectral_norm_regularization_too():
    tx = baselines.spectral_norm_regularization(0.1, layers=tiny_layers)
    state = tx.init(PARAMS)
    cases = {
        r"state is a dict with the keys .*tx\.update\(updates, state, params\)": (state, PARAMS, PARAMS),
        "state is a plain dict of left_singular_vectors, as from a checkpoint": (PARAMS, state._asdict(), PARAMS),
        r"state has the layer 'dense0' with vectors of shape \(2, 1, 12\), but params needs \(1, 12\)": (
            PARAMS,
            jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state),
            PARAMS,
        ),
    }
    for says, arguments in cases.items():
        with pytest.raises((TypeError, ValueError), match=says):
            tx.update(*arguments)


@pytest.mark.parametrize("tx", both(), ids=["tempbalance", "alphadecay"])
@pytest.mark.parametrize(("before", "after"), [((4,), (5,)), ((4,), (3,)), ((2, 2), (4,))])
def test_a_state_of_another_depth_is_one_line(tx, before, after):
    network = lambda stack: {"s": {"kernel": jnp.ones((*stack, 8, 8)), "bias": jnp.ones((*stack, 8))}, **PARAMS}
    with pytest.raises(
        ValueError, match=r"state has the layer 's' as a stack .* but params has it as .*; call init"
    ) as raised:
        tx.update(network(after), tx.init(network(before)), network(after))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["a function", "a sequence"])
def test_tree_map_params_keeps_the_states_structure(kind):
    """So that shardings, targets to restore into and resets can be made for it."""
    layers = tiny_layers if kind == "a function" else list(tiny_layers(PARAMS))
    tx = optax.chain(optax.adam(1e-3), tb_optax.tempbalance(1, layers=layers))
    state = tx.init(PARAMS) if kind == "a function" else jax.eval_shape(tx.init, PARAMS)
    described = optax.tree_utils.tree_map_params(
        tx, lambda leaf: ("parameter", leaf.shape), state, transform_non_params=lambda leaf: ("other", leaf.shape)
    )
    is_mark = lambda node: isinstance(node, tuple) and len(node) == 2 and node[0] in ("parameter", "other")
    assert jax.tree.structure(described, is_leaf=is_mark) == jax.tree.structure(state)
    assert {mark[0] for mark in jax.tree.leaves(described[1], is_leaf=is_mark)} == {"other"}
    reset = optax.tree_utils.tree_map_params(tx, jnp.zeros_like, tx.init(PARAMS), transform_non_params=jnp.zeros_like)
    assert set(reset[1].scale) == set(PARAMS)


def test_tree_map_params_of_a_function_that_met_two_networks_promises_nothing_of_their_names():
    tx = tempbalance(1)
    state = tx.init(PARAMS)
    tx.init({f"other{i}": leaf for i, leaf in enumerate(PARAMS.values())})
    mapped = optax.tree_utils.tree_map_params(tx, lambda leaf: leaf, state, transform_non_params=lambda leaf: leaf)
    assert mapped.scale == state.scale
