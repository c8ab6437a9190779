"""Training computes alpha of the heaviest tails within 1e-3 of float64, though float32 Gram products lose their medians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import numpy_alpha, numpy_spectrum

import tb_optax

RANDOM = np.random.default_rng(0)


def orthogonal(rows, columns):
    return np.linalg.qr(RANDOM.standard_normal((columns, rows)))[0].T


def spectral(values, columns):
    return ((orthogonal(len(values), len(values)) * values) @ orthogonal(len(values), columns)).astype(np.float32)


def tails(n, m):
    """Weights by name, with medians from a hundredth to a hundred-thousandth of the largest singular value."""
    noise, ranks = RANDOM.standard_normal((n, m)), np.arange(1, n + 1.0)
    found = {f"power {power}": spectral(ranks**-power, m) for power in (1, 1.5, 2)}
    found |= {f"median {median}": spectral(np.geomspace(1, median**2, n), m) for median in (1e-2, 1e-3, 3e-4, 1e-4, 1e-5)}
    found |= {f"mean {mean}": (noise + mean).astype(np.float32) for mean in (10, 100, 1000)}
    spike = np.outer(orthogonal(1, n), orthogonal(1, m))
    return found | {f"spike {size}": (noise / np.sqrt(n) + size * spike).astype(np.float32) for size in (100, 1e3, 1e4)}


def refreshed(params, **options):
    tb = tb_optax.tempbalance(None, **options)
    return tb.refresh(tb.init(params), params)


@pytest.mark.parametrize("size", [(64, 64), (128, 256)])
def test_alpha_in_training_is_that_of_float64(size):
    params = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in tails(*size).items()}
    metric = refreshed(params).metric
    for name, leaf in params.items():
        assert float(metric[name]) == pytest.approx(numpy_alpha(numpy_spectrum(leaf["kernel"])), abs=1e-3), name
    by_gram = refreshed(params, solver=tb_optax.Exact(method="gram")).metric
    assert float(by_gram["median 1e-05"]) == 0, "a Gram product alone has no alpha there"


def test_the_heaviest_tail_gets_the_smallest_scale():
    kernels = {
        "heavy": spectral(np.arange(1, 65.0) ** -3, 96),
        **{f"plain{i}": RANDOM.standard_normal((64, 96)) for i in (1, 2)},
    }
    params = {name: {"kernel": jnp.asarray(kernel, jnp.float32)} for name, kernel in kernels.items()}
    assert refreshed(params).scale["heavy"] == 0.5


def test_pooled_and_stacked_weights_are_solved_again_too():
    heavy = np.stack([spectral(np.geomspace(1, 1e-9, 64), 64) for _ in range(4)])
    conv = np.stack([spectral(np.geomspace(1, 1e-9, 64), 64) for _ in range(9)]).reshape(3, 3, 64, 64)
    params = {"stack": jnp.asarray(heavy), "conv": jnp.asarray(conv), "plain": jnp.asarray(RANDOM.standard_normal((64, 64)))}
    layers = [tb_optax.Layer(name, name, layer_axes=(0,) * (name == "stack")) for name in params]
    metric = refreshed(params, layers=layers).metric
    for index, kernel in enumerate(heavy):
        assert float(metric["stack"][index]) == pytest.approx(numpy_alpha(numpy_spectrum(kernel)), abs=1e-3)
    pooled = np.sort(np.concatenate([numpy_spectrum(kernel) for kernel in conv.reshape(9, 64, 64)]))
    assert float(metric["conv"]) == pytest.approx(numpy_alpha(pooled), abs=1e-3)


HEAVY = {"a": spectral(np.geomspace(1, 1e-8, 64), 64), "b": np.float32(RANDOM.standard_normal((64, 64)))}
HEAVY |= {"c": np.float32(RANDOM.standard_normal((64, 96)))}
LAYERS = [tb_optax.Layer(name, name) for name in HEAVY]


def test_under_vmap_only_the_seeds_that_need_it_take_the_second_solver():
    plain = HEAVY | {"a": np.float32(RANDOM.standard_normal((64, 64)))}
    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), HEAVY, plain)
    tb = tb_optax.tempbalance(None, layers=LAYERS)
    states = jax.jit(jax.vmap(tb.refresh))(jax.vmap(tb.init)(seeds), seeds)
    for index, params in enumerate((HEAVY, plain)):
        alone = tb.refresh(tb.init(params), params)
        for name in params:
            np.testing.assert_allclose(states.metric[name][index], alone.metric[name], rtol=1e-5)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
def test_on_a_mesh(mode):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    params = jax.device_put(HEAVY, NamedSharding(mesh, P("x")))
    tb = tb_optax.tempbalance(1, layers=LAYERS)
    _, state = jax.jit(tb.update)(params, tb.init(params), params)
    for name, kernel in HEAVY.items():
        assert float(state.metric[name]) == pytest.approx(numpy_alpha(numpy_spectrum(kernel)), abs=1e-3)


def test_ordinary_weights_take_one_solver_and_have_its_numbers():
    params = {f"dense{i}": {"kernel": jnp.asarray(RANDOM.standard_normal((64, 80 + i)), jnp.float32)} for i in range(3)}
    gram = refreshed(params, solver=tb_optax.Exact(method="gram"))
    assert jax.tree.all(jax.tree.map(lambda x, y: x == y, refreshed(params), gram))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_unusable_beside_one_that_is_solved_again(bad):
    params = HEAVY | {"b": np.where(np.arange(64) == 3, bad, HEAVY["b"]).astype(np.float32)}
    state = refreshed(params, layers=LAYERS)
    assert state.metric["b"] == 0 and state.scale["b"] == 1
    assert float(state.metric["a"]) == pytest.approx(numpy_alpha(numpy_spectrum(HEAVY["a"])), abs=1e-3)


def test_weights_of_any_magnitude_have_their_alpha_or_none():
    noise, heavy = RANDOM.standard_normal((64, 96)), spectral(np.geomspace(1, 1e-4, 64), 96)
    right = {"noise": numpy_alpha(numpy_spectrum(noise)), "heavy": numpy_alpha(numpy_spectrum(heavy))}
    magnitudes = [-10, -14, -15, -16, -17, -18, -18.5, -19, -19.5, -20, -21, -30, 10, 16, 18, 19]
    params = {
        f"{name} {power}": jnp.asarray(kernel * 10.0**power, jnp.float32)
        for name, kernel in (("noise", noise), ("heavy", heavy))
        for power in magnitudes
    }
    metric = refreshed(params, layers=[tb_optax.Layer(name, name) for name in params]).metric
    wrong = {
        name: float(alpha)
        for name, alpha in metric.items()
        if alpha != 0 and abs(alpha - right[name.split()[0]]) > 1e-3
    }  # fmt: skip
    assert not wrong
    assert all(metric[f"{name} {power}"] > 0 for name in right for power in (-10, -14, -15, 10, 16))


@pytest.mark.parametrize(
    "shape", [(5, 5, 3, 16), (3, 3, 4, 64), (3, 3, 5, 8), (1, 1, 6, 96), (3, 3, 16, 16), (3, 3, 32, 64)]
)
def test_convolutions_of_rank_one_have_no_alpha(shape):
    """Twenty of them, each a layer of a stack."""
    left = RANDOM.standard_normal((20, *shape[:3], 1))
    right = RANDOM.standard_normal((20, *shape[:2], 1, shape[3]))
    layers = (tb_optax.Layer("conv", "conv", layer_axes=(0,)),)
    for method in ("gram", "svd"):
        solver = tb_optax.Exact(method=method)
        metric = refreshed({"conv": jnp.asarray(left @ right, jnp.float32)}, layers=layers, solver=solver).metric
        assert metric["conv"].tolist() == [0] * 20, method
