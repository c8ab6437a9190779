"""Spectral norm regularization adds the penalty's gradient, as numpy's SVD and JAX's differentiation have it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import dense_params, ones_like

import tb_optax
from tb_optax import Layer
from tb_optax.baselines import _spectral_norm, spectral_norm_regularization

PARAMS = jax.tree.map(lambda leaf: leaf + 2, dense_params(depth=2))
STATIC = ("power_iterations", "layers", "seed")
ENOUGH = 40
"""Rounds of power iteration that converge on the weights here: their mean makes one singular value far the largest."""


def normal(*shape, seed=0):
    return jnp.asarray(2 + np.random.default_rng(seed).standard_normal(shape), jnp.float32)


zeros_like = lambda tree: jax.tree.map(jnp.zeros_like, tree)


def numpy_gradient(matrix, coefficient):
    """`c σ u vᵀ` by SVD."""
    left, singular, right = np.linalg.svd(np.asarray(matrix, np.float64))
    return coefficient * singular[0] * np.outer(left[:, 0], right[0])


def assert_close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_over_updates_the_gradient_becomes_that_of_the_svd():
    tx = spectral_norm_regularization(0.1)  # One round each.
    state, update, errors = tx.init(PARAMS), jax.jit(tx.update), []
    expected = {name: numpy_gradient(leaf["kernel"], 0.1) for name, leaf in PARAMS.items()}
    for _ in range(ENOUGH):
        updates, state = update(zeros_like(PARAMS), state, PARAMS)
        errors.append([np.abs(updates[name]["kernel"] - expected[name]).max() for name in PARAMS])
    assert np.all(np.array(errors[0]) > 100 * np.array(errors[-1]))  # It had to be found.
    for name in PARAMS:
        assert_close(updates[name]["kernel"], expected[name])


def test_rounds_in_one_update_are_as_many_updates_of_one_round():
    once = spectral_norm_regularization(0.1, power_iterations=5)
    often = spectral_norm_regularization(0.1)
    updates, state = once.update(zeros_like(PARAMS), once.init(PARAMS), PARAMS)
    one_by_one = often.init(PARAMS)
    for _ in range(5):
        expected, one_by_one = often.update(zeros_like(PARAMS), one_by_one, PARAMS)
    chex.assert_trees_all_close((updates, state), (expected, one_by_one), rtol=1e-5, atol=1e-6)


# Each with its matrices, which are all 4 by 12.
KERNELS = {
    "dense of Flax": ({"kernel": normal(12, 4)}, lambda kernel: kernel.T[None]),
    "dense of PyTorch": ({"weight": normal(4, 12)}, lambda kernel: kernel[None]),
    "conv of Flax (HWIO)": ({"kernel": normal(3, 2, 2, 4)}, lambda kernel: kernel.reshape(12, 4).T[None]),
    "conv of PyTorch (OIHW)": ({"weight": normal(4, 2, 3, 2)}, lambda kernel: kernel.reshape(1, 4, 12)),
    "stack, known by its bias": ({"kernel": normal(3, 12, 4), "bias": normal(3, 4)}, lambda kernel: kernel.mT),
    "conv stack": ({"kernel": normal(2, 3, 4, 4), "bias": normal(2, 4)}, lambda kernel: kernel.reshape(2, 12, 4).mT),
}


def test_gradient_is_that_of_the_penalty_on_each_weight_as_one_matrix():
    params = {name: params for name, (params, _) in KERNELS.items()}
    gradients = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=1), params)
    tx = spectral_norm_regularization(0.3, power_iterations=ENOUGH)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)

    def loss(params):
        kernels = {name: next(leaf for key, leaf in own.items() if key != "bias") for name, own in params.items()}
        matrices = jnp.concatenate([matrices(kernels[name]) for name, (_, matrices) in KERNELS.items()])
        penalty = 0.3 / 2 * jnp.sum(jnp.linalg.norm(matrices, 2, (-2, -1)) ** 2)
        return penalty + sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (params, gradients)), strict=True))

    expected = jax.jit(jax.grad(loss))(params)
    for name, own in expected.items():
        for key, leaf in own.items():
            assert_close(updates[name][key], leaf, 1e-3)
            assert key != "bias" or np.array_equal(updates[name][key], gradients[name][key])


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (2, 1, 3, 0)])
def test_axes_are_those_of_the_layer(axes):
    """Two output axes, as of an attention kernel, an input axis and a layer axis, wherever they stand."""
    canonical = normal(2, 6, 3, 2)  # layers, inputs, heads, head_dim
    kernel = canonical.transpose(*np.argsort(axes))
    layer = Layer("qkv", "kernel", (), (axes[1],), (axes[2], axes[3]), (axes[0],))
    tx = spectral_norm_regularization(0.2, power_iterations=ENOUGH, layers=[layer])
    params = {"kernel": kernel}
    updates, _ = jax.jit(tx.update)(zeros_like(params), tx.init(params), params)
    expected = np.stack([numpy_gradient(matrix.reshape(6, 6), 0.2).reshape(6, 3, 2) for matrix in canonical])
    assert_close(updates["kernel"].transpose(*axes), expected, 1e-3)


def test_biases_norms_and_embeddings_stay():
    params = {"norm": {"scale": normal(8)}, "embed": {"embedding": normal(9, 8)}} | PARAMS
    tx = spectral_norm_regularization(1.0)
    updates, state = tx.update(ones_like(params), tx.init(params), params)
    assert state.left_singular_vectors.keys() == PARAMS.keys()
    for path in (("norm", "scale"), ("embed", "embedding"), ("dense0", "bias")):
        np.testing.assert_array_equal(updates[path[0]][path[1]], 1)
    assert not np.any(updates["dense0"]["kernel"] == 1)


def test_trained_on_alone_only_the_largest_singular_value_shrinks():
    """By `1 - learning_rate * coefficient` in a step, until it is no longer the largest."""
    tx = optax.chain(spectral_norm_regularization(0.5, power_iterations=ENOUGH), optax.sgd(0.1))
    params = {"dense": {"kernel": PARAMS["dense0"]["kernel"]}}
    before = np.linalg.svd(params["dense"]["kernel"], compute_uv=False)
    state, update = tx.init(params), jax.jit(tx.update)
    updates, state = update(zeros_like(params), state, params)
    params = optax.apply_updates(params, updates)
    after = np.linalg.svd(params["dense"]["kernel"], compute_uv=False)
    np.testing.assert_allclose(np.sort(after), np.sort([before[0] * (1 - 0.05), *before[1:]]), rtol=1e-3)
    for _ in range(60):
        updates, state = update(zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
    after = np.linalg.svd(params["dense"]["kernel"], compute_uv=False)
    assert after[0] < 0.5 * before[0] and after[-1] == pytest.approx(before[-1], rel=1e-2)


def test_vmap_over_seeds_is_one_seed_at_a_time():
    seeds = [dense_params(seed, depth=1) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    tx = spectral_norm_regularization(0.1, power_iterations=2)
    together = jax.jit(jax.vmap(tx.update))(ones_like(stacked), jax.vmap(tx.init)(stacked), stacked)
    for i, own in enumerate(seeds):
        alone = tx.update(ones_like(own), tx.init(own), own)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-4, atol=1e-5)


def test_scan_over_steps_is_step_by_step_in_a_whole_chain():
    tx = optax.chain(
        spectral_norm_regularization(1e-2),
        optax.add_decayed_weights(5e-4),
        optax.sgd(0.1, momentum=0.9),
        tb_optax.tempbalance(2, layers=lambda params: tb_optax.find_layers(params, min_eigenvalues=4)),
    )

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = PARAMS, tx.init(PARAMS)
    scanned, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=4))(start)
    looped, jitted = start, jax.jit(step)
    for _ in range(4):
        looped, _ = jitted(looped, None)
    assert jitted._cache_size() == 1
    chex.assert_trees_all_close(scanned, looped, rtol=1e-4, atol=1e-6)


def test_without_jit_it_is_the_same_and_compiled_once():
    tx = spectral_norm_regularization(0.1)
    compiled = _spectral_norm._power_iteration
    before, state = compiled._cache_size(), tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(ones_like(PARAMS), state, PARAMS)
    assert compiled._cache_size() <= before + 1
    jitted, update = tx.init(PARAMS), jax.jit(tx.update)
    for _ in range(3):
        expected, jitted = update(ones_like(PARAMS), jitted, PARAMS)
    chex.assert_trees_all_close((updates, state), (expected, jitted), rtol=1e-5, atol=1e-6)


def test_coefficient_can_be_a_schedule():
    tx = optax.inject_hyperparams(spectral_norm_regularization, static_args=STATIC)(
        optax.linear_schedule(0.0, 0.4, 4), power_iterations=ENOUGH
    )
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for step in range(4):
        updates, state = update(zeros_like(PARAMS), state, PARAMS)
        assert_close(updates["dense1"]["kernel"], numpy_gradient(PARAMS["dense1"]["kernel"], 0.1 * step), 1e-3)
    assert update._cache_size() == 1


@pytest.mark.parametrize(
    ("params_dtype", "updates_dtype"),
    [(jnp.bfloat16, jnp.bfloat16), (jnp.float32, jnp.bfloat16), (jnp.float64, jnp.float32)],
)
def test_updates_and_state_keep_their_dtypes(params_dtype, updates_dtype):
    with jax.enable_x64(params_dtype == jnp.float64):
        params = jax.tree.map(lambda x: x.astype(params_dtype), PARAMS)
        gradients = jax.tree.map(lambda x: jnp.ones(x.shape, updates_dtype), PARAMS)
        tx = spectral_norm_regularization(0.1, power_iterations=100)
        state = tx.init(params)
        updates, new_state = jax.jit(tx.update)(gradients, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        dtype = jnp.promote_types(params_dtype, jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {dtype}
        # One rounding, to the updates' precision.
        expected = 1 + numpy_gradient(params["dense0"]["kernel"], 0.1)
        tolerance = 2**-8 if updates_dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(updates["dense0"]["kernel"].astype(jnp.float32), expected, rtol=tolerance, atol=1e-5)


def test_a_zero_weight_has_no_penalty():
    params = PARAMS | {"dense1": zeros_like(PARAMS["dense1"])}
    tx = spectral_norm_regularization(0.1)
    start = tx.init(params)
    updates, state = tx.update(zeros_like(params), start, params)
    np.testing.assert_array_equal(updates["dense1"]["kernel"], 0)
    chex.assert_trees_all_equal(state.left_singular_vectors["dense1"], start.left_singular_vectors["dense1"])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_weight_that_is_not_finite_leaves_the_state_as_it_was(bad):
    broken = PARAMS | {"dense1": {"kernel": PARAMS["dense1"]["kernel"].at[2, 3].set(bad), "bias": jnp.ones(12)}}
    tx = spectral_norm_regularization(0.1)
    update = jax.jit(tx.update)
    _, before = update(zeros_like(PARAMS), tx.init(PARAMS), PARAMS)
    updates, after = update(zeros_like(PARAMS), before, broken)
    chex.assert_trees_all_equal(after.left_singular_vectors["dense1"], before.left_singular_vectors["dense1"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    assert np.all(np.isfinite(updates["dense0"]["kernel"])) and not np.all(np.isfinite(updates["dense1"]["kernel"]))
    updates, _ = update(zeros_like(PARAMS), after, PARAMS)
    assert np.all(np.isfinite(updates["dense1"]["kernel"]))


def test_state_is_arrays_only_one_unit_vector_a_layer():
    params = {"stack": {"kernel": normal(3, 6, 4), "bias": normal(3, 4)}} | PARAMS
    tx = spectral_norm_regularization(0.1)
    state = tx.init(params)
    assert isinstance(state, tb_optax.baselines.SpectralNormRegularizationState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    vectors = optax.tree_utils.tree_get(state, "left_singular_vectors")
    assert {name: vector.shape for name, vector in vectors.items()} == {
        "stack": (3, 1, 4),
        **{name: (1, 12) for name in PARAMS},
    }
    np.testing.assert_allclose(jnp.linalg.norm(vectors["stack"], axis=(1, 2)), np.ones(3), rtol=1e-5)
    assert not np.allclose(vectors["dense0"], vectors["dense1"])  # Each layer has a start of its own,
    other = spectral_norm_regularization(0.1, seed=1).init(params)
    assert not np.allclose(vectors["dense0"], other.left_singular_vectors["dense0"])  # and each seed.
    for abstract in (jax.eval_shape(tx.init, params), jax.eval_shape(tx.update, params, state, params)[1]):
        chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)
    chex.assert_trees_all_equal(tx.init(jax.eval_shape(lambda: params)), state)
    chex.assert_trees_all_close(jax.jit(tx.init)(params), state, rtol=1e-6)
    mapped = optax.tree_utils.tree_map_params(tx, lambda leaf: leaf + 1, state)
    chex.assert_trees_all_equal(mapped, state)  # None of it is a parameter.


@pytest.mark.parametrize(
    ("mode", "spec"),
    [(AxisType.Auto, P(None, "x")), (AxisType.Explicit, P(None, "x")), (AxisType.Explicit, P("x", None))],
    ids=["automatic, columns", "explicit, columns", "explicit, rows"],
)
def test_sharded_parameters_keep_types_and_the_state_is_replicated(mode, spec):
    params = dense_params(depth=1, rows=16, columns=24)
    tx = spectral_norm_regularization(0.1)
    expected, _ = tx.update(ones_like(params), tx.init(params), params)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    with jax.set_mesh(mesh):
        put = lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P()))
        own, gradients = jax.tree.map(put, params), jax.tree.map(put, ones_like(params))
        state, update = tx.init(own), jax.jit(tx.update)
        updates, new = update(gradients, state, own)
        compilations = update._cache_size()
        update(gradients, new, own)
        assert update._cache_size() == compilations
        types = lambda tree: jax.tree.map(jax.typeof, tree)
        assert types(new) == types(state) and types(updates) == types(own)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(new))
    chex.assert_trees_all_close(jax.device_get(updates), jax.device_get(expected), rtol=1e-4, atol=1e-5)


def test_update_needs_params_and_those_of_init():
    tx = spectral_norm_regularization(0.1)
    with pytest.raises(ValueError, match=r"spectral_norm_regularization: params=None.*tx\.update\(updates, state, params\)"):
        tx.update(PARAMS, tx.init(PARAMS))
    fewer = {"dense0": PARAMS["dense0"]}
    with pytest.raises(ValueError, match=r"state has the layers .*dense1.*call init with the same parameters"):
        tx.update(fewer, tx.init(PARAMS), fewer)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(coefficient=-0.1), ValueError, "coefficient=-0.1 must be finite and at least 0"),
        (dict(coefficient=jnp.nan), ValueError, "coefficient=nan must be finite"),
        (dict(coefficient="0.1"), TypeError, "coefficient='0.1' is not a number"),
        (
            dict(coefficient=optax.constant_schedule(0.1)),
            TypeError,
            "inject_hyperparams.spectral_norm_regularization, static",
        ),
        (dict(power_iterations=0), ValueError, "power_iterations=0 must be at least 1"),
        (dict(power_iterations=1.5), TypeError, "power_iterations=1.5 must be a whole number"),
        (dict(seed=jnp.array(0)), TypeError, r"seed=Array.* static_args=\('power_iterations', 'layers', 'seed'\)"),
    ],
)
def test_bad_arguments_are_refused_by_name_value_and_way_out(arguments, error, message):
    with pytest.raises(error, match=message):
        spectral_norm_regularization(**(dict(coefficient=0.1) | arguments))


def test_nothing_to_regularize_is_an_error_that_says_why():
    with pytest.raises(ValueError, match=r"no layers to regularize.*embed/embedding .an embedding"):
        spectral_norm_regularization(0.1).init({"embed": {"embedding": normal(9, 8)}})
