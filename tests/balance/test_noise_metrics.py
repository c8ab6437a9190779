"""Noise in closed form against simulated matrices, and metrics relative to it on networks of mixed shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tb_optax
from tb_optax import assignments, fits, metrics
from tb_optax._balance.noise import noise_alpha, noise_alpha_deviation
from tb_optax._spectra.noise import noise_edge, noise_spectrum

# Rows, columns, matrices that share a spectrum, repetitions.
SHAPES = [(64, 64, 1, 400), (128, 512, 1, 100), (32, 320, 1, 300), (64, 64, 9, 60), (48, 96, 4, 150)]


@functools.cache
def simulated(rows, columns, matrices, repetitions):
    weights = np.random.default_rng(0).standard_normal((repetitions, matrices, rows, columns))
    return np.sort((np.linalg.svd(weights, compute_uv=False) ** 2).reshape(repetitions, -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_alpha_of_noise_and_its_deviation_are_those_of_simulations(shape):
    logs = np.log(simulated(*shape))
    start = logs.shape[1] // 2
    alphas = 1 + 1 / (logs[:, start:] - logs[:, start : start + 1]).mean(axis=1)
    assert noise_alpha(*shape[:3]) == pytest.approx(alphas.mean(), rel=0.01)
    assert noise_alpha_deviation(*shape[:3]) == pytest.approx(alphas.std(), rel=0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_eigenvalue_of_noise_is_seldom_beyond_the_edge(shape):
    spectra = simulated(*shape)
    largest = spectra[:, -1] / spectra.mean(axis=1)
    assert np.mean(largest > noise_edge(*shape[:3])) < 0.03
    assert noise_edge(*shape[:3]) < 1.08 * np.quantile(largest, 0.95), "nor is the edge farther out than it must be"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_spectral_norm_of_noise_is_within_six_percent(shape):
    weights = simulated(*shape)
    metric = metrics.relative_to_noise(metrics.spectral_norm)
    noise = jnp.asarray(noise_spectrum(*shape[:2], weights.shape[1]), jnp.float32)
    assert float(metric(jnp.asarray(weights, jnp.float32), noise).mean()) == pytest.approx(1, abs=0.06)


MIXED = [(256, 256), (256, 1024), (1024, 256), (128, 1280), (3, 3, 64, 128), (128, 512)]


def network(learned=None):
    """An untrained network of mixed shapes, of which one layer may have learned: its singular values fall like a power."""
    params = {}
    for number, shape in enumerate(MIXED):
        weight = np.random.default_rng(number).standard_normal(shape)
        if number == learned:
            left, values, right = np.linalg.svd(weight, full_matrices=False)
            falling = np.arange(1, values.shape[-1] + 1) ** -0.7
            weight = (left * falling) @ right
        params[f"dense{number}"] = {"kernel": jnp.asarray(weight, jnp.float32)}
    return params


def scales(params, **options):
    tb = tb_optax.tempbalance(None, **options)
    return [float(number) for number in tb.refresh(tb.init(params), params).scale.values()]


RELATIVE = metrics.relative_to_noise(metrics.pl_alpha_hill)


@pytest.mark.parametrize("assign", [assignments.sqrt, assignments.sigmoid])
def test_scales_of_an_untrained_network_are_level_whatever_its_shapes(assign):
    assert np.ptp(scales(network())) == 1.0, "without the correction, shapes alone spread them over the whole range"
    np.testing.assert_allclose(scales(network(), metric=RELATIVE, assign=assign), 1, atol=0.02)


@pytest.mark.parametrize("learned", range(len(MIXED)))
def test_a_layer_that_has_learned_stands_out_whatever_its_shape(learned):
    found = scales(network(learned), metric=RELATIVE, assign=assignments.sqrt)
    others = found[:learned] + found[learned + 1 :]
    assert found[learned] < 0.92 * min(others)
    assert np.ptp(others) < 0.05


def test_windows_are_noise_of_their_own_shape():
    params = {
        f"dense{number}": {"kernel": jax.random.normal(jax.random.key(number), (200, 400 + 100 * number))}
        for number in range(5)
    }
    found = scales(params, metric=RELATIVE, assign=assignments.sqrt, windows=tb_optax.Windows(size=50, grid=3))
    np.testing.assert_allclose(found, 1, atol=0.02)


def test_a_jitted_metric_has_its_own_tail():
    fit = functools.partial(fits.median, tail_fraction=0.2)
    plain = functools.partial(metrics.pl_alpha_hill, fit=fit)
    params = {f"dense{i}": {"kernel": jax.random.normal(jax.random.key(i), (64, 64 + 32 * i))} for i in range(5)}
    options = dict(assign=assignments.sqrt)
    expected = scales(params, metric=metrics.relative_to_noise(plain), **options)
    for metric in (jax.jit(plain), functools.partial(metrics.pl_alpha_hill, fit=jax.jit(fit))):
        np.testing.assert_allclose(scales(params, metric=metrics.relative_to_noise(metric), **options), expected, rtol=1e-5)


@pytest.mark.parametrize("assign", [assignments.linear, assignments.step, functools.partial(assignments.linear)])
def test_an_assignment_that_stretches_chance_warns(assign):
    with pytest.warns(UserWarning, match="metric is relative to noise, and assign=(linear|step) stretches"):
        tb_optax.tempbalance(1, metric=RELATIVE, assign=assign)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.alpha_weighted,
        functools.partial(metrics.pl_alpha_hill, fit=fits.goodness_of_fit),
        functools.partial(metrics.pl_alpha_hill, fit=fits.fix_finger),
        fits.median,
        lambda eigenvalues: eigenvalues[..., -1],
        RELATIVE,
        "alpha",
    ],
)
def test_a_metric_that_is_not_known_for_noise_is_refused(metric):
    with pytest.raises(ValueError, match=r"relative_to_noise: metric=.* is not known for noise"):
        metrics.relative_to_noise(metric)


def test_a_metric_relative_to_noise_adds_no_eigenvalue_problem():
    params = network()
    counts = []
    for options in ({}, dict(metric=RELATIVE, assign=assignments.sqrt), dict(metric=jax.jit(metrics.noise_of_shape))):
        tb = tb_optax.tempbalance(1, **options)
        counts.append(jax.jit(tb.update).lower(params, tb.init(params), params).as_text().count("custom_call @lapack"))
    assert counts[0] == counts[1] > 0 and counts[2] == 0


def test_scales_by_shape_depend_on_the_aspect_ratio_alone():
    shapes = [(64, 64), (128, 128), (3, 3, 64, 64), (64, 256), (512, 128)]
    params = {f"dense{number}": {"kernel": jnp.ones(shape)} for number, shape in enumerate(shapes)}
    found = scales(params, metric=metrics.noise_of_shape)
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, 1.5, 1.5], rtol=1e-5)
