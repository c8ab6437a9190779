"""Sparsities are AlphaPruning's formula, their mean is the target, and no layer is pruned by more than all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tb_optax

metrics = hnp.arrays(np.float32, 6, elements=st.floats(1.5, 9, width=16), unique=True)
sizes = hnp.arrays(np.float32, 6, elements=st.integers(1, 1000))


@given(m=metrics, size=sizes, target=st.floats(0, 0.7))
def test_where_none_reaches_one_they_are_the_formula(m, size, target):
    ratios = 0.7 + 0.6 * (m - m.min()) / (m.max() - m.min())
    expected = target * size.sum() / (size * ratios).sum() * ratios
    found = tb_optax.sparsities(jnp.asarray(m), target, sizes=jnp.asarray(size))
    if expected.max() < 1:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@given(m=metrics, size=sizes, target=st.floats(0, 1), low=st.floats(0.01, 1))
def test_the_mean_over_all_parameters_is_the_target(m, size, target, low):
    found = np.asarray(tb_optax.sparsities(jnp.asarray(m), target, sizes=jnp.asarray(size), min_ratio=low, max_ratio=2.0))
    assert (found >= 0).all() and (found <= 1).all()
    assert np.average(found, weights=size) == pytest.approx(target, abs=2e-3)
    order = np.argsort(m)
    assert (np.diff(found[order]) >= -1e-6).all()  # The heavier the tail, the less.


def test_what_is_above_one_is_taken_from_the_others():
    # By the formula 0.4, 0.8 and 1.2 of 2.4; the last can only give 1, and the others 1.4, in the ratio of 1 to 2.
    found = tb_optax.sparsities(jnp.array([2.0, 3.0, 4.0]), 0.8, min_ratio=1.0, max_ratio=3.0)
    np.testing.assert_allclose(found, [1.4 / 3, 2.8 / 3, 1.0], rtol=1e-6)


def test_a_layer_without_a_metric_is_pruned_by_the_target_and_so_is_everything_where_metrics_are_equal():
    found = tb_optax.sparsities(jnp.array([2.0, jnp.nan, 4.0]), 0.5)
    np.testing.assert_allclose(found, [0.35, 0.5, 0.65], rtol=1e-6)
    for equal in ([2.0, 2.0], [jnp.nan, jnp.nan]):
        np.testing.assert_allclose(tb_optax.sparsities(jnp.array(equal), 0.5), 0.5, rtol=1e-6)


def test_it_can_be_compiled_with_a_target_that_is_not_known():
    found = jax.jit(tb_optax.sparsities)(jnp.array([2.0, 3.0, 4.0]), jnp.float32(0.5))
    np.testing.assert_allclose(found, tb_optax.sparsities(jnp.array([2.0, 3.0, 4.0]), 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target": 1.5}, "target=1.5"),
        ({"target": -0.1}, "target=-0.1"),
        ({"target": 0.5, "min_ratio": 0.0}, "min_ratio=0.0"),
        ({"target": 0.5, "min_ratio": 2.0}, "min_ratio=2.0"),
    ],
)
def test_what_is_out_of_range_is_named(settings, says):
    with pytest.raises(ValueError, match=says):
        tb_optax.sparsities(jnp.array([2.0, 3.0]), **settings)


def test_lists_and_integers_are_taken():
    expected = tb_optax.sparsities(jnp.array([2.0, 3.0, 4.0]), 0.5)
    np.testing.assert_allclose(tb_optax.sparsities([2, 3, 4], np.float32(0.5), sizes=[1, 1, 1]), expected)


def test_it_can_be_compiled_with_sizes_that_are_known():
    metrics, sizes = jnp.array([2.0, 3.0, 4.0]), jnp.array([1.0, 2.0, 3.0])
    expected = tb_optax.sparsities(metrics, 0.5, sizes=sizes)
    np.testing.assert_allclose(jax.jit(lambda m: tb_optax.sparsities(m, 0.5, sizes=sizes))(metrics), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("metrics", "target", "options", "says"),
    [
        ([2.0, 3.0], np.float32(3), {}, "sparsities: target=3.0 must be from 0 to 1"),
        ([2.0, 3.0], jnp.float32(2), {}, "sparsities: target=2.0 must be from 0 to 1"),
        ([2.0, 3.0], float("nan"), {}, "sparsities: target=nan must be from 0 to 1"),
        ([2.0, 3.0], 0.5, {"sizes": [1.0]}, r"sparsities: sizes has shape \(1,\); give one for each of the 2 metrics"),
        ([2.0, 3.0], 0.5, {"sizes": [1.0, -1.0]}, "sparsities: sizes has a negative number"),
        ([[2.0, 3.0]], 0.5, {}, r"sparsities: metrics has shape \(1, 2\); give one number for each layer"),
        ([], 0.5, {}, r"sparsities: metrics has shape \(0,\); give one number for each layer"),
    ],
)
def test_what_cannot_be_is_an_error(metrics, target, options, says):
    with pytest.raises(ValueError, match=says):
        tb_optax.sparsities(metrics, target, **options)
