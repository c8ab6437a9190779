"""The fits are the formulas of the paper and the released code, on any spectrum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny import numpy_alpha

import tb_optax
from tb_optax import fits

FITS = [fits.median, fits.goodness_of_fit, fits.fix_finger]
N = 60

every_fit = pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
# Eigenvalues over ten orders of magnitude, no two of them nearer than 1%.
spectra = hnp.arrays(np.int32, N, elements=st.integers(-1200, 1200), unique=True).map(
    lambda whole: np.exp(np.sort(whole) / 100).astype(np.float32)
)


def numpy_distance(eigenvalues: np.ndarray, index: int) -> float:
    """Kolmogorov-Smirnov distance between a tail and its fit, as DESIGN's formula has it: one loop over the tail."""
    alpha, count = numpy_alpha(eigenvalues, index), len(eigenvalues) - index
    gaps = [
        abs(1 - (eigenvalues[j] / eigenvalues[index]) ** (1 - alpha) - (j - index) / count)
        for j in range(index, len(eigenvalues))
    ]
    return max(gaps)


def numpy_candidates(eigenvalues: np.ndarray, fit) -> list[int]:
    n = len(eigenvalues)
    if fit is fits.median:
        return [n // 2]
    if fit is fits.goodness_of_fit:
        return list(range(n - 1))
    counts, edges = np.histogram(np.log10(eigenvalues), bins=100)
    edge = 10 ** edges[counts.argmax()]
    return [i for i in range(n - 1) if np.log10(0.95 * edge) <= eigenvalues[i] <= 1.5 * edge]


def on_an_edge(eigenvalues: np.ndarray) -> bool:
    """Whether rounding may put an eigenvalue into one bin of fix-finger's histogram or into the next."""
    logs = np.log10(eigenvalues.astype(np.float64))
    bins = 100 * (logs - logs[0]) / (logs[-1] - logs[0])
    return bool((np.abs(bins - np.round(bins))[1:-1] < 1e-3).any())


@pytest.mark.parametrize("seed", [1, 4, 8])
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_equal_eigenvalues_each_have_their_own_place(seed):
    """As in WeightWatcher's fit: a tail may begin in the middle of them. `powerlaw` takes equal values as one."""
    eigenvalues = np.sort(np.random.default_rng(seed).zipf(2.2, 150)).astype(np.float64)
    ours = fits.goodness_of_fit(jnp.asarray(eigenvalues, jnp.float32))
    distances = np.nan_to_num([numpy_distance(eigenvalues, index) for index in range(len(eigenvalues) - 1)], nan=1.0)
    index = int(np.argmin(distances))
    np.testing.assert_allclose(ours.alpha, numpy_alpha(eigenvalues, index), rtol=1e-4)
    np.testing.assert_allclose(ours.xmin, eigenvalues[index], rtol=1e-6)
    assert eigenvalues[index] in eigenvalues[:index], "the best tail leaves some of the equal values out"


@every_fit
@given(eigenvalues=spectra)
def test_fit_is_the_formula(fit, eigenvalues):
    assume(fit is not fits.fix_finger or not on_an_edge(eigenvalues))
    ours = fit(eigenvalues)
    eigenvalues = eigenvalues.astype(np.float64)
    distances = {index: numpy_distance(eigenvalues, index) for index in numpy_candidates(eigenvalues, fit)}
    if not distances:  # The peak is the largest eigenvalue.
        assert np.isnan(ours.alpha)
        return
    index = int(np.argmin(np.abs(eigenvalues - float(ours.xmin))))
    # Two thresholds can be as good as each other: then either will do, if it is as good as the best.
    assert index in distances
    np.testing.assert_allclose(distances[index], min(distances.values()), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.ks_distance, distances[index], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.alpha, numpy_alpha(eigenvalues, index), rtol=1e-3)


@given(eigenvalues=spectra, percent=st.integers(5, 100))
def test_median_takes_any_share_of_the_spectrum_for_its_tail(eigenvalues, percent):
    index = N * (100 - percent) // 100
    alpha = fits.median(eigenvalues, tail_fraction=percent / 100).alpha
    np.testing.assert_allclose(alpha, numpy_alpha(eigenvalues, index), rtol=1e-3)


@pytest.mark.parametrize(
    ("n", "tail_fraction", "index"),
    [(100, 0.9, 10), (10, 0.9, 1), (10, 0.7, 3), (1000, 0.001, 998), (60, 1, 0), (7, 0.5, 3)],
)
def test_the_tail_starts_where_whole_numbers_have_it(n, tail_fraction, index):
    """1 - 0.9 is a little less than 0.1 in floating point."""
    eigenvalues = np.arange(1.0, n + 1)
    assert fits.median(eigenvalues, tail_fraction=tail_fraction).xmin == eigenvalues[index]


@pytest.mark.parametrize("fit", FITS[:2], ids=lambda fit: fit.__name__)
@given(eigenvalues=spectra, exponent=st.integers(-60, 60))
def test_alpha_does_not_depend_on_scale(fit, eigenvalues, exponent):
    """fix_finger's does: its lower bound compares a logarithm with an eigenvalue."""
    scaled = jnp.asarray(eigenvalues) * 2.0**exponent
    np.testing.assert_allclose(fit(scaled).alpha, fit(eigenvalues).alpha, rtol=1e-3)


@every_fit
@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 4.5])
def test_known_exponent_is_recovered(fit, alpha):
    """The k-th greatest eigenvalue of a spectrum with density λ^-alpha falls as k^-s, s = 1 / (alpha - 1) (Figure 10)."""
    ranks = np.arange(1000, 0, -1.0)
    assert float(fit(ranks ** (-1 / (alpha - 1))).alpha) == pytest.approx(alpha, rel=0.02)


@every_fit
def test_batch_is_one_at_a_time(fit):
    batch = np.sort(np.random.default_rng(0).lognormal(size=(2, 3, N)).astype(np.float32))
    together = fit(batch)
    assert all(leaf.shape == (2, 3) for leaf in together)
    alone = [fit(row) for row in batch.reshape(6, N)]
    for name in together._fields:
        np.testing.assert_allclose(getattr(together, name).ravel(), [getattr(one, name) for one in alone], rtol=1e-5)


@every_fit
@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.zeros(N),
        np.ones(N),
        np.full(N, np.nan),
        [*np.ones(N - 1), np.nan],
        [*np.ones(N - 1), np.inf],
        [*np.zeros(N - 1), 1],
    ],
    ids=["zeros", "equal", "nan", "one nan", "one inf", "rank one"],
)
def test_spectrum_without_a_tail_has_no_alpha(fit, eigenvalues):
    assert np.isnan(fit(np.asarray(eigenvalues, np.float32)).alpha)


@every_fit
def test_zeros_of_a_low_rank_take_no_part_in_the_tail(fit):
    """A spectrum with zeros below is fitted as the spectrum without them, but for the median, whose middle moves."""
    eigenvalues = np.sort(np.random.default_rng(1).lognormal(size=N))
    padded = np.concatenate([np.zeros(N // 2), eigenvalues])
    expected = numpy_alpha(eigenvalues, len(padded) // 2 - N // 2) if fit is fits.median else fit(eigenvalues).alpha
    np.testing.assert_allclose(fit(padded).alpha, expected, rtol=1e-4)


@every_fit
@pytest.mark.parametrize("n", [2, 3, 129, 257])
def test_any_length_from_two_is_fitted(fit, n):
    """Also where thresholds are tried in blocks that do not divide the length."""
    eigenvalues = np.arange(n, 0, -1, np.float32) ** -1
    result = fit(eigenvalues)
    assert result.alpha > 1 and 0 <= result.ks_distance <= 1 and result.xmin in eigenvalues


@every_fit
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_fit_is_in_float32_at_least(fit, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        alpha = fit(jnp.arange(1.0, 9.0, dtype=dtype)).alpha
    assert alpha.dtype == jnp.promote_types(dtype, jnp.float32)


@every_fit
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_with_x64_results_are_still_of_the_eigenvalues_precision(fit, dtype):
    eigenvalues = np.sort(np.random.default_rng(2).lognormal(size=N)).astype(dtype)
    expected = fit(jnp.asarray(eigenvalues))
    with jax.enable_x64(True):
        found = fit(jnp.asarray(eigenvalues))
    for name, value in found._asdict().items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-5)


def test_double_precision_is_double():
    with jax.enable_x64(True):
        eigenvalues = np.sort(np.random.default_rng(2).lognormal(size=N))
        np.testing.assert_allclose(fits.median(jnp.asarray(eigenvalues)).alpha, numpy_alpha(eigenvalues), rtol=1e-13)


def test_goodness_of_fit_needs_memory_for_a_block_of_thresholds_only():
    """All pairs of 4096 eigenvalues would take 64 MiB."""
    compiled = jax.jit(fits.goodness_of_fit).lower(jax.ShapeDtypeStruct((4096,), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 2**20


@every_fit
@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (3, 0)])
def test_fewer_than_two_eigenvalues_are_an_error(fit, shape):
    with pytest.raises(ValueError, match="at least two"):
        fit(np.ones(shape))


@pytest.mark.parametrize("tail_fraction", [0.0, -0.1, 1.1, float("nan")])
def test_share_out_of_range_is_an_error(tail_fraction):
    with pytest.raises(ValueError, match=f"tail_fraction={tail_fraction}"):
        fits.median(np.ones(4), tail_fraction=tail_fraction)
    with pytest.raises(ValueError, match=f"tail_fraction={tail_fraction}"):
        fits.fit_spectra(functools.partial(fits.median, tail_fraction=tail_fraction), [np.ones(4)])


def test_metrics_follow_their_formulas():
    eigenvalues = np.sort(np.random.default_rng(3).lognormal(size=N))
    alpha = numpy_alpha(eigenvalues)
    np.testing.assert_allclose(tb_optax.metrics.pl_alpha_hill(eigenvalues), alpha, rtol=1e-5)
    np.testing.assert_allclose(tb_optax.metrics.alpha_weighted(eigenvalues), alpha * np.log10(eigenvalues[-1]), rtol=1e-5)
    np.testing.assert_allclose(tb_optax.metrics.spectral_norm(eigenvalues), eigenvalues[-1], rtol=1e-6)
    other = functools.partial(fits.median, tail_fraction=0.25)
    np.testing.assert_allclose(
        tb_optax.metrics.pl_alpha_hill(eigenvalues, fit=other), numpy_alpha(eigenvalues, N * 3 // 4), rtol=1e-5
    )


FITS = [fits.median, fits.goodness_of_fit, fits.fix_finger]
ANY_ORDER = np.random.default_rng(5).permutation(np.exp(np.random.default_rng(4).standard_normal(60)) * 10)


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
@pytest.mark.parametrize("given", ["reversed", "any order", "list", "integers", "a stack"])
def test_input_in_any_order_and_type_is_sorted_and_converted(fit, given):
    ascending = np.sort(ANY_ORDER)
    values = {
        "reversed": ascending[::-1].copy(),
        "any order": jnp.asarray(ANY_ORDER),
        "list": ANY_ORDER.tolist(),
        "integers": ANY_ORDER.astype(int),
        "a stack": np.stack([ascending, ANY_ORDER]),
    }[given]
    expected = fit(jnp.asarray(np.sort(np.asarray(values), axis=-1), jnp.float32))
    np.testing.assert_allclose(fit(values).alpha, expected.alpha, rtol=1e-6)
    assert float(jnp.max(tb_optax.metrics.spectral_norm(values))) == pytest.approx(
        float(np.max(np.asarray(values))), rel=1e-6
    )
    np.testing.assert_allclose(jax.jit(lambda: fit(values).alpha)(), expected.alpha, rtol=1e-6)  # known, and in a trace


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"dense": np.ones(9)}, TypeError, r"eigenvalues is a dict with the keys \['dense'\]; give one of its arrays"),
        (np.ones(9, np.complex64), TypeError, "eigenvalues of dtype complex64: give real numbers"),
        ([1.0], ValueError, r"eigenvalues of shape \(1,\): give at least two"),
    ],
)
def test_what_is_no_spectrum_is_an_error(given, error, says):
    metrics = tb_optax.metrics
    for function in (*FITS, metrics.pl_alpha_hill, metrics.alpha_weighted, metrics.spectral_norm):
        with pytest.raises(error, match=says):
            function(given)


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
@pytest.mark.parametrize("place", [0, 5, 30, 59])
def test_a_nan_anywhere_gives_nan(fit, place):
    values = np.sort(ANY_ORDER)
    values[place] = np.nan
    assert all(np.isnan(number) for number in fit(values))
    assert all(np.isnan(number) for number in jax.jit(fit)(values))


def least_distance(values, index):
    tail = values[index:]
    alpha = numpy_alpha(values, index)
    return np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-4, 1.0, 1e30])
def test_a_narrow_spectrum_keeps_its_digits_at_every_scale(scale):
    narrow = (np.sort(1 + 1e-3 * np.random.default_rng(1).random(100)) * scale).astype(np.float32)
    exact = narrow.astype(np.float64)
    assert float(fits.median(narrow).alpha) == pytest.approx(numpy_alpha(exact), rel=5e-4)
    best = min((least_distance(exact, index), index) for index in range(99))[1]
    assert float(fits.goodness_of_fit(narrow).alpha) == pytest.approx(numpy_alpha(exact, best), rel=2e-3)


@pytest.mark.slow
def test_an_exact_power_law_of_half_a_million_values_finishes():
    ranks = 1 - (np.arange(500_000) + 0.5) / 500_000
    fit = fits.goodness_of_fit(jnp.asarray(ranks ** (-1 / 1.5), jnp.float32))
    assert float(fit.alpha) == pytest.approx(2.5, abs=1e-4) and float(fit.ks_distance) < 1e-5


def test_a_long_spectrum_has_the_fit_of_the_shorter_search():
    """The two searches are exact, so one of each length agrees with a plain one in float64."""
    values = np.sort(np.random.default_rng(3).lognormal(sigma=2, size=9000)).astype(np.float32)
    fit = fits.goodness_of_fit(values)
    index = int(np.searchsorted(values, float(fit.xmin)))
    distance = least_distance(values.astype(np.float64), index)
    others = [least_distance(values.astype(np.float64), other) for other in range(0, 8990, 90)]
    assert float(fit.ks_distance) == pytest.approx(distance, abs=1e-4) and distance <= min(others) + 1e-4
