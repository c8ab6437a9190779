"""What `tempbalance` does to updates: when it refreshes, what it scales by how much, and what it makes of bad weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    dense_params,
    numpy_alpha,
    numpy_linear,
    numpy_scales,
    numpy_spectrum,
    ones_like,
    tempbalance,
    tiny_layers,
)

import tb_optax
from tb_optax import assignments, metrics

PARAMS = dense_params()
ONES = dict.fromkeys(PARAMS, 1.0)


def moved(params, step: int):
    """Parameters that have changed, each layer in its own way, so that every refresh would give other scales."""
    factor = lambda x: jnp.sign(x) * jnp.abs(x) ** (1 + 0.3 * jnp.sin(step + x.size + jnp.arange(x.shape[-1])))
    return jax.tree.map(factor, params)


def assert_scales(ours, expected):
    assert ours.keys() == expected.keys()
    np.testing.assert_allclose([ours[name] for name in expected], list(expected.values()), rtol=1e-3)


@pytest.mark.parametrize(("update_interval", "start_step"), [(1, 0), (3, 0), (2, 3), (4, 1)])
def test_refresh_is_at_start_and_every_interval_from_the_parameters_before_the_update(update_interval, start_step):
    tx = tempbalance(update_interval, start_step=start_step)
    params, expected, metrics = PARAMS, ONES, dict.fromkeys(PARAMS, 0.0)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(9):
        if step >= start_step and (step - start_step) % update_interval == 0:
            expected = numpy_scales(params)
            metrics = {name: numpy_alpha(numpy_spectrum(leaf["kernel"])) for name, leaf in params.items()}
        updates, state = update(ones_like(params), state, params)
        assert_scales(state.scale, expected)
        assert_scales(state.metric, metrics)
        assert_scales({name: leaf["kernel"].mean() for name, leaf in updates.items()}, expected)
        assert state.count == step + 1
        params = moved(params, step)


def sgd_by_hand(schedule, momentum: float, steps: int, scaled: str):
    """PyTorch's SGD with a learning rate for each layer (`scaled="step"`), or with each layer's gradient scaled."""
    params = {name: {key: np.asarray(x, np.float64) for key, x in leaf.items()} for name, leaf in PARAMS.items()}
    trace = jax.tree.map(np.zeros_like, params)
    for step in range(steps):
        if step % 2 == 0:
            scales = numpy_scales(params)
        for name, leaf in params.items():
            for key, x in leaf.items():
                gradient = np.sin(3 * x)
                trace[name][key] = momentum * trace[name][key] + gradient * (scales[name] if scaled == "gradient" else 1)
                leaf[key] = x - schedule(step) * trace[name][key] * (scales[name] if scaled == "step" else 1)
    return params


@pytest.mark.parametrize("order", ["after", "before"])
def test_after_sgd_it_is_a_learning_rate_per_layer_and_before_it_scales_the_gradient(order):
    schedule = optax.cosine_decay_schedule(0.1, 10)
    parts = [optax.sgd(schedule, momentum=0.9), tempbalance(2)]
    tx = optax.chain(*parts) if order == "after" else optax.chain(*reversed(parts))
    params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
    for _ in range(5):
        gradients = jax.tree.map(lambda x: jnp.sin(3 * x), params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    by_hand = functools.partial(sgd_by_hand, schedule, 0.9, 5)
    expected, other = by_hand("step"), by_hand("gradient")
    if order == "before":
        expected, other = other, expected
    for name in params:
        for key in params[name]:
            np.testing.assert_allclose(params[name][key], expected[name][key], rtol=2e-3, atol=2e-4)
    # The two ways differ, so that the test can tell them apart.
    assert max(np.abs(params[name]["kernel"] - other[name]["kernel"]).max() for name in params) > 2e-3


def test_what_belongs_to_no_layer_is_untouched_bit_for_bit():
    layers = [tb_optax.Layer(name, f"{name}/kernel") for name in ("dense0", "dense1")]
    params = {**PARAMS, "count": jnp.array(3), "norm": {"scale": jnp.full(5, 0.1)}, "none": None}
    updates = jax.tree.map(lambda x: x * jnp.asarray(0.7).astype(x.dtype), params)
    tx = tempbalance(1, layers=layers)
    new, state = jax.jit(tx.update)(updates, tx.init(params), params)
    assert not np.allclose(new["dense0"]["kernel"], updates["dense0"]["kernel"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(new):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in ("dense0/kernel", "dense1/kernel"):
            before = functools.reduce(lambda tree, key: tree[key.key], path, updates)
            assert leaf.dtype == before.dtype
            np.testing.assert_array_equal(leaf, before, err_msg=name)
    assert state.scale.keys() == {"dense0", "dense1"}


def test_followers_share_the_scale_of_their_layer():
    params = {**PARAMS, "norm": {"scale": jnp.ones(12), "bias": jnp.ones(12)}}
    layers = [
        tb_optax.Layer("dense0", "dense0/kernel", ("dense0/bias", "norm/scale", "norm/bias")),
        tb_optax.Layer("dense1", "dense1/kernel"),
    ]
    tx = tempbalance(1, layers=layers)
    updates, state = tx.update(ones_like(params), tx.init(params), params)
    scale = state.scale["dense0"]
    assert scale != 1
    for leaf in (updates["dense0"]["kernel"], updates["dense0"]["bias"], updates["norm"]["scale"], updates["norm"]["bias"]):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, scale))
    np.testing.assert_array_equal(updates["dense1"]["bias"], np.ones(12))


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_each_slice_of_a_stack_is_a_layer_of_its_own(axes):
    """Two axes of layers, in either order; alone they are layers enough to balance."""
    kernel = np.stack([leaf["kernel"] for leaf in dense_params(depth=6).values()]).reshape(2, 3, 8, 12)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.ones((2, 3, 12))}
    tx = tempbalance(1, layers=[tb_optax.Layer("stack", "kernel", ("bias",), layer_axes=axes)])
    updates, state = tx.update(ones_like(params), tx.init(params), params)
    expected = numpy_linear({index: numpy_alpha(numpy_spectrum(kernel[index])) for index in np.ndindex(2, 3)})
    for index, scale in expected.items():
        np.testing.assert_allclose(state.scale["stack"][index if axes == (0, 1) else index[::-1]], scale, rtol=1e-3)
        np.testing.assert_allclose(updates["kernel"][index], np.full((8, 12), scale), rtol=1e-3)
        np.testing.assert_allclose(updates["bias"][index], np.full(12, scale), rtol=1e-3)


def test_whatever_assign_returns_is_clipped():
    assign = lambda metrics, low, high: jnp.arange(len(metrics)) * 10.0
    tx = tempbalance(1, assign=assign, min_scale=0.25, max_scale=15.0)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert_scales(state.scale, dict(zip(PARAMS, [0.25, 10.0, 15.0], strict=True)))


@pytest.mark.parametrize("odd", [jnp.inf, -jnp.inf, jnp.nan])
def test_a_layer_whose_assigned_scale_is_no_number_keeps_its_scale(odd):
    tx = tempbalance(1, assign=lambda metrics, low, high: jnp.array([0.7, odd, 1.2]))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert_scales(state.scale, dict(zip(PARAMS, [0.7, 1.0, 1.2], strict=True)))
    assert state.metric["dense1"] == 0 < state.metric["dense0"]


def test_own_metric_sees_spectra_and_its_nan_leaves_a_layer_out():
    def metric(eigenvalues):
        return jnp.where(eigenvalues[:, -1] == eigenvalues[:, -1].max(), jnp.nan, eigenvalues.mean(axis=1))

    tx = tempbalance(1, metric=metric)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    means = {name: numpy_spectrum(leaf["kernel"]).mean() for name, leaf in PARAMS.items()}
    largest = max(PARAMS, key=lambda name: numpy_spectrum(PARAMS[name]["kernel"])[-1])
    means.pop(largest)
    assert_scales(state.scale, {**ONES, **numpy_linear(means)})


NASTY = {
    "normal": lambda x: x,
    "nan": lambda x: x.at[0, 0].set(jnp.nan),
    "inf": lambda x: x.at[1, 2].set(jnp.inf),
    "zeros": jnp.zeros_like,
    "one entry": lambda x: jnp.zeros_like(x).at[0, 0].set(1.0),
    "rank one": lambda x: x[:, :1] * x[:1],
    "orthogonal": lambda x: jnp.eye(*x.shape),
    "huge": lambda x: 1e30 * x,
    "tiny": lambda x: 1e-30 * x,
    "denormal": lambda x: 1e-42 * x,
}
USABLE = {"normal"}


@pytest.mark.parametrize(
    "assign",
    [assignments.linear, assignments.sqrt, assignments.log2, assignments.step],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("metric", [metrics.pl_alpha_hill, metrics.alpha_weighted], ids=lambda f: f.__name__)
def test_state_is_finite_and_in_bounds_for_any_weights(metric, assign):
    tx = tempbalance(1, metric=metric, assign=assign, min_scale=0.6, max_scale=1.4)
    update = jax.jit(tx.update)

    @given(st.lists(st.lists(st.sampled_from(list(NASTY)), min_size=3, max_size=3), min_size=2, max_size=3))
    def any_weights(history):
        state = tx.init(PARAMS)
        for kinds in history:
            params = {
                name: {**leaf, "kernel": NASTY[kind](leaf["kernel"])}
                for kind, (name, leaf) in zip(kinds, PARAMS.items(), strict=True)
            }
            updates, new = update(ones_like(params), state, params)
            for leaf in jax.tree.leaves((updates, new)):
                assert np.isfinite(leaf).all()
            # In float32, as the state is.
            assert all(np.float32(0.6) <= scale <= np.float32(1.4) for scale in new.scale.values())
            state = new

    any_weights()


@given(st.lists(st.sampled_from(list(NASTY)), min_size=4, max_size=4))
def test_unusable_layers_keep_their_scale_and_take_no_part(kinds):
    params = dense_params(depth=4)
    nasty = {
        name: {**leaf, "kernel": NASTY[kind](leaf["kernel"])}
        for kind, (name, leaf) in zip(kinds, params.items(), strict=True)
    }
    _, before = UPDATE(params, TX.init(params), params)
    _, after = UPDATE(nasty, before, nasty)
    usable = [name for name, kind in zip(params, kinds, strict=True) if kind in USABLE]
    kept = {name: before.scale[name] for name in params if name not in usable}
    fresh = numpy_scales({name: params[name] for name in usable}) if len(usable) > 1 else dict.fromkeys(usable, 1.0)
    assert_scales(after.scale, {name: {**kept, **fresh}[name] for name in params})
    for name in kept:
        assert after.scale[name] == before.scale[name] and after.metric[name] == before.metric[name]


TX = tempbalance(1)
UPDATE = jax.jit(TX.update)


def test_unusable_slice_of_a_stack_spoils_no_other():
    kernel = np.stack([leaf["kernel"] for leaf in PARAMS.values()])
    kernel[1] = np.nan
    params = {"kernel": jnp.asarray(kernel)}
    tx = tempbalance(1, layers=[tb_optax.Layer("stack", "kernel", layer_axes=(0,))])
    _, state = tx.update(params, tx.init(params), params)
    expected = numpy_linear({i: numpy_alpha(numpy_spectrum(kernel[i])) for i in (0, 2)})
    np.testing.assert_allclose(state.scale["stack"], [expected[0], 1.0, expected[2]], rtol=1e-3)


def test_update_without_params_is_an_error():
    state = TX.init(PARAMS)
    with pytest.raises(ValueError, match=r"params=None.*tx\.update\(updates, state, params\)"):
        TX.update(PARAMS, state)


def test_update_of_other_parameters_is_an_error():
    state = TX.init(PARAMS)
    other = {name: PARAMS[name] for name in ("dense0", "dense1")}
    with pytest.raises(ValueError, match=r"state has the layers \['dense0', 'dense1', 'dense2'\].*call init"):
        TX.update(other, state, other)


STATES = {
    "a chain's": optax.chain(optax.sgd(0.1), TX).init(PARAMS),
    "adam's": optax.adam(0.1).init(PARAMS),
    "none": None,
    "empty": optax.EmptyState(),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize(
    "tx", [TX, tb_optax.baselines.spectral_norm_regularization(0.1, layers=tiny_layers)], ids=["tempbalance", "snr"]
)
def test_state_of_another_transformation_is_an_error(tx, state):
    with pytest.raises(TypeError, match="is not its state; give what its own init returned"):
        tx.update(PARAMS, state, PARAMS)


def without(path):
    return {name: {key: x for key, x in leaf.items() if f"{name}/{key}" != path} for name, leaf in PARAMS.items()}


TRANSFORMATIONS = {
    "tempbalance": TX,
    "spectral_norm_regularization": tb_optax.baselines.spectral_norm_regularization(0.1, layers=tiny_layers),
    "sgdp": tb_optax.baselines.sgdp(0.1, layers=tiny_layers),
    "adamp": tb_optax.baselines.adamp(0.1, layers=tiny_layers),
}


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({}, ValueError, "params has 'dense0/kernel', but updates has not; give the gradients of these params"),
        (without("dense1/kernel"), ValueError, "params has 'dense1/kernel', but updates has not"),
        ({**PARAMS, "other": jnp.ones(3)}, ValueError, "updates has 'other', but params has not"),
        (list(PARAMS.values()), ValueError, "updates has '0/bias', but params has not"),
        (jax.tree.map(lambda x: x[..., :3], PARAMS), ValueError, r"'dense0/bias' of shape \(3,\), but .* shape \(12,\)"),
        (jax.tree.map(lambda x: x.astype(int), PARAMS), TypeError, "'dense0/kernel' of dtype int.*floating-point"),
    ],
    ids=["empty", "one missing", "one more", "a list", "sliced", "integers"],
)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_updates_that_are_not_of_the_parameters_are_an_error(name, updates, error, message):
    tx = TRANSFORMATIONS[name]
    with pytest.raises(error, match=f"{name}: .*{message}"):
        tx.update(updates, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "numbers",
    [
        {"update_interval": 0},
        {"update_interval": -2},
        {"update_interval": float("nan")},
        {"update_interval": float("inf")},
        {"update_interval": 2.0**40},
        {"start_step": -1},
        {"start_step": float("nan")},
        {"min_scale": 1.6},
        {"min_scale": -0.5},
        {"min_scale": float("nan")},
        {"max_scale": float("nan")},
        {"max_scale": float("inf")},
    ],
    ids=str,
)
def test_a_scheduled_number_that_could_not_be_given_leaves_every_scale_as_it_is_until_it_can(numbers):
    """From the second update on, and then again what could be given."""
    scheduled = {
        name: lambda count, bad=bad, good=DEFAULTS[name]: jnp.where(count == 1, bad, good) for name, bad in numbers.items()
    }
    tx = optax.inject_hyperparams(tempbalance, static_args=("metric", "assign", "layers"))(**DEFAULTS | scheduled)
    params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
    expected = numpy_scales(params)
    for step in range(3):
        if step == 2:
            expected = numpy_scales(params)
        updates, state = update(ones_like(params), state, params)
        assert_scales(state.inner_state.scale, expected)
        assert_scales({name: leaf["kernel"].mean() for name, leaf in updates.items()}, expected)
        params = moved(params, step)


DEFAULTS = dict(update_interval=1, start_step=0, min_scale=0.5, max_scale=1.5)


def test_fewer_than_two_layers_are_an_error_that_says_why_each_kernel_is_left_out():
    params = {
        "stem": {"kernel": jnp.ones((3, 64))},
        "head": {"kernel": jnp.ones((64, 64))},
        "body": {"kernel": jnp.ones((64, 64))},
        "embed": {"embedding": jnp.ones((64, 64))},
    }
    layers = functools.partial(tb_optax.find_layers, exclude=("head",))
    with pytest.raises(ValueError, match="found 1 to balance") as error:
        tb_optax.tempbalance(1, layers=layers).init(params)
    for part in ("(body)", "stem/kernel: 3 eigenvalues", "head/kernel: excluded by 'head'", "embed/embedding: an embedding"):
        assert part in str(error.value)
    for way_out in ("layers=", "min_eigenvalues", "exclude"):
        assert way_out in str(error.value)


@pytest.mark.parametrize("params", [{}, {"bias": jnp.ones(5)}])
def test_no_kernel_at_all_is_an_error(params):
    with pytest.raises(ValueError, match=r"found 0 to balance \(none\)"):
        tb_optax.tempbalance(1).init(params)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"update_interval": 0}, ValueError, "update_interval=0 must be at least 1"),
        ({"update_interval": -3}, ValueError, "update_interval=-3 must be at least 1"),
        ({"update_interval": 2**40}, ValueError, "update_interval=1099511627776 must be at most 2147483647"),
        ({"start_step": 2**31}, ValueError, "start_step=2147483648 must be at most 2147483647"),
        ({"update_interval": float("inf")}, TypeError, "update_interval=inf must be a whole number"),
        ({"update_interval": 2.5}, TypeError, "update_interval=2.5 must be a whole number"),
        ({"update_interval": float("nan")}, TypeError, "update_interval=nan must be a whole number"),
        ({"update_interval": "390"}, TypeError, "update_interval='390' is not a number"),
        ({"update_interval": None, "start_step": 3}, ValueError, "start_step=3 has no effect with update_interval=None"),
        ({"update_interval": True}, TypeError, "update_interval=True is not a number"),
        ({"update_interval": np.ones(2)}, TypeError, r"update_interval has shape \(2,\); give one number"),
        ({"start_step": -1}, ValueError, "start_step=-1 must be at least 0"),
        ({"start_step": 0.5}, TypeError, "start_step=0.5 must be a whole number"),
        ({"min_scale": 1.6}, ValueError, "min_scale=1.6 is above max_scale=1.5; give the smaller one first"),
        ({"min_scale": -0.5}, ValueError, "min_scale=-0.5 must be finite and not negative"),
        ({"min_scale": float("nan")}, ValueError, "min_scale=nan must be finite"),
        ({"max_scale": float("inf")}, ValueError, "max_scale=inf must be finite"),
        ({"max_scale": "1.5"}, TypeError, "max_scale='1.5' is not a number"),
        (
            {"metric": "alpha"},
            TypeError,
            "metric='alpha' is not a function; give one such as tb_optax.metrics.pl_alpha_hill",
        ),
        ({"assign": None}, TypeError, "assign=None is not a function; give one such as tb_optax.assignments.linear"),
    ],
)
def test_argument_out_of_range_or_of_the_wrong_type_is_an_error(arguments, error, message):
    with pytest.raises(error, match="tempbalance: " + message):
        tb_optax.tempbalance(**{"update_interval": 1, **arguments})


def test_schedule_without_inject_hyperparams_is_an_error_that_names_it():
    with pytest.raises(TypeError, match=r"is not a number.*inject_hyperparams\(tempbalance, static_args="):
        tb_optax.tempbalance(optax.constant_schedule(3))


@pytest.mark.parametrize("layers", [3, "dense0", {"dense0": 1}, lambda params: 3, ["dense0", "dense1"]])
def test_layers_of_the_wrong_type_are_an_error(layers):
    with pytest.raises(TypeError, match=r"tb_optax\.Layer"):
        tb_optax.tempbalance(1, layers=layers).init(PARAMS)


@pytest.mark.parametrize("name", ["metric", "assign"])
@pytest.mark.parametrize("wrong", [lambda x, *_: x.mean(), lambda x, *_: jnp.zeros((*x.shape, 2))])
def test_function_that_returns_another_shape_is_an_error(name, wrong):
    tx = tempbalance(1, **{name: wrong})
    with pytest.raises(
        ValueError, match=rf"{name}=.* returned an array of shape {re.escape('(')}.*it must return one number"
    ):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_numbers_may_be_arrays_of_any_kind():
    tx = tb_optax.tempbalance(
        np.int64(1), min_scale=np.float32(0.5), max_scale=jnp.asarray(1.5), start_step=jnp.zeros((), int), layers=tiny_layers
    )
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert_scales(state.scale, numpy_scales(PARAMS))
