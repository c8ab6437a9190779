"""Sharded parameters, on the eight devices of `conftest`: the same scales, and a state whose type does not change."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import dense_params, numpy_scales, numpy_spectrum, ones_like, tempbalance, tiny_layers, traced

import tb_optax
from benchmarks.scale import gathered

PARAMS = dense_params(rows=16, columns=24)
SPECS = {"replicated": P(), "rows, as FSDP does": P("x", None), "columns, as tensor parallelism does": P(None, "x")}

modes = pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def mesh_of(mode: AxisType, shape=(8,), names=("x",)):
    return jax.make_mesh(shape, names, axis_types=(mode,) * len(names))


def sharded(mesh, spec, params=PARAMS):
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P())), params)


def types(tree):
    """Shape, dtype, weak type and, in explicit mode, sharding."""
    return jax.tree.map(jax.typeof, tree)


def assert_scales(state, params=PARAMS):
    scales = jax.device_get(optax.tree_utils.tree_get(state, "scale"))
    expected = numpy_scales(params)
    np.testing.assert_allclose([scales[name] for name in expected], list(expected.values()), rtol=1e-4)


@modes
@specs
@pytest.mark.parametrize("jit_init", [False, True], ids=["init", "jit init"])
def test_types_hold_and_scales_are_those_of_one_device(mode, spec, jit_init):
    tx = tempbalance(2)
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh):
        params = sharded(mesh, spec)
        state = (jax.jit(tx.init) if jit_init else tx.init)(params)
        update, traces = traced(tx.update)
        update = jax.jit(update)
        updates, new = update(params, state, params)
        compiled = update._cache_size()
        updates, newer = update(params, new, params)
        assert update._cache_size() == compiled and len(traces) == 1
        assert types(state) == types(new) == types(newer)
        assert types(updates) == types(params)
        shardings = jax.tree.map(lambda new, old: new.sharding.is_equivalent_to(old.sharding, new.ndim), updates, params)
        assert all(jax.tree.leaves(shardings))
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(newer))
    assert_scales(newer)


@modes
def test_update_without_jit_has_the_types_of_one_with(mode):
    tx = tempbalance(1)
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh):
        params = sharded(mesh, P("x", None))
        _, state = tx.update(params, tx.init(params), params)
        _, jitted = jax.jit(tx.update)(params, tx.init(params), params)
        assert types(state) == types(jitted)
    assert_scales(state)


@modes
def test_parameters_sharded_without_a_mesh_in_force(mode):
    """By `device_put` alone, as most training code has it: no more compilations than Adam's own state costs."""
    params = sharded(mesh_of(mode), P("x", None))
    compilations = []
    for tx in (tempbalance(1), optax.adam(1e-3)):
        update, state = jax.jit(tx.update), tx.init(params)
        before = update._cache_size()
        for _ in range(4):
            _, state = update(params, state, params)
        compilations.append(update._cache_size() - before)
        if tx.init(params).__class__ is tb_optax.TempBalanceState:
            assert_scales(state)
    assert compilations[0] <= compilations[1]


def test_two_axes_of_devices():
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), tempbalance(1))
    for mode in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(mode, (4, 2), ("fsdp", "tensor"))
        with jax.set_mesh(mesh):
            params = sharded(mesh, P("fsdp", "tensor"))
            state = tx.init(params)
            _, new = jax.jit(tx.update)(params, state, params)
            assert types(new) == types(state)
        assert_scales(new)


@modes
def test_stack_sharded_along_its_layers(mode):
    kernel = np.stack([leaf["kernel"] for leaf in dense_params(depth=8).values()])
    layer = tb_optax.Layer("stack", "kernel", layer_axes=(0,))
    tx = tempbalance(1, layers=[layer])
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh):
        params = {"kernel": jax.device_put(kernel, NamedSharding(mesh, P("x")))}
        updates, state = jax.jit(tx.update)(ones_like(params), tx.init(params), params)
        assert types(updates) == types(params)
    expected = numpy_scales({str(i): {"kernel": kernel[i]} for i in range(8)})
    np.testing.assert_allclose(state.scale["stack"], list(expected.values()), rtol=1e-3)
    np.testing.assert_allclose(updates["kernel"][:, 0, 0], list(expected.values()), rtol=1e-3)


@pytest.mark.slow
def test_seeds_on_different_devices():
    tx = tempbalance(1)
    seeds = [dense_params(seed) for seed in range(8)]
    mesh = mesh_of(AxisType.Auto)
    params = jax.device_put(jax.tree.map(lambda *x: jnp.stack(x), *seeds), NamedSharding(mesh, P("x")))
    _, states = jax.jit(jax.vmap(tx.update, spmd_axis_name="x"))(params, jax.vmap(tx.init)(params), params)
    for i in (0, 7):
        assert_scales(jax.tree.map(lambda leaf, i=i: leaf[i], states), seeds[i])


def eigenproblems(compiled: str) -> int:
    """How many calls of LAPACK a device makes, where nothing is in a loop."""
    return len(re.findall(r'custom_call_target="lapack_ssyevd_ffi"', compiled))


TWENTY = dense_params(depth=20, rows=16, columns=24)


@pytest.fixture(scope="module")
def on_one_device():
    """The state of a refresh of 20 matrices without a mesh."""
    tx = tempbalance(1)
    compiled = jax.jit(tx.update).lower(TWENTY, tx.init(TWENTY), TWENTY).compile()
    assert eigenproblems(compiled.as_text()) == 20
    return compiled(TWENTY, tx.init(TWENTY), TWENTY)[1]


@modes
@specs
@pytest.mark.parametrize("in_force", [True, False], ids=["mesh in force", "mesh of the weights"])
def test_each_device_solves_its_share(mode, spec, in_force, on_one_device):
    params, tx = TWENTY, tempbalance(1)
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh) if in_force else contextlib.nullcontext():
        own = sharded(mesh, spec, params)
        compiled = jax.jit(tx.update).lower(own, tx.init(own), own).compile()
        assert eigenproblems(compiled.as_text()) == 3  # 20 of them on 8 devices
        sizes = gathered(compiled.as_text())
        assert len(sizes) <= 2 and max(sizes) <= 24 * 16 * 4  # eigenvalues, with those that pad the shares; no weight
        initial = tx.init(own)
        with jax.transfer_guard_host_to_device("disallow"), jax.transfer_guard_device_to_host("disallow"):
            _, state = compiled(own, initial, own)
    assert_scales(state, params)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4), state, on_one_device)


@modes
def test_cut_stacks_are_divided_too(mode):
    params = TWENTY
    two_each = 2 * 4 * (3 * 16 * 24 + 2 * 16 * 16)
    tx = tempbalance(1, solver=tb_optax.Exact(max_bytes=two_each))
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh):
        own = sharded(mesh, P("x", None), params)
        compiled = jax.jit(tx.update).lower(own, tx.init(own), own).compile()
        assert eigenproblems(compiled.as_text()) == 2
        _, state = compiled(own, tx.init(own), own)
    assert_scales(state, params)


@modes
@pytest.mark.parametrize("in_force", [True, False], ids=["mesh in force", "mesh of the weights"])
def test_refresh_inside_a_scan_of_steps_under_a_mesh(mode, in_force):
    """An epoch as one loop: some steps refresh, all have the same types, and the state stays replicated."""
    tx = optax.chain(optax.sgd(0.0), tempbalance(2))
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh) if in_force else contextlib.nullcontext():
        params = sharded(mesh, P("x", None))

        @jax.jit
        def epoch(params, state):
            def step(carry, _):
                params, state = carry
                updates, state = tx.update(params, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), length=5)[0]

        params, state = epoch(params, tx.init(params))
    assert_scales(state)


def test_a_jitted_function_that_closes_over_sharded_weights():
    """Nothing that it is given says on how many devices it runs. (In explicit mode, JAX asks for a mesh in force.)"""
    own = sharded(mesh_of(AxisType.Auto), P("x"))
    tx = tempbalance(1)
    assert_scales(jax.jit(lambda: tx.update(own, tx.init(own), own)[1])())
    spectra = jax.jit(lambda: tb_optax.spectra(own, layers=tiny_layers))()
    np.testing.assert_allclose(spectra["dense1"], numpy_spectrum(PARAMS["dense1"]["kernel"]), rtol=1e-3, atol=1e-3)


def test_seeds_under_a_mesh_are_divided_together():
    tx = tempbalance(1)
    seeds = [dense_params(seed) for seed in range(4)]
    mesh = mesh_of(AxisType.Auto)
    with jax.set_mesh(mesh):
        params = jax.device_put(jax.tree.map(lambda *x: jnp.stack(x), *seeds), NamedSharding(mesh, P()))
        _, states = jax.jit(jax.vmap(tx.update))(params, jax.vmap(tx.init)(params), params)
    for i in (0, 3):
        assert_scales(jax.tree.map(lambda leaf, i=i: leaf[i], states), seeds[i])


def test_inside_shard_map_over_one_of_two_axes():
    """Data parallelism by hand, the other axis the compiler's: the eigenproblems are divided over the latter."""
    params = dense_params(depth=6)
    tx = tempbalance(1)
    mesh = mesh_of(AxisType.Auto, (4, 2), ("data", "model"))
    with jax.set_mesh(mesh):
        update = jax.shard_map(lambda *args: tx.update(*args), in_specs=P(), out_specs=P(), axis_names={"data"})
        compiled = jax.jit(update).lower(params, tx.init(params), params).compile()
        assert eigenproblems(compiled.as_text()) == 3
        _, state = compiled(params, tx.init(params), params)
    assert_scales(state, params)


def test_inside_shard_map():
    """As in data parallelism by hand: everything replicated, every device updates for itself."""
    tx = tempbalance(1)
    mesh = mesh_of(AxisType.Auto)
    update = jax.shard_map(lambda *args: tx.update(*args), mesh=mesh, in_specs=P(), out_specs=P())
    _, state = jax.jit(update)(PARAMS, tx.init(PARAMS), PARAMS)
    assert_scales(state)


@modes
@specs
@pytest.mark.parametrize("in_force", [True, False], ids=["mesh in force", "mesh of the weights"])
def test_spectra_and_report_of_sharded_weights(mode, spec, in_force):
    """The report measures in threads of its own, in which no mesh is in force."""
    params = dense_params(rows=64, columns=96)
    mesh = mesh_of(mode)
    with jax.set_mesh(mesh) if in_force else contextlib.nullcontext():
        own = sharded(mesh, spec, params)
        found, report = tb_optax.spectra(own), tb_optax.report(own)
    for name, leaf in params.items():
        expected = numpy_spectrum(leaf["kernel"])
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(report.record(name).eigenvalues, expected, rtol=1e-3, atol=1e-4)
