"""Spectra are numpy's squared singular values in float64, whatever the layout of the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import equations

import tb_optax
from tb_optax._layers.layer import resolve_layers
from tb_optax._spectra.execute import compute_spectra
from tb_optax._spectra.plan import plan_spectra


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def squared_singular_values(*matrices: np.ndarray) -> np.ndarray:
    return np.sort(np.concatenate([np.linalg.svd(m.astype(np.float64), compute_uv=False) ** 2 for m in matrices]))


def pooled(*matrices: np.ndarray) -> np.ndarray:
    return 0.5 * squared_singular_values(*matrices)


def layer(**axes) -> tb_optax.Layer:
    return tb_optax.Layer("layer", "kernel", **axes)


WIDE, TALL, CONV, STACK, HEADS = normal(6, 9), normal(9, 6), normal(3, 2, 5, 7), normal(2, 3, 5, 7), normal(8, 2, 3)

CASES = {
    "wide": (WIDE, layer(), squared_singular_values(WIDE)),
    "tall": (TALL, layer(), squared_singular_values(TALL)),
    "outputs first": (WIDE, layer(reduction_axes=(1,), output_axes=(0,)), squared_singular_values(WIDE)),
    "convolution, HWIO": (CONV, layer(), pooled(*CONV.reshape(6, 5, 7))),
    "convolution, OIHW": (
        CONV.transpose(3, 2, 0, 1),
        layer(reduction_axes=(1,), output_axes=(0,)),
        pooled(*CONV.reshape(6, 5, 7)),
    ),
    "1x1 convolution": (normal(1, 1, 5, 7), layer(), pooled(normal(5, 7))),
    "query of two heads": (
        HEADS,
        layer(reduction_axes=(0,), output_axes=(1, 2)),
        squared_singular_values(HEADS.reshape(8, 6)),
    ),
    "output of two heads": (
        HEADS.transpose(1, 2, 0),
        layer(reduction_axes=(0, 1), output_axes=(2,)),
        squared_singular_values(HEADS.transpose(1, 2, 0).reshape(6, 8)),
    ),
    "stack of layers": (
        STACK[:, 0],
        layer(layer_axes=(0,)),
        np.stack([squared_singular_values(matrix) for matrix in STACK[:, 0]]),
    ),
    "stack, its axes last and in another order": (
        STACK.transpose(2, 3, 0, 1),
        layer(reduction_axes=(0,), output_axes=(1,), layer_axes=(3, 2)),
        np.stack([[squared_singular_values(STACK[j, i]) for j in range(2)] for i in range(3)]),
    ),
    "stack of convolutions": (STACK, layer(layer_axes=(0,)), np.stack([pooled(*conv) for conv in STACK])),
}


@pytest.mark.parametrize("gram", [False, True], ids=["singular values", "gram"])
@pytest.mark.parametrize("case", CASES)
def test_spectrum_is_numpys(case, gram):
    kernel, described, expected = CASES[case]
    found, leaves = resolve_layers([described], {"kernel": jnp.asarray(kernel)})
    ((_, rows),) = compute_spectra(plan_spectra(found, leaves, gram=gram), leaves)
    assert rows.shape[1] == expected.shape[-1]
    np.testing.assert_allclose(rows.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_layers_of_one_size_are_solved_together_and_kept_apart():
    names = ["one", "two", "three"]
    params = {name: jnp.asarray((i + 1) * normal(6, 9)) for i, name in enumerate(names)} | {
        "other": jnp.asarray(normal(5, 4))
    }
    ours = tb_optax.spectra(params, layers=[tb_optax.Layer(name, name) for name in params])
    assert list(ours) == list(params)
    for name, kernel in params.items():
        np.testing.assert_allclose(ours[name], squared_singular_values(np.asarray(kernel)), rtol=1e-4)


def test_each_size_is_one_solve_whatever_the_other_side():
    """Sizes 5 and 6, in six shapes; stacks of layers and convolutions too."""
    shapes = [(6, 9), (6, 20), (9, 6), (2, 2, 6, 8), (5, 40), (3, 12, 5)]
    params = {f"layer{i}": jnp.asarray(normal(*shape)) for i, shape in enumerate(shapes)}
    layers = [tb_optax.Layer(name, name, layer_axes=(0,) * (params[name].ndim == 3)) for name in params]
    jaxpr = jax.make_jaxpr(lambda params: tb_optax.spectra(params, layers=layers))(params)
    solves = [equation for equation in equations(jaxpr.jaxpr) if "custom_vmap" in equation.primitive.name]
    solved = {solve.invars[0].aval.shape for solve in solves if solve.outvars[0].aval.ndim == 2}
    assert solved == {(7, 6, 6), (4, 5, 5)}
    ours = tb_optax.spectra(params, layers=layers)
    np.testing.assert_allclose(ours["layer3"], pooled(*normal(2, 2, 6, 8).reshape(4, 6, 8)), rtol=1e-4, atol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(ours["layer5"][i], squared_singular_values(normal(3, 12, 5)[i]), rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(jnp.float16, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)],
)
def test_precision_is_the_weights_and_at_least_float32(dtype, expected):
    with jax.enable_x64(dtype == jnp.float64):
        kernel = jnp.asarray(WIDE, dtype)
        ours = tb_optax.spectra({"kernel": kernel}, layers=[layer()])["layer"]
        assert ours.dtype == expected
        np.testing.assert_allclose(ours, squared_singular_values(np.asarray(kernel, np.float64)), rtol=1e-4)


def test_gram_product_asks_for_full_precision():
    """TF32 or bfloat16, the default on accelerators, would ruin the small half of the spectrum."""
    found, leaves = resolve_layers([layer()], {"kernel": jnp.asarray(WIDE)})
    jaxpr = jax.make_jaxpr(lambda leaves: compute_spectra(plan_spectra(found, leaves, gram=True), leaves)[0].spectra)(leaves)
    (product,) = (equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name == "dot_general")
    assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


def test_spectra_finds_layers_by_itself_and_under_jit():
    params = {"dense": {"kernel": jnp.asarray(normal(60, 50)), "bias": jnp.zeros(50)}}
    expected = squared_singular_values(normal(60, 50))
    np.testing.assert_allclose(jax.jit(tb_optax.spectra)(params)["dense"], expected, rtol=1e-3)


def test_known_exponent_of_a_weight_is_recovered():
    """From a weight whose eigenvalues fall as k^-s, s = 1 / (alpha - 1), through the spectrum to alpha."""
    n, alpha = 200, 2.5
    left, right = (np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0] for seed in (0, 1))
    kernel = (left * np.arange(1.0, n + 1) ** (-0.5 / (alpha - 1))) @ right
    eigenvalues = tb_optax.spectra({"kernel": jnp.asarray(kernel, jnp.float32)})["kernel"]
    assert float(tb_optax.metrics.pl_alpha_hill(eigenvalues)) == pytest.approx(alpha, rel=0.02)
