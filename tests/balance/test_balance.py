"""The core that balanced transformations share carries another one, and a state saved by an earlier version."""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import dense_params, numpy_scales, tempbalance, tiny_layers

import tb_optax
from tb_optax._balance.balance import Balance, scale_by_layer
from tb_optax._balance.metrics import needs_small_eigenvalues

PARAMS = dense_params()
REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


class DecayState(NamedTuple):
    count: jax.Array
    metric: dict[str, jax.Array]
    scale: dict[str, jax.Array]


def balanced_decay(rate, update_interval):
    """Decoupled weight decay, of each layer by its scale: another transformation on the same core."""
    balance = Balance(
        "balanced_decay",
        DecayState,
        update_interval,
        min_scale=0.5,
        max_scale=2.0,
        metric=tb_optax.pl_alpha_hill,
        assign=tb_optax.linear,
        layers=tiny_layers,
        start_step=0,
        solver=tb_optax.Solver(),
    )

    def update(updates, state, params=None):
        state, found, leaves = balance.update(state, params)
        decay = scale_by_layer(params, found, leaves, state.scale)
        return jax.tree.map(lambda u, d: u - rate * d, updates, decay), state

    return optax.GradientTransformation(balance.init, update)


def test_another_transformation_stands_on_the_core():
    tx = balanced_decay(0.1, 2)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = jax.jit(tx.update)(zeros, tx.init(PARAMS), PARAMS)
    for name, scale in numpy_scales(PARAMS, 0.5, 2.0).items():
        for key, x in PARAMS[name].items():
            np.testing.assert_allclose(updates[name][key], -0.1 * scale * np.asarray(x), rtol=1e-3, atol=1e-6)
    halved = jax.tree.map(lambda x: x**3, PARAMS)
    _, later = jax.jit(tx.update)(zeros, state, halved)
    assert isinstance(later, DecayState) and later.count == 2
    np.testing.assert_array_equal(list(later.scale.values()), list(state.scale.values()))  # not due


def test_its_errors_name_it():
    tx = balanced_decay(0.1, 1)
    with pytest.raises(ValueError, match="balanced_decay: params=None"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(TypeError, match="balanced_decay: state="):
        tx.update(PARAMS, optax.EmptyState(), PARAMS)
    with pytest.raises(ValueError, match="balanced_decay: update_interval=0"):
        balanced_decay(0.1, 0)
    with pytest.raises(ValueError, match="balanced_decay balances layers against each other, and found 0"):
        tx.init({})


def test_a_run_saved_by_version_0_1_0_goes_on_where_it_was():
    """After 4 updates by SGD with momentum and TempBalance every 3; the file has what version 0.1.0 made of 3 more."""
    saved = np.load(REFERENCE / "state_0.1.0.npz")
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), tempbalance(3))
    start = PARAMS, tx.init(PARAMS)
    paths = jax.tree_util.tree_leaves_with_path(start)
    assert {f"at4{jax.tree_util.keystr(path)}" for path, _ in paths} == {name for name in saved if name.startswith("at4")}
    params, state = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(saved[f"at4{jax.tree_util.keystr(path)}"]), start
    )
    for _ in range(3):
        gradients = jax.tree.map(lambda x: jnp.sin(3 * x), params)
        updates, state = jax.jit(tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_allclose(leaf, saved[f"at7{jax.tree_util.keystr(path)}"], rtol=1e-4, atol=1e-6)
    for name, scale in state[1].scale.items():
        np.testing.assert_allclose(scale, saved[f"scale7{name}"], rtol=1e-3)


@pytest.mark.parametrize(
    "wrap", [jax.jit, lambda metric: jax.jit(jax.jit(metric)), lambda metric: functools.partial(metric)]
)
def test_a_metric_of_which_it_is_known_that_gram_products_do_is_known_in_its_wrappings(wrap):
    assert not needs_small_eigenvalues(wrap(tb_optax.pl_alpha_hill))
    assert needs_small_eigenvalues(wrap(functools.partial(tb_optax.pl_alpha_hill, fit=tb_optax.fix_finger)))
    own = functools.wraps(tb_optax.pl_alpha_hill)(lambda eigenvalues: eigenvalues[..., 0])
    assert needs_small_eigenvalues(wrap(own))  # it is another, for all that it says
