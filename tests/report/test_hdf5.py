"""Keras's HDF5 files are read, alone and in a `.keras` archive; a damaged one is told in one line."""

import io
import sys
import zipfile

import h5py
import numpy as np
import pytest

import tb_optax
from tb_optax._report.formats import open_checkpoint
from tb_optax._report.weights import weights_of


def _array(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _same(source, expected):
    assert set(source.shapes) == set(expected)
    for path, array in expected.items():
        found = source.read(path)
        assert found.dtype == source.shapes[path].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, array)


def _keras(file, version=3):
    """The layout of Keras 3's `.weights.h5`, or the older one of `.h5`."""
    arrays = {
        3: {
            "layers/conv2d/vars/0": _array(0, 3, 3, 64, 128),
            "layers/conv2d/vars/1": _array(1, 128),
            "layers/dense/vars/0": _array(2, 128, 64),
            "optimizer/vars/2": _array(3, 128, 64),
        },
        2: {
            "model_weights/conv/conv/kernel:0": _array(0, 3, 3, 64, 128),
            "model_weights/conv/conv/bias:0": _array(1, 128),
            "model_weights/dense/dense/kernel:0": _array(2, 128, 64),
            "optimizer_weights/Adam/m/dense/kernel:0": _array(3, 128, 64),
        },
    }[version]
    with h5py.File(file, "w") as opened:
        if version == 2:
            opened.attrs["keras_version"] = "2.15.0"
        for path, array in arrays.items():
            opened[path] = array
    return arrays


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5", "model.hdf5", "model"])
def test_the_weights_of_keras_are_read_whatever_the_name(tmp_path, version, name):
    arrays = _keras(tmp_path / name, version)
    source = open_checkpoint(tmp_path / name)
    _same(source, arrays)
    weights = weights_of(source)
    assert weights.others == 1 and not any("ptimizer" in path for path in weights.full_paths.values())
    shapes = {record.layer: record.matrices for record in tb_optax.report(tmp_path / name).records}
    assert sorted(shapes.values()) == [1, 9]  # A kernel of 3 x 3 with its outputs last.


def test_the_archive_of_keras_3_is_read(tmp_path):
    buffer = io.BytesIO()
    arrays = _keras(buffer)
    for name in ("model.keras", "model.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("model.weights.h5", buffer.getvalue())
        _same(open_checkpoint(tmp_path / name), arrays)
    with zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", buffer.getvalue())
    with pytest.raises(tb_optax.CheckpointError, match="compressed in it"):
        open_checkpoint(tmp_path / "model.keras")


def test_dtypes_and_what_cannot_be_read(tmp_path):
    arrays = {"half": _array(0, 4, 4, dtype=np.float16), "big": _array(1, 4, 4).astype(">f4"), "zip": _array(2, 64, 64)}
    with h5py.File(tmp_path / "other.h5", "w") as opened:
        opened["outside"] = _array(3, 4, 4)
    with h5py.File(tmp_path / "model.h5", "w") as opened:
        for path, array in arrays.items():
            opened.create_dataset(path, data=array, compression="gzip" if path == "zip" else None)
        opened["words"] = ["a", "b"]
        opened["long"] = np.ones(4, np.longdouble)
        opened["none"] = h5py.Empty("f4")
        opened.create_dataset("claimed", (2**20, 2**20), "f4", chunks=(64, 64))
        opened.create_dataset("never written", (4, 4), "f4", chunks=(2, 2))
        opened.create_dataset("bomb", data=np.zeros(2**25, np.float32), compression="gzip")
        opened.create_dataset("external", (4,), "f4", external=[("/etc/passwd", 0, 16)])
        layout = h5py.VirtualLayout((4, 4), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "outside", (4, 4))
        opened.create_virtual_dataset("virtual", layout)
        opened["link"] = h5py.ExternalLink("other.h5", "/outside")
    source = open_checkpoint(tmp_path / "model.h5")
    _same(source, arrays)
    assert set(source.unreadable) == {"words", "long", "none", "claimed", "never written", "bomb", "external", "virtual"}


@pytest.mark.parametrize("damage", ["half", "end", "tree"])
def test_a_damaged_file_is_told_in_one_line(tmp_path, damage):
    _keras(tmp_path / "model.h5")
    content = bytearray((tmp_path / "model.h5").read_bytes())
    if damage == "tree":
        place = content.index(b"TREE")
        content[place : place + 4] = b"NONE"
    (tmp_path / "model.h5").write_bytes({"half": content[: len(content) // 2], "end": content[:-9], "tree": content}[damage])
    with pytest.raises(tb_optax.CheckpointError) as told:
        source = open_checkpoint(tmp_path / "model.h5")
        for path in source.shapes:
            source.read(path)
    assert str(told.value).isprintable() and len(str(told.value)) < 1500


def test_without_h5py_the_way_out_is_named(tmp_path, monkeypatch):
    _keras(tmp_path / "model.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(tb_optax.CheckpointError, match=r"h5py is not installed; pip install \"tb_optax\[report\]\""):
        open_checkpoint(tmp_path / "model.h5")
