"""A solver's memory is bounded, its approximation is near, and its errors name what is wrong."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import equations

import tb_optax
from tb_optax import Exact, Lanczos


def kernels(sizes, seed=0, power=1.0):
    """Dense kernels with tails of different weight."""
    rng = np.random.default_rng(seed)
    params = {}
    for i, (rows, columns) in enumerate(sizes):
        normal = rng.standard_normal((rows, columns)).astype(np.float32)
        left, _, right = np.linalg.svd(normal, full_matrices=False)
        fall = np.arange(1, min(rows, columns) + 1) ** -(power + 0.1 * i)
        params[f"dense{i}"] = {"kernel": jnp.asarray((left * fall) @ right, jnp.float32)}
    return params


def temporary_bytes(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_cut_stacks_give_the_same_spectra():
    params = kernels([(24, 24), (24, 40), (24, 24), (60, 24)])
    whole = tb_optax.spectra(params)
    for limit in (1, 30_000):
        cut = tb_optax.spectra(params, solver=Exact(max_bytes=limit))
        for name in whole:
            np.testing.assert_array_equal(whole[name], cut[name])


@pytest.mark.parametrize(
    "metric", [tb_optax.metrics.pl_alpha_hill, lambda eigenvalues: eigenvalues[:, -1]], ids=["gram", "singular"]
)
def test_memory_of_a_refresh_is_set_by_the_limit(metric):
    """Twelve scanned layers in bfloat16: neither their float32 copies nor their Gram products are ever all there."""
    kernel = jax.ShapeDtypeStruct((12, 256, 704), jnp.bfloat16)
    layer = tb_optax.Layer("layers", "kernel", layer_axes=(0,))
    one = 4 * (256 * 704 + 2 * 256 * 256)

    def temporary(limit):
        tx = tb_optax.tempbalance(1, layers=[layer], metric=metric, solver=Exact(max_bytes=limit))
        state = jax.eval_shape(tx.init, {"kernel": kernel})
        return temporary_bytes(lambda state, params: tx.update(params, state, params)[1], state, {"kernel": kernel})

    cut, whole = temporary(2 * one), temporary(12 * one)
    assert cut < 4 * one + kernel.size * 2  # At most the kernel itself once more, turned around.
    assert whole > 2 * cut


def test_a_large_projection_is_solved_in_the_memory_of_one_matrix():
    """4,096 x 11,008, three of them: a limit below one matrix's need solves them one by one."""
    params = {f"dense{i}": {"kernel": jax.ShapeDtypeStruct((4096, 11008), jnp.float32)} for i in range(3)}
    one = 4 * (4096 * 11008 + 2 * 4096 * 4096)
    assert temporary_bytes(functools.partial(tb_optax.spectra, solver=Exact(max_bytes=1)), params) < 2 * one


def test_approximation_is_near_and_only_for_large_matrices():
    params = kernels([(300, 400), (300, 300), (64, 300)])
    exact, near = tb_optax.spectra(params), tb_optax.spectra(params, solver=Lanczos(200))
    np.testing.assert_array_equal(exact["dense2"], near["dense2"])
    for name in ("dense0", "dense1"):
        assert near[name].shape == exact[name].shape
        assert abs(tb_optax.metrics.pl_alpha_hill(near[name]) / tb_optax.metrics.pl_alpha_hill(exact[name]) - 1) < 0.05
        np.testing.assert_allclose(near[name][-1], exact[name][-1], rtol=1e-3)


def test_approximation_in_training_is_the_one_of_spectra_and_forms_no_gram_product():
    params = kernels([(200, 300), (200, 250), (260, 200)])
    solver = Lanczos(200, steps=20, probes=2, seed=3)
    tx = tb_optax.tempbalance(1, solver=solver)
    state = tx.init(params)
    refresh = lambda state, params: tx.update(params, state, params)[1]
    metric = jax.jit(refresh)(state, params).metric
    for name, own in tb_optax.spectra(params, solver=solver).items():
        np.testing.assert_allclose(metric[name], tb_optax.metrics.pl_alpha_hill(own), rtol=1e-5)
    outputs = [
        value.aval.shape for each in equations(jax.make_jaxpr(refresh)(state, params).jaxpr) for value in each.outvars
    ]
    assert not [shape for shape in outputs if shape[-2:] == (200, 200)]


def test_seed_decides():
    params = kernels([(200, 300)])
    spectrum = lambda seed: tb_optax.spectra(params, solver=Lanczos(100, probes=1, seed=seed))["dense0"]
    np.testing.assert_array_equal(spectrum(1), spectrum(1))
    assert not np.array_equal(spectrum(1), spectrum(2))


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    [
        (Exact, {"max_bytes": 0}, ValueError, "Exact: max_bytes=0 must be at least 1"),
        (Exact, {"max_bytes": 1.5}, TypeError, "Exact: max_bytes=1.5 must be a whole number"),
        (Exact, {"method": "qr"}, ValueError, "Exact: method='qr' is unknown; give one of 'auto', 'gram', 'svd'"),
        (Exact, {"limit_blas_threads": 1}, TypeError, "Exact: limit_blas_threads=1 must be True or False"),
        (Lanczos, {"min_size": 1}, ValueError, "Lanczos: min_size=1 must be at least 2"),
        (Lanczos, {"steps": 1.5}, TypeError, "Lanczos: steps=1.5 must be a whole number"),
        (Lanczos, {"probes": 0}, ValueError, "Lanczos: probes=0 must be at least 1"),
        (Lanczos, {"seed": "a"}, TypeError, "Lanczos: seed='a' must be a whole number"),
        (Lanczos, {"seed": -1}, ValueError, "Lanczos: seed=-1 must be at least 0"),
        (Lanczos, {"below": 3}, TypeError, "Lanczos: below=3 must be a tb_optax.Exact"),
    ],
)
def test_an_invalid_option_is_an_error(options, arguments, error, message):
    with pytest.raises(error, match=message):
        options(**arguments)


def test_another_type_of_solver_is_an_error():
    with pytest.raises(TypeError, match=r"tempbalance: solver=2 must be a tb_optax.Exact or tb_optax.Lanczos"):
        tb_optax.tempbalance(1, solver=2)
    with pytest.raises(TypeError, match=r"spectra: solver='fast' must be a tb_optax.Exact or tb_optax.Lanczos"):
        tb_optax.spectra({}, solver="fast")


@pytest.mark.parametrize(("method", "routine"), [("gram", "syevd"), ("svd", "gesdd")])
def test_the_method_decides_the_routine_whatever_the_metric(method, routine):
    params = {f"dense{i}": {"kernel": jax.ShapeDtypeStruct((60, 90), jnp.float32)} for i in range(2)}
    for metric in (tb_optax.metrics.pl_alpha_hill, lambda eigenvalues: eigenvalues[:, -1]):
        tx = tb_optax.tempbalance(1, metric=metric, solver=Exact(method=method))
        text = jax.jit(tx.update).lower(params, jax.eval_shape(tx.init, params), params).as_text()
        assert set(re.findall("syevd|gesdd", text)) == {routine}


@pytest.mark.parametrize("fit", [tb_optax.fits.goodness_of_fit, tb_optax.fits.fix_finger])
def test_fits_of_single_eigenvalues_are_refused_on_approximate_spectra(fit):
    metric = functools.partial(tb_optax.metrics.pl_alpha_hill, fit=jax.jit(fit))
    with pytest.raises(ValueError, match=rf"tempbalance: solver=Lanczos.* is too inexact for tb_optax.fits.{fit.__name__}"):
        tb_optax.tempbalance(1, metric=metric, solver=Lanczos())
    with pytest.raises(ValueError, match=r"report: solver=Lanczos.* is too inexact"):
        tb_optax.report({"a": jnp.ones((60, 60))}, fits=(tb_optax.fits.median, fit), solver=Lanczos())


@pytest.mark.slow
@pytest.mark.parametrize("spikes", [0, 16, 32, 64])
def test_alpha_is_within_two_percent_where_a_weight_has_learned_directions(spikes):
    random = np.random.default_rng(7)
    weight = random.standard_normal((1024, 1024)) / 32
    if spikes:
        left, right = (np.linalg.qr(random.standard_normal((1024, spikes)))[0] for _ in range(2))
        weight += (left * np.linspace(3, 12, spikes)) @ right.T
    params = {"a": jnp.asarray(weight, jnp.float32)}
    alpha = [float(tb_optax.metrics.pl_alpha_hill(tb_optax.spectra(params, solver=s)["a"])) for s in (Exact(), Lanczos(512))]
    assert alpha[1] == pytest.approx(alpha[0], rel=0.02)
