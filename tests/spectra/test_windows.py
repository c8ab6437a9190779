"""Windows give the spectra that FARMS has, in training too, and without the bias of the aspect ratio."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import tb_optax
from tb_optax import metrics

RANDOM = np.random.default_rng(0)
small_layers = functools.partial(tb_optax.find_layers, min_eigenvalues=2)


def kernel(*shape):
    spread = np.exp(RANDOM.standard_normal((*shape[:-2], shape[-2], 1)))
    return (RANDOM.standard_normal(shape) * spread).astype(np.float32)


windows = tb_optax.Windows


def squared(matrices):
    return np.sort(np.concatenate([np.linalg.svd(each.astype(np.float64), compute_uv=False) ** 2 for each in matrices]))


def dense_by_the_rules(matrix, rows, ratio, places):
    """As the released program goes over a dense weight, whose smaller side is its rows."""
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    n, m = matrix.shape
    columns = int(rows * ratio)
    found = []
    for i in range(places):
        for j in range(places):
            top, left = i * max(1, (n - rows) // max(1, places - 1)), j * max(1, (m - columns) // max(1, places - 1))
            if top + rows <= n and left + columns <= m:
                found.append(matrix[top : top + rows, left : left + columns])
    return squared(found)


def convolution_by_the_rules(weight):
    """As the released program goes over a convolution `(*window, inputs, outputs)`."""
    found = []
    for place in weight.reshape(-1, *weight.shape[-2:]):
        place = place if place.shape[0] <= place.shape[1] else place.T
        short, long = place.shape
        found += [place[:, block * short : (block + 1) * short] for block in range(long // short)]
    return 0.5 * squared(found)


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (40, 40), (33, 47)])
@pytest.mark.parametrize(
    ("rows", "ratio", "places"), [(20, 1.0, 5), (20, 1.5, 4), (33, 1.0, 9), (30, 1.25, 1), (32, 1.0, 2)]
)
def test_a_dense_spectrum_is_that_of_the_released_windows(shape, rows, ratio, places):
    weight = kernel(*shape)
    own = windows(size=rows, ratio=ratio, grid=places)
    found = tb_optax.spectra({"dense": {"kernel": weight}}, layers=small_layers, windows=own)["dense"]
    expected = dense_by_the_rules(weight, rows, ratio, places)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected[-1])


def test_of_a_smaller_matrix_the_largest_window_of_the_ratio_is_taken():
    weight = kernel(10, 90)
    found = tb_optax.spectra({"dense": {"kernel": weight}}, layers=small_layers, windows=windows(size=50, grid=4))["dense"]
    np.testing.assert_allclose(found, dense_by_the_rules(weight, 10, 1.0, 4), rtol=1e-4)
    square = kernel(60, 60)
    found = tb_optax.spectra({"dense": {"kernel": square}}, windows=windows(size=50, ratio=2.0, grid=1))["dense"]
    np.testing.assert_allclose(found, squared([square[:30]]), rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3, 16, 40), (3, 3, 40, 16), (3, 16, 16), (1, 1, 50, 170)])
def test_a_convolutions_spectrum_is_that_of_its_square_blocks(shape):
    weight = kernel(*shape)
    found = tb_optax.spectra({"conv": {"kernel": weight}}, layers=small_layers, windows=windows(size=7))["conv"]
    expected = convolution_by_the_rules(weight)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected[-1])


def test_each_slice_of_a_stack_has_its_own_windows_however_the_stack_is_cut():
    stack = {"blocks": {"kernel": kernel(3, 60, 90), "bias": np.zeros((3, 90), np.float32)}}
    own = windows(size=20, grid=4)
    found = tb_optax.spectra(stack, windows=own)["blocks"]
    assert found.shape == (3, 16 * 20)
    for values, weight in zip(found, stack["blocks"]["kernel"], strict=True):
        np.testing.assert_allclose(values, dense_by_the_rules(weight, 20, 1.0, 4), rtol=1e-4, atol=1e-4)
    little = tb_optax.Exact(max_bytes=7 * 3 * 20 * 20 * 4)
    np.testing.assert_allclose(tb_optax.spectra(stack, solver=little, windows=own)["blocks"], found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
def test_over_devices_they_are_those_of_one(mode):
    params = {"a": {"kernel": kernel(64, 96)}, "b": {"kernel": kernel(96, 64)}, "c": {"kernel": kernel(64, 64)}}
    own = windows(size=20, grid=3)
    expected = tb_optax.spectra(params, windows=own)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(mode,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec("data")))
        found = tb_optax.spectra(sharded, windows=own)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_balances_by_them():
    params = {f"dense{number}": {"kernel": kernel(60, 70 + 40 * number)} for number in range(3)}
    own = windows(size=30, grid=4)
    tx = tb_optax.tempbalance(1, windows=own)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    for name, values in tb_optax.spectra(params, windows=own).items():
        expected = dense_by_the_rules(params[name]["kernel"], 30, 1.0, 4)
        half = len(expected) // 2
        alpha = 1 + half / np.log(expected[half:] / expected[half]).sum()
        assert state.metric[name] == pytest.approx(alpha, rel=1e-3)
        assert float(metrics.pl_alpha_hill(values)) == pytest.approx(alpha, rel=1e-3)
    seeds = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    _, together = jax.vmap(tx.update)(seeds, jax.vmap(tx.init)(seeds), seeds)
    for name, alpha in state.metric.items():
        np.testing.assert_allclose(together.metric[name], [alpha, alpha], rtol=1e-4)


def test_alphas_of_random_matrices_no_longer_hang_on_the_aspect_ratio():
    shapes = [(100, 100 * ratio) for ratio in (1, 2, 4, 8)]
    params = {str(shape): {"kernel": RANDOM.standard_normal(shape).astype(np.float32)} for shape in shapes}
    alphas = lambda **settings: [float(metrics.pl_alpha_hill(v)) for v in tb_optax.spectra(params, **settings).values()]
    whole, pieces = alphas(), alphas(windows=windows(size=100, grid=9))
    assert whole[-1] > 2 * whole[0]  # Though there is no training in any of them.
    assert np.ptp(pieces) < 0.05 * np.mean(pieces)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"size": 1}, ValueError, "Windows: size=1"),
        ({"grid": 0}, ValueError, "Windows: grid=0"),
        ({"ratio": 0.5}, ValueError, "Windows: ratio=0.5"),
        ({"ratio": float("nan")}, ValueError, "Windows: ratio=nan"),
        ({"size": 10.0}, TypeError, "Windows: size=10.0"),
        ({"ratio": "2"}, TypeError, "Windows: ratio='2'"),
    ],
)
def test_windows_that_cannot_be_are_named(settings, error, says):
    with pytest.raises(error, match=says):
        tb_optax.Windows(**settings)
    with pytest.raises(TypeError, match="spectra: windows=100"):
        tb_optax.spectra({}, windows=100)  # pyright: ignore[reportArgumentType]
