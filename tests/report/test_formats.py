"""Files that the formats' own libraries write are read: every array, whatever holds it, and of a train state the weights."""

import json

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training import train_state
from orbax.checkpoint.experimental import v1
from safetensors.numpy import save_file

import tb_optax
from tb_optax._report.formats import open_checkpoint
from tb_optax._report.weights import weights_of


def _kernel(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture(scope="module")
def params():
    return {
        "embed": {"embedding": _kernel(0, 128, 64)},
        "block": {"dense": {"kernel": _kernel(1, 64, 96), "bias": _kernel(2, 96)}, "scale": np.full((), 2, np.float32)},
        "head": {"kernel": _kernel(3, 64, 64)},
    }


@pytest.fixture(scope="module")
def state(params):
    """A whole train state, after a step, whose moments are of the kernels' shapes."""
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adamw(1e-3))
    return state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))


def _same(source, expected, exact=True):
    """Every array of the tree is in the source, and is read as it was."""
    leaves = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    weights = weights_of(source)
    assert set(weights.shapes) == set(leaves)
    for path, leaf in leaves.items():
        found = source.read(weights.full_paths[path])
        assert found.shape == leaf.shape == weights.shapes[path].shape
        assert found.dtype == leaf.dtype == weights.shapes[path].dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(leaf))
    return weights


# Orbax.


def _standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _a_file_for_each(path, tree):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def _zarr3(path, tree):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def _run(path, tree):
    with ocp.CheckpointManager(path) as manager:
        for step, factor in ((0, 3), (9, 2), (10, 1)):
            manager.save(step, args=ocp.args.StandardSave(jax.tree.map(lambda leaf, by=factor: np.asarray(by * leaf), tree)))


def _run_with_items(path, tree):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(step_prefix="step")) as manager:
        items = {"state": ocp.args.StandardSave(tree), "loader": ocp.args.JsonSave({"epoch": 3})}
        manager.save(100, args=ocp.args.Composite(**items))


def _second_interface(path, tree):
    save = v1.save if hasattr(v1, "save") else v1.save_pytree  # Its older name.
    save(path, tree)


@pytest.mark.parametrize("save", [_standard, _a_file_for_each, _zarr3, _run, _run_with_items, _second_interface])
def test_orbax_trees_are_read_however_they_were_saved(tmp_path, params, save):
    save(tmp_path / "saved", params)
    _same(open_checkpoint(tmp_path / "saved"), params)


def test_an_orbax_path_is_told_as_it_was_given(tmp_path, params, monkeypatch):
    _standard(tmp_path / "saved", params)
    monkeypatch.chdir(tmp_path)
    source = open_checkpoint("saved")
    assert source.name == "saved"
    _same(source, params)


def test_a_step_and_an_item_of_a_run_are_read_by_their_own_paths(tmp_path, params):
    _run(tmp_path / "run", params)
    older = jax.tree.map(lambda leaf: np.asarray(3 * leaf), params)
    _same(open_checkpoint(tmp_path / "run" / "0"), older)
    _same(open_checkpoint(tmp_path / "run" / "0" / "default"), older)


def test_of_an_orbax_train_state_only_the_weights_are_read(tmp_path, state, monkeypatch):
    _standard(tmp_path / "state", {"step": 7, "params": state.params, "opt_state": state.opt_state})
    source = open_checkpoint(tmp_path / "state")
    weights = _same(source, state.params)
    assert weights.others == len(source.shapes) - 5 > 10
    # With the moments' numbers gone from the disk, nothing is missed.
    _a_file_for_each(tmp_path / "files", {"params": state.params, "opt_state": state.opt_state})
    gone = [
        chunk
        for chunk in (tmp_path / "files").glob("opt_state.*/*")
        if not chunk.name.startswith(".")  # Shape and dtype.
    ]
    assert len(gone) > 10
    for chunk in gone:
        chunk.unlink()
    report = tb_optax.report(tmp_path / "files")
    assert [record.layer for record in report.records] == ["block/dense", "head"]
    np.testing.assert_allclose(
        report.records[0].eigenvalues, tb_optax.report(state.params).records[0].eigenvalues, rtol=1e-5
    )


@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_an_orbax_tree_sharded_over_devices_is_read_whole(tmp_path, params, use_ocdbt):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    places = lambda leaf: jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec("model", "data") if leaf.ndim == 2 else jax.sharding.PartitionSpec()
    )
    sharded = jax.tree.map(lambda leaf: jax.device_put(leaf, places(leaf)), params)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)) as checkpointer:
        checkpointer.save(tmp_path / "sharded", args=ocp.args.PyTreeSave(sharded))
    _same(open_checkpoint(tmp_path / "sharded"), params)


def test_orbax_keeps_bfloat16_and_names_of_lists(tmp_path):
    tree = {"layers": [{"kernel": jnp.ones((64, 64), jnp.bfloat16)}, {"kernel": jnp.ones((64, 64), jnp.float16)}]}
    _standard(tmp_path / "saved", tree)
    source = open_checkpoint(tmp_path / "saved")
    assert {path: shape.dtype.name for path, shape in source.shapes.items()} == {
        "layers/0/kernel": "bfloat16",
        "layers/1/kernel": "float16",
    }
    np.testing.assert_array_equal(source.read("layers/0/kernel").astype(np.float32), 1)


# Safetensors.


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_safetensors_are_read_in_every_dtype_of_floats(tmp_path, dtype):
    arrays = {"a.weight": _kernel(0, 64, 80, dtype=dtype), "b.weight": _kernel(1, 80, 64, dtype=dtype)}
    save_file(arrays, tmp_path / "model.safetensors")
    source = open_checkpoint(tmp_path / "model.safetensors")
    for path, expected in arrays.items():
        assert source.read(path).dtype == source.shapes[path].dtype == dtype
        np.testing.assert_array_equal(source.read(path), expected)
    expected = tb_optax.report(arrays).records[0].eigenvalues
    np.testing.assert_allclose(tb_optax.report(tmp_path).records[0].eigenvalues, expected, rtol=1e-6)


def test_a_model_in_several_safetensors_files_is_read_by_its_index(tmp_path):
    arrays = {f"layers.{number}.weight": _kernel(number, 64, 72) for number in range(4)}
    names = [f"model-0000{1 + number // 2}-of-00002.safetensors" for number in range(4)]
    for name in set(names):
        save_file({path: arrays[path] for path, own in zip(arrays, names, strict=True) if own == name}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": dict(zip(arrays, names, strict=True))}))
    for path in (tmp_path, index):
        source = open_checkpoint(path)
        assert set(source.shapes) == set(arrays)
        for name, expected in arrays.items():
            np.testing.assert_array_equal(source.read(name), expected)


# Flax's msgpack.


@pytest.mark.parametrize("name", ["params.msgpack", "checkpoint_100"])
def test_msgpack_is_read_by_its_suffix_or_its_first_byte(tmp_path, params, name):
    (tmp_path / name).write_bytes(flax.serialization.to_bytes(params))
    _same(open_checkpoint(tmp_path / name), params)


def test_of_a_msgpack_train_state_only_the_weights_are_read(tmp_path, state):
    (tmp_path / "state.msgpack").write_bytes(flax.serialization.to_bytes(state))
    weights = _same(open_checkpoint(tmp_path / "state.msgpack"), state.params)
    assert weights.others > 10


def test_an_array_in_chunks_is_put_together(tmp_path, params, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    written = flax.serialization.to_bytes(params)
    assert written.count(b"__msgpack_chunked_array__") == 3
    (tmp_path / "params.msgpack").write_bytes(written)
    _same(open_checkpoint(tmp_path / "params.msgpack"), params)


def test_msgpack_keeps_dtypes_and_tells_what_is_no_array(tmp_path):
    tree = {
        "a": {"kernel": jnp.ones((64, 64), jnp.bfloat16)},
        "b": np.ones((64, 64), np.float16),
        "few": {"number": 3, "text": "words", "none": None, "complex": 1j, "scalar": np.float32(1), "list": [1, 2]},
    }
    (tmp_path / "t.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    source = open_checkpoint(tmp_path / "t.msgpack")
    assert {path: shape.dtype.name for path, shape in source.shapes.items()} == {"a/kernel": "bfloat16", "b": "float16"}
    np.testing.assert_array_equal(source.read("a/kernel").astype(np.float32), 1)


# NumPy's npz.


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_compressed_or_not(tmp_path, params, save):
    arrays = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    save(tmp_path / "weights.npz", **arrays, fortran=np.asfortranarray(_kernel(5, 8, 6)), **{"dots.in.name": _kernel(6, 4)})
    source = open_checkpoint(tmp_path / "weights.npz")
    assert set(source.shapes) == {*arrays, "fortran", "dots.in.name"}
    for path, expected in {**arrays, "fortran": _kernel(5, 8, 6), "dots.in.name": _kernel(6, 4)}.items():
        np.testing.assert_array_equal(source.read(path), expected)
        assert source.shapes[path].shape == expected.shape


def test_npz_without_its_suffix_is_known_by_its_first_bytes(tmp_path):
    np.savez(tmp_path / "weights.npz", kernel=_kernel(0, 64, 64))
    (tmp_path / "weights.npz").rename(tmp_path / "weights")
    assert set(open_checkpoint(tmp_path / "weights").shapes) == {"kernel"}


def test_of_an_npz_what_cannot_be_read_is_told_with_its_reason(tmp_path):
    arrays = {"good": _kernel(0, 64, 64), "half": np.ones((64, 64), ml_dtypes.bfloat16), "object": np.array([{}], object)}
    np.savez(tmp_path / "weights.npz", **arrays)
    source = open_checkpoint(tmp_path / "weights.npz")
    assert set(source.shapes) == {"good"} and set(source.unreadable) == {"half", "object"}
    report = tb_optax.report(tmp_path / "weights.npz")
    assert "float32" in report.left_out["half"] and "pickle" in report.left_out["object"]


def test_arrays_are_read_in_the_byte_order_that_they_have(tmp_path):
    arrays = {dtype: _kernel(0, 64, 64, dtype=np.dtype(dtype)) for dtype in (">f4", ">f2", ">f8", "<f4", ">i4")}
    np.savez(tmp_path / "weights.npz", **arrays, long=np.ones((4, 4), np.longdouble))
    source = open_checkpoint(tmp_path / "weights.npz")
    assert set(source.shapes) == set(arrays) and "machine to machine" in source.unreadable["long"]
    for path, expected in arrays.items():
        assert source.read(path).dtype == source.shapes[path].dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(source.read(path), expected)


def test_npy_files_are_read_alone_and_in_a_folder(tmp_path):
    arrays = {"fc.weight": _kernel(0, 64, 80), "head": np.asfortranarray(_kernel(1, 80, 64)).astype(">f4")}
    for path, array in arrays.items():
        np.save(tmp_path / f"{path}.npy", array)
    for where, expected in ((tmp_path, arrays), (tmp_path / "head.npy", {"head": arrays["head"]})):
        source = open_checkpoint(where)
        assert set(source.shapes) == set(expected)
        for path, array in expected.items():
            assert source.read(path).dtype == source.shapes[path].dtype == np.float32
            np.testing.assert_array_equal(source.read(path), array)


# What a file holds counts, whatever its name.


@pytest.mark.parametrize("name", ["model.npz", "model.pt", "model.msgpack", "model.onnx", "model"])
def test_safetensors_by_any_name(tmp_path, name):
    save_file({"fc.weight": _kernel(0, 64, 64)}, tmp_path / name)
    assert set(open_checkpoint(tmp_path / name).shapes) == {"fc.weight"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.pt"])
def test_npz_by_any_name(tmp_path, name):
    np.savez(tmp_path / "weights.npz", kernel=_kernel(0, 64, 64))
    (tmp_path / "weights.npz").rename(tmp_path / name)
    assert set(open_checkpoint(tmp_path / name).shapes) == {"kernel"}


# One network by every format.


def test_the_same_weights_say_the_same_in_every_format(tmp_path):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            for features in (96, 64, 10):
                inputs = nn.Dense(features)(inputs)
            return inputs

    params = jax.tree.map(np.asarray, Network().init(jax.random.key(0), jnp.ones((1, 64)))["params"])
    flat = {f"{layer}/{name}": leaf for layer, own in params.items() for name, leaf in own.items()}
    _standard(tmp_path / "orbax", params)
    (tmp_path / "flax.msgpack").write_bytes(flax.serialization.to_bytes(params))
    np.savez(tmp_path / "numpy.npz", **flat)
    save_file(flat, tmp_path / "model.safetensors")
    rows = tb_optax.report(params).rows()
    assert [row["layer"] for row in rows] == ["Dense_0", "Dense_1"]
    for name in ("orbax", "flax.msgpack", "numpy.npz", "model.safetensors"):
        assert tb_optax.report(tmp_path / name).rows() == rows
