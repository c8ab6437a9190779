"""The approximate spectrum is the exact one within its statistical error, from products with the weight alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import tb_optax
from tb_optax._spectra.lanczos import _quadratures, _signs, _tridiagonal, lanczos_spectrum

approximate = functools.partial(lanczos_spectrum, steps=32, probes=4, seed=0)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_eigenvalues(eigenvalues: np.ndarray, columns: int | None = None) -> np.ndarray:
    n = len(eigenvalues)
    left, right = np.linalg.qr(normal(n, n))[0], np.linalg.qr(normal(columns or n, n, seed=1))[0]
    return ((left * np.sqrt(eigenvalues)) @ right.T).astype(np.float32)


def power_law(n: int, alpha: float) -> np.ndarray:
    return np.arange(1.0, n + 1) ** (-1 / (alpha - 1))


def exact(matrix: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2)


def alpha(eigenvalues) -> float:
    return float(tb_optax.metrics.pl_alpha_hill(jnp.asarray(eigenvalues, jnp.float32)))


WEIGHTS = {
    "square": normal(512, 512),
    "wide": normal(512, 1024),
    "low rank in noise": normal(512, 512) + 0.3 * normal(512, 20, seed=1) @ normal(20, 512, seed=2),
    "product": normal(512, 512) @ normal(512, 512, seed=1) @ normal(512, 512, seed=2),
    "power law, alpha 1.7": with_eigenvalues(power_law(512, 1.7)),
    "power law, alpha 2": with_eigenvalues(power_law(512, 2.0)),
    "power law, alpha 4": with_eigenvalues(power_law(512, 4.0)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_alpha_is_the_exact_one_within_a_few_percent(name):
    expected = alpha(exact(WEIGHTS[name]))
    ours = [alpha(approximate(WEIGHTS[name][None], seed=seed)[0]) for seed in range(4)]
    assert np.mean(ours) == pytest.approx(expected, rel=0.04)
    np.testing.assert_allclose(ours, expected, rtol=0.12)


def test_few_steps_suffice_where_nodes_pooled_over_the_probes_are_far_off():
    """The weighted Hill estimator of all probes' nodes, one measure of steps, is off by 20% here."""
    eigenvalues = power_law(512, 2.0)
    ours = alpha(approximate(with_eigenvalues(eigenvalues)[None], steps=16, probes=16)[0])
    assert ours == pytest.approx(alpha(eigenvalues[::-1]), rel=0.04)


def test_error_falls_with_the_probes():
    matrix = WEIGHTS["square"][None]
    expected = alpha(exact(WEIGHTS["square"]))
    few, many = (
        [alpha(approximate(matrix, steps=16, probes=probes, seed=seed)[0]) / expected - 1 for seed in range(10)]
        for probes in (1, 16)
    )
    assert np.std(many) < np.std(few) / 2


def test_upper_quantiles_are_the_exact_ones():
    expected = exact(WEIGHTS["square"])
    ours = np.asarray(approximate(WEIGHTS["square"][None], steps=32, probes=16)[0])
    np.testing.assert_allclose(ours[256:], expected[256:], rtol=0.06)
    assert np.all(np.diff(ours) >= 0)


@pytest.mark.parametrize("name", ["low rank in noise", "product", "power law, alpha 1.7", "power law, alpha 4"])
def test_largest_is_the_spectral_norm(name):
    ours = approximate(WEIGHTS[name][None])
    assert float(tb_optax.metrics.spectral_norm(ours)[0]) == pytest.approx(exact(WEIGHTS[name])[-1], rel=1e-4)


def test_every_matrix_of_a_stack_is_solved_for_itself():
    stack = np.stack([WEIGHTS["square"], WEIGHTS["product"], 4 * WEIGHTS["square"]])
    values = approximate(stack)
    for matrix, own in zip(stack, values, strict=True):
        np.testing.assert_allclose(approximate(matrix[None])[0], own, rtol=1e-4)
    np.testing.assert_allclose(values[2], 16 * values[0], rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 10, 40])
def test_share_of_zeros_is_that_of_the_exact_spectrum(rank):
    matrix = normal(256, rank) @ normal(rank, 300, seed=1)
    values = np.asarray(approximate(matrix[None], probes=16)[0])
    # Of the weights (vᵀz)²/n the sum over all eigenvectors above zero, of standard deviation √(2 rank / probes) / n.
    assert (values > 0).sum() == pytest.approx(rank, abs=1 + 4 * np.sqrt(2 * rank / 16))
    assert values[-1] == pytest.approx(exact(matrix)[-1], rel=1e-4)
    assert np.isnan(alpha(values))


DEGENERATE = {
    "zero": (np.zeros((20, 20)), np.zeros(20)),
    "orthogonal": (np.linalg.qr(normal(20, 20))[0], np.ones(20)),
    "identity": (np.eye(20), np.ones(20)),
    "all ones": (np.ones((20, 20)), np.r_[np.zeros(19), 400.0]),
    "tiny": (1e-15 * np.eye(20), np.full(20, 1e-30)),
    "huge": (1e15 * np.eye(20), np.full(20, 1e30)),
    "too huge to be squared": (1e25 * np.ones((20, 20)), np.r_[np.zeros(19), np.inf]),
    "one by one": (np.full((1, 1), 3.0), np.full(1, 9.0)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_krylov_space_that_ends_at_once(name):
    """The eigenvectors span a plane at most, and steps go on long after the space is exhausted."""
    matrix, expected = DEGENERATE[name]
    values = approximate(jnp.asarray(matrix, jnp.float32)[None])[0]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_no_value_exceeds_the_largest_eigenvalue(seed):
    """A basis that loses its orthogonality would show here."""
    for n, rank in [(8, 1), (8, 8), (200, 2)]:
        matrix = normal(n, rank, seed=seed) @ normal(rank, n, seed=seed + 10)
        values = np.asarray(approximate(matrix[None], steps=64, seed=seed)[0])
        assert values[-1] <= exact(matrix)[-1] * (1 + 1e-5)
        assert np.isfinite(values).all() and (values >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_matrix_that_is_not_finite_has_nan_and_spoils_no_other(bad):
    stack = np.stack([normal(20, 30)] * 3)
    stack[1, 3, 4] = bad
    values = approximate(stack)
    assert np.isnan(values[1]).all()
    np.testing.assert_array_equal(values[0], values[2])
    assert np.isfinite(values[0]).all()


@functools.partial(jax.jit, static_argnames="steps")
def solved_quadrature(matrix, signs, steps):
    return _quadratures(_tridiagonal(matrix, signs, steps))


def quadrature(matrix: np.ndarray, steps: int, probes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes and weights, and the probes they come from."""
    signs = _signs(0, (probes, len(matrix))).astype(matrix.dtype)
    solved = np.asarray(solved_quadrature(matrix, signs, steps))
    return solved[:, 0], solved[:, 1], np.asarray(signs)


@pytest.mark.slow
def test_as_many_steps_as_eigenvalues_find_them_all():
    matrix = normal(30, 40)
    nodes, weights, signs = quadrature(matrix, steps=30, probes=3)
    values, vectors = np.linalg.eigh(matrix.astype(np.float64) @ matrix.T)
    for own, weight, sign in zip(nodes, weights, signs, strict=True):
        np.testing.assert_allclose(own, values, rtol=1e-4, atol=1e-5 * values[-1])
        np.testing.assert_allclose(weight, (vectors.T @ sign) ** 2 / 30, rtol=0.01, atol=1e-4)
    np.testing.assert_array_equal(approximate(matrix[None], steps=30), approximate(matrix[None], steps=1000))


def test_quadrature_is_exact_for_polynomials_of_degree_below_twice_its_nodes():
    with jax.enable_x64(True):
        matrix = normal(50, 60).astype(np.float64) / 10
        nodes, weights, signs = quadrature(matrix, steps=4, probes=2)
        powered = signs
        for degree in range(8):
            expected = (signs * powered).sum(axis=1) / 50
            np.testing.assert_allclose((weights * nodes**degree).sum(axis=1), expected, rtol=1e-10)
            powered = powered @ matrix @ matrix.T
        assert not np.allclose((weights * nodes**8).sum(axis=1), (signs * powered).sum(axis=1) / 50, rtol=1e-6)


@pytest.mark.parametrize("name", ["wide", "power law, alpha 4"])
def test_trace_is_within_the_probes_error(name):
    matrix = WEIGHTS[name].astype(np.float64)
    gram, n, probes = matrix @ matrix.T, len(matrix), 16
    nodes, weights, _ = quadrature(WEIGHTS[name], steps=32, probes=probes)
    # Hutchinson's estimator with signs has the variance 2 Σ_{i≠j} A_ij².
    deviation = np.sqrt(2 * (np.linalg.norm(gram) ** 2 - np.sum(np.diag(gram) ** 2)) / probes)
    trace = n * (weights * nodes).sum(axis=1).mean()
    assert trace == pytest.approx(np.trace(gram), abs=4 * deviation)
    assert weights.sum(axis=1) == pytest.approx(np.ones(probes), abs=1e-5)


def test_seed_decides():
    matrix = normal(1, 20, 20)
    values = approximate(matrix)
    np.testing.assert_array_equal(approximate(matrix), values)
    assert not np.allclose(approximate(matrix, seed=1), values, rtol=1e-3)
    assert np.isfinite(approximate(matrix, seed=2**40)).all()
    signs = _signs(7, (3, 5))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(_signs(7, (3, 5)), signs)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(_signs(7, (3, 5)), signs)


@pytest.mark.slow
def test_vmap_is_one_stack_after_another():
    stacks = jnp.asarray(normal(2, 2, 20, 30))
    solve = functools.partial(approximate, steps=8, probes=2)
    expected = jnp.stack([solve(stack) for stack in stacks])
    np.testing.assert_allclose(jax.jit(jax.vmap(solve))(stacks), expected, rtol=1e-4)


@pytest.mark.slow
def test_double_precision_is_double():
    with jax.enable_x64(True):
        matrix = with_eigenvalues(np.r_[np.full(19, 0.25), 1.0]).astype(np.float64)
        values = approximate(jnp.asarray(matrix)[None])[0]
        assert values.dtype == jnp.float64
        assert float(values[-1]) == pytest.approx(exact(matrix)[-1], rel=1e-13)


def test_values_are_float32_for_float32():
    assert approximate(normal(1, 6, 9)).dtype == jnp.float32


N, M = 40, 72


def equations(jaxpr: core.Jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params):
            value = getattr(value, "jaxpr", value)
            if isinstance(value, core.Jaxpr):
                yield from equations(value)


def test_gram_matrix_is_never_formed_and_products_are_in_full_precision():
    jaxpr = jax.make_jaxpr(functools.partial(approximate, steps=8))(jnp.ones((3, N, M)))
    every = list(equations(jaxpr.jaxpr))
    shapes = {variable.aval.shape for equation in every for variable in equation.outvars}
    assert not [shape for shape in shapes if shape.count(N) > 1 or shape.count(M) > 1]
    products = [equation for equation in every if equation.primitive.name == "dot_general"]
    assert len(products) == 6
    for product in products:
        assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize(
    ("platform", "routine", "no_routine"),
    [("cpu", "lapack", "cusolver"), ("cuda", "cusolver", "lapack"), ("tpu", "Eigh", "lapack")],
)
def test_each_platform_gets_its_own_routine(platform, routine, no_routine):
    stack = jax.ShapeDtypeStruct((3, 300, 400), jnp.float32)
    text = jax.jit(approximate).trace(stack).lower(lowering_platforms=(platform,)).as_text()
    assert routine in text and no_routine not in text


def test_batch_of_stacks_has_no_batched_lapack_call():
    """On CPU several of them in one program can wait for each other forever."""
    stacks = jax.ShapeDtypeStruct((2, 3, 30, 40), jnp.float32)
    text = jax.jit(jax.vmap(approximate)).trace(stacks).lower(lowering_platforms=("cpu",)).as_text()
    calls = [line for line in text.splitlines() if "lapack" in line and "custom_call" in line]
    assert calls and all("(tensor<30x30xf32>) ->" in call for call in calls)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 5, 4), {}, "smaller side"),
        ((1, 4, 5), {"steps": 0}, "steps=0"),
        ((1, 4, 5), {"probes": 0}, "probes=0"),
    ],
)
def test_bad_arguments_are_named(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        approximate(jnp.ones(shape), **settings)
