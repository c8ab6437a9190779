"""LLR against NumPy: scales over several refreshes, their transitions, the last refresh, layers that are not measured."""

import functools
import warnings

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import dense_params, numpy_alpha, numpy_spectrum, tiny_layers

import tb_optax

WEIGHTS = dense_params(depth=5)
PARAMS = WEIGHTS | {
    "embed": {"embedding": jnp.ones((20, 8))},
    "norm": {"scale": jnp.ones(8)},
    "lm_head": {"kernel": jnp.ones((8, 20))},
}
UNMEASURED = ("embed*", "lm_head")
layers = functools.partial(tiny_layers, unmeasured=UNMEASURED)


def changed(step):
    """Parameters of this step: every layer's spectrum changes, each in its own way."""
    power = lambda number: 1 + 0.4 * np.sin(step + 2 * number)
    weights = {
        name: {"kernel": jnp.sign(leaf["kernel"]) * jnp.abs(leaf["kernel"]) ** power(number), "bias": leaf["bias"]}
        for number, (name, leaf) in enumerate(WEIGHTS.items())
    }
    return PARAMS | weights


def numpy_targets(params, low, high):
    alphas = {name: numpy_alpha(numpy_spectrum(params[name]["kernel"])) for name in WEIGHTS}
    least, greatest = min(alphas.values()), max(alphas.values())
    scales = {name: low + (high - low) * (alpha - least) / (greatest - least) for name, alpha in alphas.items()}
    return scales | {"embed/embedding": high, "lm_head": high}


def numpy_llr(updates, interval, transition, stop, low=1.0, high=3.0):
    """The scales that each update applies: one loop over updates, straight from the description."""
    scale = dict.fromkeys([*WEIGHTS, "embed/embedding", "lm_head"], 1.0)
    start, target, since = scale, scale, transition
    for step in range(updates):
        if step % interval == 0 and step <= stop:
            start, target, since = scale, numpy_targets(changed(step), low, high), 0
        since = min(since + 1, transition)
        scale = {name: start[name] + (target[name] - start[name]) * since / transition for name in scale}
        yield scale


@pytest.mark.parametrize(("interval", "transition"), [(4, 3), (3, 5), (2, 1)])
def test_scales_are_those_of_the_description(interval, transition):
    """Also where a refresh comes before the last transition has ended, and where each takes one update."""
    tx = tb_optax.llr(50, layers=layers, update_interval=interval, transition_steps=transition)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    for step, expected in enumerate(numpy_llr(18, interval, transition, stop=9)):
        updates, state = update(ones, state, changed(step))
        assert state.scale.keys() == expected.keys()
        for name, scale in expected.items():
            np.testing.assert_allclose(state.scale[name], scale, rtol=2e-3)
        np.testing.assert_allclose(updates["embed"]["embedding"], expected["embed/embedding"], rtol=1e-6)
        np.testing.assert_allclose(updates["dense1"]["bias"], expected["dense1"], rtol=2e-3)
        np.testing.assert_array_equal(updates["norm"]["scale"], 1.0)
    assert set(state.metric) == set(WEIGHTS), "what is not measured has no metric"
    chex.assert_trees_all_equal(state.scale, state.target)


def test_the_defaults_are_the_papers():
    """Every 40 updates in the first fifth, 20 updates to a new scale, from 1 to 3."""
    tx = tb_optax.llr(300, layers=layers)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    changes = []
    for step in range(120):
        _, after = update(PARAMS, state, changed(step))
        if any(bool(after.scale[name] != state.scale[name]) for name in WEIGHTS):
            changes.append(step)
        state = after
    assert changes == [*range(20), *range(40, 60)]
    assert min(state.scale.values()) == 1 and max(state.scale.values()) == 3


def test_refresh_outside_starts_a_transition_of_the_updates_after_it():
    tb = tb_optax.tempbalance(None, layers=layers, min_scale=1.0, max_scale=3.0, transition_steps=4)
    tx = optax.chain(optax.sgd(0.1), tb)
    inside = tb_optax.tempbalance(6, layers=layers, min_scale=1.0, max_scale=3.0, transition_steps=4)
    state, expected = tx.init(PARAMS), inside.init(PARAMS)
    for step in range(14):
        if step % 6 == 0:
            before = state[1].scale
            state = tb.refresh(state, changed(step))
            chex.assert_trees_all_equal(state[1].scale, before)
        _, state = tx.update(PARAMS, state, changed(step))
        _, expected = inside.update(PARAMS, expected, changed(step))
        chex.assert_trees_all_close(state[1], expected, rtol=1e-6)


def test_an_unusable_layer_goes_on_to_its_old_target():
    tx = tb_optax.tempbalance(2, layers=layers, transition_steps=4)
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, changed(0))
    target = state.target["dense1"]
    for step in range(1, 6):
        bad = changed(step) | {"dense1": {"kernel": jnp.full((8, 12), jnp.nan), "bias": jnp.ones(12)}}
        _, state = tx.update(PARAMS, state, bad)
        assert state.target["dense1"] == target
    chex.assert_tree_all_finite(state)
    assert abs(state.scale["dense1"] - target) < abs(1 - target)


def test_under_vmap_each_seed_has_its_own_transitions():
    tx = tb_optax.llr(100, layers=layers, update_interval=3, transition_steps=2)
    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), changed(0), changed(3))
    state = jax.vmap(tx.init)(seeds)
    state = state._replace(count=jnp.array([0, 1]))  # One seed is due at its first update, the other at its third.
    single = [tx.init(PARAMS)._replace(count=jnp.array(count)) for count in (0, 1)]
    update = jax.jit(jax.vmap(tx.update))
    for _ in range(4):
        _, state = update(seeds, state, seeds)
        single = [tx.update(PARAMS, one, changed(3 * number))[1] for number, one in enumerate(single)]
    chex.assert_trees_all_close(state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *single), rtol=1e-5)


def test_a_run_resumes_in_the_middle_of_a_transition():
    tx = tb_optax.llr(100, layers=layers, update_interval=8, transition_steps=6)
    state = tx.init(PARAMS)
    for step in range(3):
        _, state = tx.update(PARAMS, state, changed(step))
    restored = flax.serialization.from_bytes(tx.init(PARAMS), flax.serialization.to_bytes(state))
    for step in range(3, 12):
        _, state = tx.update(PARAMS, state, changed(step))
        _, restored = tx.update(PARAMS, restored, changed(step))
    chex.assert_trees_all_equal(state, restored)


def test_states_with_and_without_transitions_are_told_apart():
    """A state saved without transitions still loads without them."""
    plain, moving = (tb_optax.tempbalance(1, layers=layers, transition_steps=steps) for steps in (None, 3))
    assert type(plain.init(PARAMS)) is tb_optax.TempBalanceState
    assert plain.init(PARAMS)._fields == ("count", "metric", "scale")
    with pytest.raises(ValueError, match="was made without transition_steps"):
        moving.update(PARAMS, plain.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="was made with transition_steps"):
        plain.update(PARAMS, moving.init(PARAMS), PARAMS)


def test_a_state_without_transitions_goes_on_as_the_error_says():
    plain, moving = (tb_optax.tempbalance(9, layers=layers, transition_steps=steps) for steps in (None, 3))
    _, state = plain.update(PARAMS, plain.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="transition_steps") as error:
        moving.update(PARAMS, state, PARAMS)
    advice = str(error.value).rpartition(": ")[2].removesuffix(".")
    joined = eval(advice, {"init": moving.init, "params": PARAMS, "state": state})
    _, after = moving.update(PARAMS, joined, PARAMS)
    assert int(after.count) == 2
    chex.assert_trees_all_equal(after.scale, state.scale)  # not 1, the scale of a state that init made


def test_one_step_is_no_transition():
    plain, one = (tb_optax.tempbalance(2, layers=layers, transition_steps=steps) for steps in (None, 1))
    states = [plain.init(PARAMS), one.init(PARAMS)]
    for step in range(4):
        states = [tx.update(PARAMS, state, changed(step))[1] for tx, state in zip((plain, one), states, strict=True)]
        chex.assert_trees_all_equal(states[0].scale, states[1].scale)


def test_its_states_work_as_others_do():
    """`tree_map_params`, `scalars`, donation, and no parameter without a measured layer in `metric`."""
    tx = optax.chain(optax.adam(1e-3), tb_optax.llr(100, layers=layers))
    state = tx.init(PARAMS)
    doubled = optax.tree_map_params(tx, lambda leaf: 2 * leaf, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    chex.assert_trees_all_equal(doubled[1], state[1])
    step = jax.jit(lambda params, state: tx.update(params, state, params), donate_argnums=1)
    _, state = step(PARAMS, state)
    _, state = step(PARAMS, state)
    numbers = tb_optax.scalars(state)
    assert "tempbalance/scale/lm_head" in numbers and "tempbalance/metric/lm_head" not in numbers


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
def test_on_a_mesh_in_a_scan_it_is_as_on_one_device(mode):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
    own = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("x") if x.ndim == 2 else P())), PARAMS)
    tx = tb_optax.llr(100, layers=layers, update_interval=3, transition_steps=2)

    def last_state(params):
        step = lambda state, _: (tx.update(params, state, params)[1], None)
        return jax.jit(lambda state: jax.lax.scan(step, state, length=5)[0])(tx.init(params))

    chex.assert_trees_all_close(jax.device_get(last_state(own)), jax.device_get(last_state(PARAMS)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_states_keep_their_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion("strict"):
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
        tx = tb_optax.llr(100, layers=layers, update_interval=2, transition_steps=3)
        state = tx.init(params)
        updates, after = jax.jit(tx.update)(params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, params), state)


def test_its_numbers_can_be_schedules():
    static = ("metric", "assign", "layers")
    tx = optax.inject_hyperparams(tb_optax.tempbalance, static_args=static)(
        2, layers=layers, max_scale=optax.constant_schedule(3.0), min_scale=1.0, stop_step=4, transition_steps=3
    )
    plain = tb_optax.tempbalance(2, layers=layers, max_scale=3.0, min_scale=1.0, stop_step=4, transition_steps=3)
    state, expected = tx.init(PARAMS), plain.init(PARAMS)
    for step in range(8):
        _, state = tx.update(PARAMS, state, changed(step))
        _, expected = plain.update(PARAMS, expected, changed(step))
    chex.assert_trees_all_close(state.inner_state, expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [float("nan"), 0.0, -2.0])
def test_no_scale_changes_while_the_steps_of_a_schedule_are_no_number_of_updates(steps):
    static = ("metric", "assign", "layers")
    tx = optax.inject_hyperparams(tb_optax.tempbalance, static_args=static)(
        1, layers=layers, transition_steps=lambda count: jnp.where(count < 2, 1.0, steps)
    )
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for step in range(4):
        before = state.inner_state
        _, state = update(PARAMS, state, changed(step))
        assert all(before.scale[name] == scale for name, scale in state.inner_state.scale.items()) == (step >= 2)


@pytest.mark.parametrize("total", [0, -3, 2.5, True, "100"])
def test_total_updates_are_checked(total):
    with pytest.raises((ValueError, TypeError), match="llr: total_updates="):
        tb_optax.llr(total, layers=layers)


@pytest.mark.parametrize(("total", "interval", "refreshes"), [(200, 40, 1), (201, 40, 2), (10, 3, 1), (100, 19, 2)])
def test_a_single_refresh_is_warned_of(total, interval, refreshes):
    """Counted by the description: updates 0, interval, 2 interval, ... in the first fifth, of index below total / 5."""
    assert len([step for step in range(0, total, interval) if step < total / 5]) == refreshes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tb_optax.llr(total, layers=layers, update_interval=interval)
    assert ["one refresh in the first fifth" in str(each.message) for each in caught] == [True] * (refreshes == 1)
    assert all(each.filename == __file__ for each in caught)


def test_layers_of_which_all_are_measured_are_warned_of():
    for given, count in (tiny_layers(PARAMS), 1), (layers(PARAMS), 0), (layers, 0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tb_optax.llr(1000, layers=given)
        assert ["no layer with measured=False" in str(each.message) for each in caught] == [True] * count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(update_interval=3, transition_steps=0), "transition_steps=0 must be at least 1"),
        (dict(update_interval=3, stop_step=-1), "stop_step=-1 must be at least 0"),
        (dict(update_interval=3, start_step=9, stop_step=8), "stop_step=8 is below start_step=9"),
        (dict(update_interval=None, stop_step=10), "stop_step=10 has no effect with update_interval=None"),
        (dict(update_interval=3, transition_steps=1.5), "transition_steps=1.5 must be a whole number"),
    ],
)
def test_the_options_of_transitions_are_checked(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tb_optax.tempbalance(**options)


def test_layers_that_are_not_measured_are_seen():
    found = layers(PARAMS)
    assert [layer.name for layer in found if not layer.measured] == ["lm_head", "embed/embedding"]
    assert "embed/embedding (20, 8), not measured, with the greatest scale" in str(found)
    assert set(tb_optax.spectra(PARAMS, layers=layers)) == set(WEIGHTS)
    assert [record.layer for record in tb_optax.report(PARAMS, layers=layers).records] == list(WEIGHTS)
    with pytest.raises(ValueError, match="unmeasured='head' matches no layer"):
        tb_optax.find_layers(PARAMS, unmeasured="head")
    with pytest.raises(TypeError, match="unmeasured=None must be a sequence of patterns"):
        tb_optax.find_layers(PARAMS, unmeasured=None)


def forward(params, tokens, tied):
    x = params["embed"]["embedding"][tokens]
    for name in WEIGHTS:
        x = x + jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"]) @ params[f"{name}_out"]["kernel"]
    return x @ (params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"])


@pytest.mark.parametrize("tied", [False, True])
def test_traced_embeddings_and_ends_are_not_measured(tied):
    params = PARAMS | {f"{name}_out": {"kernel": jnp.ones((12, 8))} for name in WEIGHTS}
    del params["norm"]
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    trace = functools.partial(
        tb_optax.trace_layers, functools.partial(forward, tied=tied), params, tokens, min_eigenvalues=4
    )
    found = trace(first_and_last="unmeasured")
    unmeasured = {layer.kernel for layer in found if not layer.measured}
    assert unmeasured == ({"embed/embedding"} if tied else {"embed/embedding", "lm_head/kernel"})
    assert len(found.measured) == 10, "all layers of the blocks, the first and the last among them"
    assert tuple(found.measured) == tuple(trace())
    with pytest.raises(ValueError, match="first_and_last='both' is unknown"):
        trace(first_and_last="both")
