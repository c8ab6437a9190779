"""Parameters sharded over the devices of two processes: the scales of one. Run as a script, this file is such a process."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from processes import finish, free_address, start
from tiny import dense_params, tempbalance

STEPS = 5
SPECS = {"rows": P("x"), "columns": P(None, "x")}


def train(mesh, spec):
    """The scales after every step of a small network, whose kernels lie as `spec` says, and the step's compilations."""

    def put(leaf, spec):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, spec), lambda index: leaf[index])

    params = jax.tree.map(lambda leaf: put(leaf, spec if leaf.ndim == 2 else P()), dense_params(rows=16, columns=16))
    inputs = put(np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32), P("x"))
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), tempbalance(2))

    def loss_fn(params, inputs):
        outputs = inputs
        for layer in params.values():
            outputs = jnp.tanh(outputs @ layer["kernel"] + layer["bias"])
        return jnp.mean((outputs - inputs) ** 2)

    @jax.jit
    def step(params, state, inputs):
        updates, state = tx.update(jax.grad(loss_fn)(params, inputs), state, params)
        return optax.apply_updates(params, updates), state

    scales = []
    with jax.set_mesh(mesh):
        state = tx.init(params)
        for _ in range(STEPS):
            params, state = step(params, state, inputs)
            sharding = NamedSharding(mesh, spec)
            assert all(leaf.sharding.is_equivalent_to(sharding, 2) for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
            scales.append([float(scale) for scale in optax.tree_utils.tree_get(state, "scale").values()])
    return np.array(scales), step._cache_size()


def mesh_of(devices):
    return jax.make_mesh((len(devices),), ("x",), axis_types=(AxisType.Auto,), devices=devices)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The scales that each of two processes of two devices finds, by spec, and the step's compilations."""
    folder, address = tmp_path_factory.mktemp("scales"), free_address()
    processes = start([[__file__, address, index, folder / f"{index}.npz"] for index in range(2)], devices=2)
    for process, output in zip(processes, finish(processes), strict=True):
        assert process.returncode == 0, output
    return [np.load(folder / f"{index}.npz") for index in range(2)]


@pytest.mark.parametrize("name", SPECS)
def test_scales_are_those_of_one_process(two_processes, name):
    expected, _ = train(mesh_of(jax.devices()[:1]), P())
    assert np.ptp(expected, axis=1).min() > 0.9 and np.ptp(expected, axis=0).max() > 1e-3  # they differ, and change
    for results in two_processes:
        np.testing.assert_allclose(results[name], expected, rtol=1e-5)


def test_a_step_compiles_once(two_processes):
    for results in two_processes:
        assert [int(results[f"{name} compilations"]) for name in SPECS] == [1, 1]


if __name__ == "__main__":
    address, index, path = sys.argv[1:]
    jax.distributed.initialize(address, 2, int(index))
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    results = {}
    for name, spec in SPECS.items():
        results[name], results[f"{name} compilations"] = train(mesh_of(jax.devices()), spec)
    np.savez(path, **results)
