"""Large sharded networks: what the compiled refresh of a device holds, and that its scales are those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tb_optax
from benchmarks.scale import SHARDINGS, Decoder, compiled_refresh, gathered, solved

MIB = 2**20
SMALL = Decoder(blocks=16, width=256, hidden=640, key_width=128)
KERNEL = 16 * 256 * 640 * 4  # bytes of the largest stack
SHARE = KERNEL / 8


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize(
    "solver", [tb_optax.Exact(), pytest.param(tb_optax.Lanczos(200), marks=pytest.mark.slow)], ids=["exact", "approximate"]
)
def test_no_weight_is_gathered_and_memory_stays_within_the_shares(sharding, solver):
    found = compiled_refresh(SMALL, sharding, solver=solver)
    assert found.gathered_mib * MIB < 256 * 640 * 4 / 4  # solutions, not weights: a quarter of one matrix is more
    assert found.temporary_mib < 3.5 * found.share_mib
    if solver == tb_optax.Exact():
        assert found.solved == {128: 2 * 2, 256: 5 * 2}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_nor_where_stacks_are_not_dealt_out_evenly(sharding):
    found = compiled_refresh(dataclasses.replace(SMALL, blocks=12, key_width=256, gated=False), sharding)
    assert found.gathered_mib * MIB < 256 * 640 * 4 / 4 and found.temporary_mib < 3.5 * found.share_mib
    assert found.solved == {256: 6 * 12 // 8}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_limit_on_memory_holds_on_each_device(sharding):
    """Two of the largest matrices at once, of each device's ten."""
    limit = 2 * 4 * (3 * 256 * 640 + 2 * 256**2)
    free, cut = (compiled_refresh(SMALL, sharding, solver=tb_optax.Exact(bytes_)) for bytes_ in (2**30, limit))
    assert cut.temporary_mib * MIB < 1.1 * limit < free.temporary_mib * MIB
    assert cut.gathered_mib * MIB < SHARE and cut.solved[256] == 10


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_limit_on_memory_holds_for_windows_too(sharding):
    """Windows are cut out of bands of rows, which every device holds. Their eigenvalues, which are gathered, come on top:
    by two routes, where a Gram product may lose them.
    """
    windows, limit = tb_optax.Windows(32), 4 * MIB
    free, cut = (compiled_refresh(SMALL, sharding, windows=windows, solver=tb_optax.Exact(b)) for b in (2**30, limit))
    assert (cut.temporary_mib - cut.gathered_mib) * MIB < 1.1 * limit < free.temporary_mib * MIB
    assert cut.gathered_mib * MIB < SHARE


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize(
    "mode", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)], ids=["automatic", "explicit"]
)
@pytest.mark.parametrize("blocks", [8, pytest.param(6, marks=pytest.mark.slow)])
def test_spectra_of_sharded_stacks_are_those_of_one_device(sharding, mode, blocks):
    shape, names = SHARDINGS[sharding]
    mesh = jax.make_mesh(shape, names, axis_types=(mode,) * len(names))
    random = np.random.default_rng(0)
    first, second = ("f", "t") if len(names) == 2 else ("x", None)
    specs = {"q": P(None, first, second), "o": P(None, second, first), "k": P(None, None, second), "up": P(None, second)}
    sizes = {"q": (16, 16), "o": (16, 16), "k": (16, 8), "up": (16, 40)}
    kernels = {name: random.standard_normal((blocks, *size)).astype(np.float32) for name, size in sizes.items()}
    layers = [tb_optax.Layer(name, name, layer_axes=(0,)) for name in sizes]
    expected = {name: np.linalg.svd(kernel, compute_uv=False)[:, ::-1] ** 2 for name, kernel in kernels.items()}
    tx = lambda **limit: tb_optax.tempbalance(1, layers=layers, solver=tb_optax.Exact(**limit))
    _, alone = jax.jit(tx().update)(kernels, tx().init(kernels), kernels)
    with jax.set_mesh(mesh):
        own = {name: jax.device_put(kernel, NamedSharding(mesh, specs[name])) for name, kernel in kernels.items()}
        for limit in ({}, {"max_bytes": 4 * 3 * 16 * 40}):
            found = jax.jit(lambda own, limit=limit: tb_optax.spectra(own, layers=layers, solver=tb_optax.Exact(**limit)))(
                own
            )
            for name in sizes:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)
            _, state = jax.jit(tx(**limit).update)(own, tx().init(own), own)
            np.testing.assert_allclose(
                jnp.concatenate(list(state.scale.values())), jnp.concatenate(list(alone.scale.values())), rtol=1e-3
            )


def test_programs_are_read():
    text = """
%body.1 (param: f32[4]) -> f32[4] {
  %one = (f32[8,8]{1,0}, f32[8]{0}, s32[]) custom-call(%x), custom_call_target="lapack_ssyevd_ffi"
}
%idle (param: f32[4]) -> f32[4] {
  %none = f32[4]{0} copy(%param)
}
ENTRY %main.2_spmd (param: f32[4]) -> f32[4] {
  %gather = f32[2,3]{1,0} all-gather(%param), dimensions={0}
  %begun = (f32[1,3]{1,0}, bf16[2,3]{1,0}) all-gather-start(%param), dimensions={0}
  %loop = f32[4]{0} while(%param), condition=%idle, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %due = f32[4]{0} conditional(%p, %a, %b), branch_computations={%idle, %body.1}
}
"""
    assert solved(text) == {8: 4}
    assert sorted(gathered(text)) == [12, 12, 24]
