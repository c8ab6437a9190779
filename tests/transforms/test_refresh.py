"""`refresh` computes the scales that a due update computes, wherever its state lies, and changes nothing else."""

import contextlib
import functools
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import dense_params, numpy_scales, ones_like, tiny_layers

import tb_optax

PARAMS = dense_params()
LATER = dense_params(seed=5)
STATES = (tb_optax.TempBalanceState, tb_optax.AlphaDecayState)


def tempbalance(update_interval=None):
    return tb_optax.tempbalance(update_interval, layers=tiny_layers)


def alphadecay(update_interval=None, **options):
    return tb_optax.alphadecay(0.1, update_interval, layers=tiny_layers, **options)


LABELS = {name: jax.tree.map(lambda _, name=name: "b" if name == "dense2" else "a", leaf) for name, leaf in PARAMS.items()}
MASK = {name: {"kernel": name != "dense1", "bias": False} for name in PARAMS}

WRAPPERS = {
    "alone": lambda tb: tb,
    "chain": lambda tb: optax.chain(optax.adam(1e-3), tb),
    "nested chain": lambda tb: optax.chain(optax.clip(1.0), optax.chain(optax.sgd(0.1, momentum=0.9), tb)),
    "named_chain": lambda tb: optax.named_chain(("adam", optax.adam(1e-3)), ("balance", tb)),
    "partition": lambda tb: optax.partition({"a": optax.chain(optax.adam(1e-3), tb), "b": optax.sgd(0.1)}, LABELS),
    "masked": lambda tb: optax.chain(optax.sgd(0.1), optax.masked(tb, MASK)),
    "MultiSteps": lambda tb: optax.MultiSteps(optax.chain(optax.adam(1e-3), tb), 2),
    "inject_hyperparams": lambda tb: optax.inject_hyperparams(lambda rate: optax.chain(optax.sgd(rate), tb))(0.1),
    "apply_if_finite": lambda tb: optax.apply_if_finite(optax.chain(optax.sgd(0.1), tb), 3),
    "schedule_free": lambda tb: optax.contrib.schedule_free(optax.chain(optax.sgd(0.1), tb), 0.1),
}


def balance_states(tree):
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, STATES))
    return [leaf for leaf in leaves if isinstance(leaf, STATES)]


def without_balance(tree):
    return jax.tree.map(
        lambda node: node.count if isinstance(node, STATES) else node, tree, is_leaf=lambda n: isinstance(n, STATES)
    )


@functools.cache
def refreshed_by_an_update(create, names):
    params = {name: PARAMS[name] for name in names}
    tb = create(1)
    return tb.update(params, tb.init(params), params)[1]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("create", [tempbalance, alphadecay])
def test_a_state_is_found_and_refreshed_in_every_wrapper(wrapper, create):
    """The numbers are those of an update that refreshes; everything else in the state is untouched, bit for bit."""
    tb = create()
    tx = WRAPPERS[wrapper](tb)
    _, state = tx.update(ones_like(PARAMS), tx.init(PARAMS), PARAMS)
    refreshed = tb.refresh(state, PARAMS)
    assert jax.tree.structure(refreshed) == jax.tree.structure(state)
    chex.assert_trees_all_equal(without_balance(refreshed), without_balance(state))
    (ours,) = balance_states(refreshed)
    names = {"partition": ("dense0", "dense1"), "masked": ("dense0", "dense2")}.get(wrapper, tuple(PARAMS))
    theirs = refreshed_by_an_update(create, names)
    chex.assert_trees_all_close((ours.metric, ours.scale), (theirs.metric, theirs.scale), rtol=1e-6)
    assert len(set(map(float, ours.scale.values()))) > 1
    _, after = tx.update(ones_like(PARAMS), refreshed, PARAMS)
    chex.assert_trees_all_equal(balance_states(after)[0].scale, ours.scale)


def test_without_an_interval_no_update_refreshes_and_scales_of_a_refresh_are_used():
    tb = tempbalance()
    state = tb.init(PARAMS)
    for _ in range(3):
        updates, state = jax.jit(tb.update)(ones_like(PARAMS), state, PARAMS)
    assert state.count == 3 and set(map(float, state.scale.values())) == {1.0}
    chex.assert_trees_all_equal(updates, ones_like(PARAMS))
    updates, _ = jax.jit(tb.update)(ones_like(PARAMS), tb.refresh(state, PARAMS), PARAMS)
    for name, scale in numpy_scales(PARAMS).items():
        np.testing.assert_allclose(updates[name]["kernel"], np.full((8, 12), scale), rtol=1e-4)


def test_with_an_interval_refresh_comes_on_top():
    tb = tempbalance(100)
    _, state = tb.update(PARAMS, tb.init(PARAMS), PARAMS)
    state = tb.refresh(state, LATER)
    np.testing.assert_allclose(list(state.scale.values()), list(numpy_scales(LATER).values()), rtol=1e-4)


def test_an_unusable_spectrum_keeps_its_numbers():
    tb = tempbalance()
    state = tb.refresh(tb.init(PARAMS), PARAMS)
    broken = LATER | {"dense1": jax.tree.map(lambda leaf: leaf * jnp.nan, LATER["dense1"])}
    later = tb.refresh(state, broken)
    assert later.scale["dense1"] == state.scale["dense1"] and later.metric["dense1"] == state.metric["dense1"]
    expected = numpy_scales({name: LATER[name] for name in ("dense0", "dense2")})
    assert all(later.scale[name] == pytest.approx(scale, rel=1e-4) for name, scale in expected.items())


def test_a_mask_of_alphadecay_is_respected():
    mask = {name: {"kernel": name != "dense2", "bias": False} for name in PARAMS}
    tb, every_time = alphadecay(mask=mask), alphadecay(1, mask=mask)
    (state,) = balance_states(tb.refresh(tb.init(PARAMS), PARAMS))
    (expected,) = balance_states(every_time.update(PARAMS, every_time.init(PARAMS), PARAMS)[1])
    assert state.scale.keys() == {"dense0", "dense1"}
    chex.assert_trees_all_close(state.scale, expected.scale, rtol=1e-6)


def test_one_transformation_in_two_groups_refreshes_both():
    tb = tempbalance()
    labels = {f"dense{i}": {"kernel": "ab"[i % 2], "bias": "ab"[i % 2]} for i in range(4)}
    params = dense_params(depth=4)
    tx = optax.partition({"a": tb, "b": optax.chain(optax.sgd(0.1), tb)}, labels)
    states = {frozenset(state.scale): state.scale for state in balance_states(tb.refresh(tx.init(params), params))}
    for names in (("dense0", "dense2"), ("dense1", "dense3")):
        expected = numpy_scales({name: params[name] for name in names})
        assert {name: float(scale) for name, scale in states[frozenset(names)].items()} == pytest.approx(expected, rel=1e-4)


def test_two_transformations_refresh_each_its_own_state():
    params = dense_params(depth=4)
    labels = {f"dense{i}": {"kernel": "ab"[i % 2], "bias": "ab"[i % 2]} for i in range(4)}
    one, two = tempbalance(), tb_optax.tempbalance(None, min_scale=0.9, max_scale=1.1, layers=tiny_layers)
    tx = optax.partition({"a": one, "b": two}, labels)
    state = two.refresh(tx.init(params), params)
    scales = {name: float(scale) for own in balance_states(state) for name, scale in own.scale.items()}
    expected = numpy_scales({name: params[name] for name in ("dense1", "dense3")}, 0.9, 1.1)
    assert scales == pytest.approx({"dense0": 1.0, "dense2": 1.0, **expected}, rel=1e-4)


def test_states_that_cannot_be_told_apart_are_an_error():
    labels = {f"dense{i}": {"kernel": "ab"[i % 2], "bias": "ab"[i % 2]} for i in range(4)}
    params = dense_params(depth=4)
    state = optax.partition({"a": tempbalance(), "b": tempbalance()}, labels).init(params)
    restarted = tempbalance()
    with pytest.raises(ValueError, match="opt_state has 2 states of type TempBalanceState, and this"):
        restarted.refresh(state, params)
    with pytest.raises(ValueError, match=r"tempbalance.refresh: opt_state has no TempBalanceState"):
        restarted.refresh(optax.adam(1e-3).init(params), params)
    with pytest.raises(ValueError, match=r"tempbalance.refresh: params=None"):
        restarted.refresh(tempbalance().init(params), None)
    with pytest.raises(ValueError, match=r"tempbalance.refresh: state has the layers"):
        restarted.refresh(tempbalance().init(params), {"other": params["dense0"], "third": params["dense1"]})


def test_two_states_of_the_same_layers_are_refreshed_one_by_one():
    """The second would get scales by the first one's options, or from another network's weights."""
    one, two = tempbalance(), tb_optax.tempbalance(None, min_scale=0.9, max_scale=1.1, layers=tiny_layers)
    tx = optax.chain(one, two)
    state = tx.init(PARAMS)
    for tb in (one, two):
        with pytest.raises(ValueError, match=r"opt_state has 2 states of type TempBalanceState of the layers \['dense0'"):
            tb.refresh(state, PARAMS)
    for own, tb, bounds in zip(state, (one, two), [(0.5, 1.5), (0.9, 1.1)], strict=True):
        assert tb.refresh(own, PARAMS).scale == pytest.approx(numpy_scales(PARAMS, *bounds), rel=1e-4)
    pair = {"generator": one.init(PARAMS), "discriminator": one.init(LATER)}
    with pytest.raises(ValueError, match="refresh each of these states on its own"):
        one.refresh(pair, PARAMS)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_restarted_process_refreshes_a_state_that_it_did_not_make(wrapper):
    tb, restarted = tempbalance(), tempbalance()
    state = WRAPPERS[wrapper](tb).init(PARAMS)
    chex.assert_trees_all_equal(restarted.refresh(state, LATER), tb.refresh(state, LATER))


def test_a_network_of_other_sizes_under_the_same_names():
    """What a transformation remembers of one network must not be used for another one."""
    tb = tempbalance()
    states = {columns: tb.init(dense_params(columns=columns)) for columns in (12, 20)}
    for columns, state in states.items():
        params = dense_params(3, columns=columns)
        expected = numpy_scales(params)
        assert tb.refresh(state, params).scale == pytest.approx(expected, rel=1e-4)


def test_under_vmap_each_seed_has_its_own_scales():
    tb = tempbalance()
    tx = optax.chain(optax.adam(1e-3), tb)
    seeds = [dense_params(seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    refresh = jax.vmap(tb.refresh)
    for call in (refresh, jax.jit(refresh)):
        before = jax.vmap(tx.init)(stacked)
        state = call(before, stacked)
        chex.assert_trees_all_equal(without_balance(state), without_balance(before))
        for i, params in enumerate(seeds):
            scales = [float(scale[i]) for scale in state[1].scale.values()]
            np.testing.assert_allclose(scales, list(numpy_scales(params).values()), rtol=1e-4)


@pytest.mark.parametrize("in_force", [True, False], ids=["mesh in force", "mesh of the weights"])
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
@pytest.mark.parametrize("jitted", [True, False], ids=["jitted", "eager"])
def test_on_a_mesh(mode, jitted, in_force):
    params = dense_params(rows=16, columns=24)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    own = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("x") if x.ndim == 2 else P())), params)
    tb = tempbalance()
    tx = optax.chain(optax.adam(1e-3), tb)
    with jax.set_mesh(mesh) if in_force else contextlib.nullcontext():
        before = tx.init(own)
        state = (jax.jit(tb.refresh) if jitted else tb.refresh)(before, own)
        chex.assert_trees_all_equal(without_balance(state), without_balance(before))
        _, state = jax.jit(tx.update)(own, state, own)
    np.testing.assert_allclose(list(map(float, state[1].scale.values())), list(numpy_scales(params).values()), rtol=1e-4)


def test_nnx_optimizer():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(8, 12, rngs=rngs) for _ in range(3)])

    model = Net(nnx.Rngs(0))
    tb = tempbalance()
    optimizer = nnx.Optimizer(model, optax.chain(optax.adam(1e-3), tb), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    every_time = tempbalance(1)
    _, expected = every_time.update(params, every_time.init(params), params)
    refreshed = tb.refresh(optimizer.opt_state, params)
    chex.assert_trees_all_equal(without_balance(refreshed), without_balance(optimizer.opt_state))
    optimizer.opt_state = refreshed

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.state(model, nnx.Param))

    step(model, optimizer)
    (state,) = balance_states(optimizer.opt_state)
    scales = {name: float(scale[...]) for name, scale in state.scale.items()}
    assert scales == pytest.approx({name: float(scale) for name, scale in expected.scale.items()})
    assert len(set(scales.values())) == 3


def test_train_state_of_flax():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.Dense(12)(x)
            return x

    tb = tempbalance()
    net = Net()
    params = net.init(jax.random.key(0), jnp.ones((1, 12)))["params"]
    state = TrainState.create(apply_fn=net.apply, params=params, tx=optax.chain(optax.adam(1e-3), tb))
    before = state
    state = tb.refresh(before, before.params)  # A whole train state is a pytree too.
    assert isinstance(state, TrainState)
    chex.assert_trees_all_equal(without_balance(state), without_balance(before))
    expected = numpy_scales(params)
    assert {name: float(scale) for name, scale in state.opt_state[1].scale.items()} == pytest.approx(expected, rel=1e-4)
    state = state.replace(opt_state=tb.refresh(state.opt_state, state.params)).apply_gradients(grads=params)


_PICKLE = """
import pickle, sys, cloudpickle, jax, tb_optax
params = {f"dense{i}": {"kernel": jax.random.normal(jax.random.key(i), (60, 60))} for i in range(3)}
tb = tb_optax.tempbalance(None)
copy = pickle.loads(cloudpickle.dumps(tb))
ours, theirs = (each.refresh(each.init(params), params) for each in (tb, copy))
sys.exit(ours != theirs or len(set(map(float, ours.scale.values()))) != 3)
"""


def test_a_transformation_with_refresh_is_pickled():
    """In a process of its own, for what checks annotations here cannot be pickled."""
    ended = subprocess.run([sys.executable, "-c", _PICKLE], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_refresh_compiles_once_and_does_not_keep_the_weights():
    tb = tempbalance()
    state, traces = tb.init(PARAMS), []

    def metric(eigenvalues):
        traces.append(None)
        return tb_optax.metrics.spectral_norm(eigenvalues)

    tb = tb_optax.tempbalance(None, metric=metric, layers=tiny_layers)
    for seed in range(3):
        state = tb.refresh(state, dense_params(seed))
    assert len(traces) == 1


def compiled(tx, params):
    step = lambda grads, state, params: tx.update(grads, state, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params), params).compile()


def test_the_step_without_an_interval_is_the_optimizer_and_one_product_for_each_leaf():
    """No eigenvalue problem, no branch, no custom call, and no more memory than the optimizer by itself, but for a page."""
    params = {f"dense{i}": {"kernel": jax.ShapeDtypeStruct((256, 320), jnp.float32)} for i in range(6)}
    alone = compiled(optax.adam(1e-3), params)
    without = compiled(optax.chain(optax.adam(1e-3), tb_optax.tempbalance(None)), params)
    inside = compiled(optax.chain(optax.adam(1e-3), tb_optax.tempbalance(10)), params)
    for word in ("custom-call", "conditional", "while("):
        assert word not in without.as_text()
    assert "custom-call" in inside.as_text() and "conditional" in inside.as_text()
    memory = lambda program: program.memory_analysis().temp_size_in_bytes
    assert memory(without) <= memory(alone) + 4096
    assert memory(inside) > memory(alone) + 256 * 256 * 4
