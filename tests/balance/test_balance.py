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
from tb_optax._balance.attributes import all_declare
from tb_optax._balance.options import BalanceOptions
from tb_optax._balance.scales import scale_by_layer
from tb_optax._balance.transformation import balanced_transformation
from tb_optax._spectra.noise import noise_spectrum

PARAMS = dense_params()
REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


class DecayState(NamedTuple):
    count: jax.Array
    metric: dict[str, jax.Array]
    scale: dict[str, jax.Array]


def balanced_decay(rate, update_interval):
    """Decoupled weight decay, of each layer by its scale: another transformation on the same core."""
    options = BalanceOptions(
        "balanced_decay",
        update_interval=update_interval,
        min_scale=0.5,
        max_scale=2.0,
        metric=tb_optax.metrics.pl_alpha_hill,
        assign=tb_optax.assignments.linear,
        layers=tiny_layers,
        start_step=0,
        solver=tb_optax.Exact(),
        windows=None,
    )

    def decayed(updates, state, now):
        decay = scale_by_layer(now.params, now.layers, now.leaves, now.scale)
        return jax.tree.map(lambda u, d: u - rate * d, updates, decay)

    return balanced_transformation(options, DecayState, decayed)


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


tolerates_gram = functools.partial(all_declare, attribute="gram")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(jax.jit(f)), functools.partial])
def test_a_metric_declares_that_it_tolerates_gram_products_inside_jit_and_partial(wrap):
    alpha = tb_optax.metrics.pl_alpha_hill
    assert tolerates_gram(wrap(alpha))
    assert tolerates_gram(wrap(functools.partial(alpha, fit=functools.partial(tb_optax.fits.median, tail_fraction=0.3))))
    assert not tolerates_gram(wrap(functools.partial(alpha, fit=tb_optax.fits.fix_finger)))
    assert not tolerates_gram(wrap(lambda eigenvalues: alpha(eigenvalues)))
    wrapped = functools.wraps(alpha)(lambda eigenvalues: eigenvalues[..., 0])
    assert not tolerates_gram(wrap(wrapped))  # It copied the attribute of another function.

    def own(eigenvalues):
        return eigenvalues[..., -1]

    own.gram = True
    assert tolerates_gram(wrap(own))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, functools.partial])
@pytest.mark.parametrize("create", [tb_optax.tempbalance, functools.partial(tb_optax.alphadecay, 0.1)])
def test_a_fit_for_a_metric_is_one_clear_error(create, wrap):
    with pytest.raises(
        TypeError, match=r"is a fit, not a metric; give metric=functools\.partial\(tb_optax\.metrics"
    ) as error:
        create(1, metric=wrap(tb_optax.fits.goodness_of_fit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, functools.partial])
def test_relative_to_noise_without_its_call_is_one_clear_error(wrap):
    with pytest.raises(TypeError, match=r"makes a metric .* call it: metric=tb_optax\.metrics\.relative_to_noise\(\)"):
        tb_optax.tempbalance(1, metric=wrap(tb_optax.metrics.relative_to_noise))


def relative(eigenvalues, noise):
    return eigenvalues[..., -1] / eigenvalues.mean(axis=-1) / noise[-1]


relative.noise = relative.gram = True


def of_shape(noise):
    return tb_optax.fits.median(noise).alpha


of_shape.spectrum = False

MIXED = {
    "wide": jax.random.normal(jax.random.key(0), (64, 256)),
    "square": jax.random.normal(jax.random.key(1), (64, 64)),
    "tall": jax.random.normal(jax.random.key(2), (256, 64)),
    "conv": jax.random.normal(jax.random.key(3), (3, 3, 64, 64)),
    "stack": jax.random.normal(jax.random.key(4), (3, 64, 128)),
}
MIXED_LAYERS = [tb_optax.Layer(name, name, layer_axes=(0,) * (name == "stack")) for name in MIXED]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, functools.partial], ids=["bare", "jit", "partial"])
def test_a_metric_that_wants_noise_gets_that_of_each_layers_shape(wrap):
    """All have 64 rows, so without noise there would be one call for all but the convolution."""
    tb = tb_optax.tempbalance(None, metric=wrap(relative), layers=MIXED_LAYERS)
    metric = tb.refresh(tb.init(MIXED), MIXED).metric
    longer = {"wide": 256, "square": 64, "tall": 256, "conv": 64, "stack": 128}
    for name, values in tb_optax.spectra(MIXED, layers=MIXED_LAYERS).items():
        expected = values[..., -1] / values.mean(axis=-1) / noise_spectrum(64, longer[name], values.shape[-1])[-1]
        np.testing.assert_allclose(metric[name], expected, rtol=1e-3)
        np.testing.assert_allclose(metric[name], 1, rtol=0.2)  # Random matrices are noise.


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, functools.partial], ids=["bare", "jit", "partial"])
def test_a_metric_of_shapes_solves_nothing(wrap):
    tb = tb_optax.tempbalance(None, metric=wrap(of_shape), layers=MIXED_LAYERS)
    state = tb.refresh(tb.init(MIXED), MIXED)
    assert state.metric["wide"] == state.metric["tall"] == pytest.approx(3.5, abs=0.1)
    assert state.metric["square"] == pytest.approx(2.13, abs=0.05) and len(set(state.metric["stack"].tolist())) == 1
    assert state.scale["wide"] == 1.5 and min(map(float, (state.scale[name] for name in ("square", "conv")))) == 0.5
    inside = tb_optax.tempbalance(1, metric=wrap(of_shape), layers=MIXED_LAYERS)
    text = jax.jit(inside.update).lower(MIXED, inside.init(MIXED), MIXED).as_text()
    assert "custom_call" not in text and "dot_general" not in text
