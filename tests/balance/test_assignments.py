"""The assignments are the paper's formulas, and have the properties that they promise."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from tb_optax import assignments

ASSIGNMENTS = [
    assignments.linear,
    assignments.sqrt,
    assignments.log2,
    assignments.step,
    assignments.sigmoid,
]
L = 7

every_assignment = pytest.mark.parametrize("assign", ASSIGNMENTS, ids=lambda assign: assign.__name__)
scale_free = pytest.mark.parametrize(
    "assign",
    [assignments.linear, assignments.sqrt, assignments.step],
    ids=lambda assign: assign.__name__,
)
bounded = pytest.mark.parametrize("assign", [assignments.linear, assignments.step], ids=lambda assign: assign.__name__)
# Above 1, as alpha is, and apart by more than rounding.
metrics_of = lambda size: hnp.arrays(np.int32, size, elements=st.integers(1, 1000), unique=True).map(
    lambda whole: (1 + whole / 100).astype(np.float32)
)
metrics = metrics_of(L)


def formula(assign, m: np.ndarray, low: float, high: float) -> np.ndarray:
    m = m.astype(np.float64)
    if assign is assignments.linear:
        return low + (high - low) * (m - m.min()) / (m.max() - m.min())
    if assign is assignments.step:
        return low + (stats.rankdata(m) - 1) * (high - low) / (len(m) - 1)
    if assign is assignments.sigmoid:  # As TB_Sigmoid has it, with its two exponents in terms of the bounds.
        distance = m - m.mean()
        exponent = np.where(distance > 0, 2 * np.log10(high), -2 * np.log10(low))
        return 10 ** (exponent * (special.expit(distance) - 0.5))
    values = np.sqrt(m) if assign is assignments.sqrt else np.log(m)
    return values / values.mean()


@every_assignment
@given(m=metrics, bounds=st.tuples(st.floats(1e-3, 1), st.floats(1, 3)))
def test_assignment_is_the_formula(assign, m, bounds):
    np.testing.assert_allclose(assign(m, *bounds), formula(assign, m, *bounds), rtol=1e-4, atol=1e-6)


@scale_free
@given(m=metrics, exponent=st.integers(-20, 20))
def test_metrics_in_other_units_give_the_same_scales(assign, m, exponent):
    np.testing.assert_allclose(assign(m * 2.0**exponent), assign(m), rtol=1e-5)


def test_log2_is_not_scale_free():
    m = jnp.array([2.0, 4.0, 8.0])
    assert not np.allclose(assignments.log2(m), assignments.log2(3 * m), rtol=0.1)


@bounded
@given(m=metrics)
def test_the_whole_range_is_used_and_nothing_outside(assign, m):
    scales = assign(m, 0.25, 2.0)
    np.testing.assert_allclose([scales.min(), scales.max()], [0.25, 2.0], rtol=1e-6)
    np.testing.assert_array_equal([scales.argmin(), scales.argmax()], [m.argmin(), m.argmax()])


@every_assignment
@given(m=metrics)
def test_greater_metric_has_the_greater_scale(assign, m):
    assert np.all(np.diff(np.asarray(assign(m))[np.argsort(m)]) > 0)


@every_assignment
@given(m=metrics, order=st.permutations(range(L)))
def test_order_of_the_layers_does_not_matter(assign, m, order):
    order = np.array(order)
    np.testing.assert_allclose(assign(m[order]), np.asarray(assign(m))[order], rtol=1e-5)


@every_assignment
@pytest.mark.parametrize("metric", [0.5, 1.0, 3.7])
def test_equal_metrics_give_one(assign, metric):
    np.testing.assert_array_equal(assign(np.full(L, metric)), np.ones(L))


@every_assignment
@given(m=metrics, unusable=st.sets(st.integers(0, L), min_size=1, max_size=3).map(sorted))
def test_layers_with_nan_take_no_part(assign, m, unusable):
    """The others' scales are what they are without them."""
    with_nans = np.insert(m, unusable, np.nan)
    scales = np.asarray(assign(with_nans))
    np.testing.assert_array_equal(np.isnan(scales), np.isnan(with_nans))
    np.testing.assert_allclose(scales[~np.isnan(scales)], assign(m), rtol=1e-5)


@every_assignment
def test_nothing_but_nan_gives_nothing_but_nan(assign):
    assert np.isnan(assign(np.full(L, np.nan))).all()


@every_assignment
def test_the_only_layer_with_a_metric_has_one(assign):
    np.testing.assert_array_equal(assign(np.array([np.nan, 2.0, np.nan])), [np.nan, 1.0, np.nan])


def test_step_gives_equal_metrics_equal_scales():
    np.testing.assert_allclose(assignments.step(jnp.array([3.0, 2.0, 2.0, 1.0])), [1.5, 1.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("assign", "metric"),
    [(assignments.sqrt, -1.0), (assignments.log2, -1.0), (assignments.log2, 0.0)],
)
def test_metric_without_a_root_or_logarithm_takes_no_part(assign, metric):
    scales = assign(jnp.array([2.0, metric, 8.0]))
    np.testing.assert_allclose(scales, np.insert(np.asarray(assign(jnp.array([2.0, 8.0]))), 1, np.nan), rtol=1e-6)


def test_sigmoid_is_one_at_the_mean_and_reaches_the_bounds_with_its_temperature():
    m = jnp.array([1.0, 2.0, 3.0, 6.0])
    for temperature in (0.1, 1.0, 10.0):
        scales = assignments.sigmoid(m, 0.5, 3.0, temperature=temperature)
        distance = np.asarray(m) - 3.0
        exponent = np.where(distance > 0, 2 * np.log10(3.0), 2 * np.log10(2.0))
        np.testing.assert_allclose(scales, 10 ** (exponent * (special.expit(temperature * distance) - 0.5)), rtol=1e-5)
    np.testing.assert_allclose(assignments.sigmoid(m, 0.5, 3.0, temperature=1e6), [0.5, 0.5, 1.0, 3.0], rtol=1e-6)
