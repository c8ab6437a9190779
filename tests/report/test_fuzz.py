"""Ten thousand damaged files: each is read, or refused in one line, without more memory than a file of its size asks for."""

import json
import random
import resource

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from pytorch_files import Writer, call
from safetensors.numpy import save_file

from tb_optax._report.formats import open_checkpoint
from tb_optax._report.source import CheckpointError
from tb_optax._report.weights import weights_of

_PARTS = 10
_MOST_GROWTH = 400 * 2**20
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
_WORDS = (
    b"..",
    b"/",
    b"\0",
    b"{",
    b"[",
    b"]",
    b"}",
    b'"',
    b"-",
    b"-1",
    b"9" * 25,
    b"nan",
    b"null",
    b"\xff\xfe",
    b"\x1b[2J",
    b"O",
)

pytestmark = pytest.mark.slow


def _mutated(content, chance):
    """With one to four changes, most of them where headers are."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        near = chance.choice((64, 512, size, size))
        at = chance.randrange(min(near, size) + 1)
        at = size - at if chance.random() < 0.3 else at
        kind = chance.randrange(8)
        if kind == 0 and at < size:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < size:
            changed[at] = chance.randrange(256)
        elif kind == 2:
            del changed[at : at + chance.choice((1, 2, 8, 100, size))]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.choice((1, 2, 8, 100)))
        elif kind == 4:
            width, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
            changed[at : at + width] = (chance.choice(_NUMBERS) % 2 ** (8 * width)).to_bytes(width, order)
        elif kind == 5:
            changed[at : at + chance.choice((0, 1, 2))] = chance.choice(_WORDS)
        elif kind == 6:
            start = chance.randrange(size + 1)
            changed[at:at] = changed[start : start + chance.randrange(200)]
        else:
            start = chance.randrange(size + 1)
            length = chance.randrange(200)
            changed[at : at + length] = changed[start : start + length]
    return bytes(changed)


def _read_or_refused(path):
    """Whether all that it promises is there; every other error than being refused is a fault."""
    try:
        source = open_checkpoint(path)
        weights = weights_of(source)
        for own, full in weights.full_paths.items():
            array = source.read(full)
            assert array.shape == weights.shapes[own].shape and array.dtype == weights.shapes[own].dtype
    except CheckpointError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
        return False
    return True


def _fuzz(path, files, times, seed):
    """Damages one of a checkpoint's files after another; how many were refused."""
    chance = random.Random(seed)
    contents = {file: file.read_bytes() for file in files}
    assert _read_or_refused(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(times):
        file = chance.choice(files)
        file.write_bytes(_mutated(contents[file], chance))
        refused += not _read_or_refused(path)
        file.write_bytes(contents[file])
    assert _read_or_refused(path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < _MOST_GROWTH
    return refused


def _tree():
    numbers = np.random.default_rng(0)
    kernel = lambda *shape: numbers.standard_normal(shape).astype(np.float32)
    return {
        "layer": {"kernel": kernel(12, 8), "bias": kernel(8)},
        "half": {"kernel": kernel(6, 4).astype(ml_dtypes.bfloat16)},
        "conv": {"kernel": kernel(3, 3, 4, 2)},
    }


def _flat():
    return {f"{module}.{name}": array for module, own in _tree().items() for name, array in own.items()}


@pytest.mark.parametrize("seed", range(_PARTS))
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, seed, save):
    path = tmp_path / "model.npz"
    save(path, **{name: array for name, array in _flat().items() if array.dtype == np.float32})
    assert _fuzz(path, [path], 1500 // _PARTS, seed) > 50


@pytest.mark.parametrize("seed", range(_PARTS))
def test_damaged_safetensors(tmp_path, seed):
    path = tmp_path / "model.safetensors"
    save_file(_flat(), path)
    assert _fuzz(path, [path], 2000 // _PARTS, seed) > 50


@pytest.mark.parametrize("seed", range(_PARTS))
def test_a_damaged_index_and_its_files(tmp_path, seed):
    arrays = _flat()
    names = {name: f"{number % 2}.safetensors" for number, name in enumerate(arrays)}
    for file in set(names.values()):
        save_file({name: arrays[name] for name in arrays if names[name] == file}, tmp_path / file)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": names}))
    assert _fuzz(path, [path, tmp_path / "0.safetensors"], 1000 // _PARTS, seed) > 30


@pytest.mark.parametrize("seed", range(_PARTS))
@pytest.mark.parametrize("chunk", [None, 100])
def test_damaged_msgpack(tmp_path, seed, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
    path = tmp_path / "model.msgpack"
    path.write_bytes(flax.serialization.to_bytes({"params": _tree(), "step": 3}))
    assert _fuzz(path, [path], 1500 // _PARTS, seed) > 50


def _without_checksums(archive):
    """A zip without them, as `torch.save` can write it, so that damage of the pickle gets as far as it can."""
    changed = bytearray(archive)
    for mark, place in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        start = changed.find(mark)
        while start >= 0:
            changed[start + place : start + place + 4] = bytes(4)
            start = changed.find(mark, start + 4)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(_PARTS))
@pytest.mark.parametrize("old", [False, True], ids=["zip", "stream"])
def test_damaged_pytorch(tmp_path, seed, old):
    """Most of the damage is in the pickle, of which a zip's is at its start and an old stream's too."""
    writer = Writer(old)
    tensors = {name: writer.tensor(array) for name, array in _flat().items()}
    parameter = call("torch._utils._rebuild_parameter", writer.of("0", 3, (4, 5), (8, 1)), True, None)
    root = {"state_dict": tensors, "step": 3, "rest": [parameter, (None, True), call("a.b", "words")]}
    path = tmp_path / "model.pt"
    path.write_bytes(writer.file(root) if old else _without_checksums(writer.file(root)))
    assert _fuzz(path, [path], 3000 // _PARTS, seed) > 50


@pytest.mark.parametrize("seed", range(_PARTS))
def test_damaged_npy(tmp_path, seed):
    path = tmp_path / "kernel.npy"
    np.save(path, _tree()["layer"]["kernel"])
    assert _fuzz(path, [path], 500 // _PARTS, seed) > 10


@pytest.mark.parametrize("seed", range(_PARTS))
def test_damaged_hdf5(tmp_path, seed):
    import h5py

    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "3"
        for name, array in _flat().items():
            if array.dtype == np.float32:
                file.create_dataset(f"layers/{name}", data=array, compression="gzip" if name == "conv.kernel" else None)
    assert _fuzz(path, [path], 1500 // _PARTS, seed) > 50


@pytest.mark.parametrize("seed", range(_PARTS))
def test_damaged_onnx(tmp_path, seed):
    onnx = pytest.importorskip("onnx")
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in _flat().items()]
    nodes = [onnx.helper.make_node("LSTM", ["x", "layer.kernel", "r"], ["y"])]
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [], tensors)).SerializeToString())
    assert _fuzz(path, [path], 1500 // _PARTS, seed) > 10


@pytest.mark.parametrize("seed", range(_PARTS))
@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_damaged_orbax(tmp_path, seed, use_ocdbt):
    path = tmp_path / "saved"
    tree = {"params": {module: {name: jnp.asarray(array) for name, array in own.items()} for module, own in _tree().items()}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    _fuzz(path, files, 500 // _PARTS, seed)
