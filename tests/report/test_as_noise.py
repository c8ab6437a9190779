"""Layers against noise of their shape: random weights are marked, weights that have learned are not."""

import functools

import jax
import numpy as np
import pytest

import tb_optax
from tb_optax import fits
from tb_optax._report.noise import against_noise
from tb_optax._spectra.noise import noise_largest

SHAPES = [(50, 50), (64, 256), (320, 64), (3, 3, 32, 64), (2, 64, 64)]


def _records(weight):
    """Of one weight for each place of the first axis."""
    leading = {f"layer{number}": {"kernel": each, "bias": np.zeros(each.shape[-1])} for number, each in enumerate(weight)}
    return tb_optax.report(leading).records


def _noise(shape, count=100, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def _hill(values):
    tail = np.log(values[len(values) // 2 :])
    return 1 + 1 / (tail - tail[0]).mean()


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_of_a_hundred_random_weights_at_least_95_are_marked(shape):
    records = _records(_noise(shape))
    marks = [record.mark for record in records]
    assert marks.count("as noise") >= 95
    assert "poor fit" not in marks, "a random weight has no power law, but nobody should take it for a strange one"
    assert np.median([record.noise.stable_rank_ratio for record in records]) == pytest.approx(1, abs=0.03)


def test_size_and_distribution_of_the_entries_do_not_matter():
    random = np.random.default_rng(1)
    entries = random.uniform(-0.01, 0.01, (20, 64, 128)), np.sign(random.standard_normal((20, 64, 128)))
    marks = [record.mark for each in entries for record in _records(each.astype(np.float32))]
    assert marks.count("as noise") >= 37


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_a_spike_is_no_noise(shape):
    """A rank-one matrix whose singular value is twice the largest of the noise: one eigenvalue is beyond the edge."""
    weights = _noise(shape, 10)
    random = np.random.default_rng(2)
    rows, columns = shape[-2:]
    left, right = random.standard_normal((10, rows)), random.standard_normal((10, columns))
    left, right = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (left, right))
    spike = 2 * (np.sqrt(rows) + np.sqrt(columns)) * left[:, :, None] * right[:, None, :]
    weights.reshape(10, -1, rows, columns)[:, 0] += spike
    records = _records(weights)
    assert [record.mark for record in records] == [""] * 10
    assert {record.row()["beyond_noise"] for record in records} == {1}
    assert all(record.noise.stable_rank_ratio < 0.5 for record in records)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256)])
def test_heavy_tails_and_equal_singular_values_are_no_noise(shape):
    left, values, right = np.linalg.svd(_noise(shape, 10), full_matrices=False)
    falling = (left * (np.arange(1, values.shape[-1] + 1) ** -0.5)) @ right
    for weights in (falling, left @ right):
        assert all(record.mark != "as noise" for record in _records(weights.astype(np.float32)))


def test_the_closed_form_is_that_of_shuffled_copies():
    """Shuffling keeps the entries of a weight and destroys what it has learned."""
    random = np.random.default_rng(3)
    weight = random.standard_normal((64, 160)) @ random.standard_normal((160, 160)) + 3
    shuffled = np.stack([random.permutation(weight.ravel()).reshape(64, 160) for _ in range(40)])
    shuffled -= weight.mean()  # A mean is itself a direction, and stays in a shuffled copy.
    spectra = np.linalg.svd(shuffled, compute_uv=False)[:, ::-1] ** 2
    alphas = [_hill(values) for values in spectra]
    ranks = [values.sum() / values[-1] for values in spectra]
    (record,) = _records(weight[None].astype(np.float32))
    assert record.noise.alpha == pytest.approx(np.mean(alphas), rel=0.02)
    assert record.noise.deviations == pytest.approx((record.alpha - np.mean(alphas)) / np.std(alphas), rel=0.3)
    assert record.noise.stable_rank_ratio == pytest.approx(record.stable_rank / np.median(ranks), rel=0.03)
    assert record.noise.deviations < -5 and record.noise.beyond >= 2


@pytest.mark.parametrize("shape", [(64, 64, 1), (48, 480, 1), (40, 80, 6)])
def test_the_median_of_the_largest_eigenvalue_is_that_of_simulations(shape):
    rows, columns, matrices = shape
    values = np.linalg.svd(np.random.default_rng(0).standard_normal((200, matrices, rows, columns)), compute_uv=False) ** 2
    assert noise_largest(*shape) == pytest.approx(np.median(values.max(axis=(1, 2)) / columns), rel=0.02)


def test_the_standard_error_is_that_of_independent_numbers():
    random = np.random.default_rng(4)
    spectra = np.sort(1 + random.pareto(1.5, (400, 100)))
    alphas = fits.median(spectra, tail_fraction=1.0).alpha
    assert np.std(alphas) == pytest.approx(1.5 / np.sqrt(100), rel=0.15)
    (record,) = _records(_noise((64, 64), 1))
    assert record.standard_error == pytest.approx((record.alpha - 1) / np.sqrt(32))


@pytest.mark.parametrize(
    ("options", "missing", "reason"),
    [
        (dict(fits=(fits.goodness_of_fit, fits.median)), 2, "median fit only"),
        (dict(fits=(functools.partial(fits.median, tail_fraction=0.2),)), 2, "median fit only"),
        (dict(solver=tb_optax.Lanczos(64)), 2, "the spectrum is approximate"),
        (dict(windows=tb_optax.Windows(60)), 4, "windows overlap"),
    ],
)
def test_what_cannot_be_said_is_empty_and_has_its_reason(options, missing, reason):
    kernel = jax.random.normal(jax.random.key(0), (80, 120))
    (record,) = tb_optax.report({"dense": {"kernel": kernel}}, **options).records
    row = record.row()
    names = ("noise", "noise_deviations", "beyond_noise", "stable_rank_over_noise")
    assert [np.isnan(row[name]) for name in names] == [place < missing for place in range(4)]
    assert {name for name in names if reason in record.reasons.get(name, "")} == set(names[:missing])
    assert record.mark == ""


def test_a_spectrum_of_zeros_is_compared_with_nothing():
    assert np.isnan(against_noise(np.zeros(64, np.float32), np.nan, (64, 64)).stable_rank_ratio)


def test_every_dash_has_its_reason_and_numbers_that_cannot_be_squared_are_finite():
    noise = _noise((64, 64), 1)[0]
    params = {
        "zero": np.zeros((64, 64)),
        "large": 1e30 * noise,
        "small": 1e-30 * noise,
        "broken": np.where(noise > 3, np.nan, noise),
        "orthogonal": np.eye(64),
        "low": noise[:, :20] @ noise[:20],
    }
    report = tb_optax.report({name: {"kernel": each.astype(np.float32)} for name, each in params.items()})
    reasons = {record.layer: record.reasons["alpha"] for record in report.records}
    assert reasons == {
        "zero": "all eigenvalues are zero",
        "large": "the weight is too large to be squared in float32",
        "small": "the weight is too small to be squared in float32",
        "broken": "the weight holds NaN or infinity",
        "orthogonal": "no tail has a spread: the eigenvalues are equal",
        "low": "only 20 of 64 eigenvalues are above zero: the rank is below the tail",
    }
    assert {record.mark for record in report.records} == {"no fit"}
    assert [record.layer for record in report.records if not record.is_finite] == ["broken"]
    assert all(record.noise.missing for record in report.records)


def test_fits_that_are_none_are_marked():
    random = np.random.default_rng(5)
    left, _, right = np.linalg.svd(_noise((128, 128), 1)[0])
    dead = np.sort(random.lognormal(0, 0.1, 128))[::-1] * np.where(np.arange(128) < 62, 1, 1e-4)
    two = np.where(np.arange(128) < 20, 100, 1) * random.lognormal(0, 0.05, 128)
    params = {
        name: {"kernel": (left * values @ right).astype(np.float32)} for name, values in dict(gap=dead, two=two).items()
    }
    report = tb_optax.report(params)
    assert [record.mark for record in report.records] == ["poor fit", "poor fit"]
    assert "lies in a gap" in report.record("gap").reasons["mark"] or "KS" in report.record("gap").reasons["mark"]
