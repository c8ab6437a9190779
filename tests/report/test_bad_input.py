"""What cannot be read is told in one line, before anything is computed; nothing of a file is run."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import flax.serialization
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save, save_file

import tb_optax
from tb_optax._report import command, formats, measuring

_KERNEL = np.random.default_rng(0).standard_normal((64, 80)).astype(np.float32)


class _Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self._trace = str(trace)

    def __reduce__(self):
        return open, (self._trace, "w")


def _npy(header, content=b""):
    """An array's file with any header."""
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def _zip(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _safetensors(header, content=b"", claimed=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + content


def _tensor(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _map(entries):
    return msgpack.packb(entries)


def _array(shape, dtype, content):
    """An array as Flax's extension."""
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))


def _deep(levels):
    return b"\x81\xa1a" * levels + b"\xc0"


_HUGE = 2**60
_HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
_FILES = {
    "empty": ("model.safetensors", b""),
    "empty.npz": ("model.npz", b""),
    "empty.msgpack": ("model.msgpack", b""),
    "empty without a suffix": ("model", b""),
    "text": ("model", b"These are words, no weights at all.\n"),
    "text as npz": ("model.npz", b"These are words, no weights at all.\n"),
    "text as safetensors": ("model.safetensors", b"These are words, no weights at all.\n"),
    "text as msgpack": ("model.msgpack", b"These are words, no weights at all.\n"),
    "zeros": ("model", bytes(4096)),
    "zeros as npz": ("model.npz", bytes(4096)),
    "zeros as safetensors": ("model.safetensors", bytes(4096)),
    "zeros as msgpack": ("model.msgpack", bytes(4096)),
    "an Equinox file": ("model.eqx", b"\x93NUMPY\x01\x00v\x00" + bytes(200)),
    "npy without its half": ("kernel.npy", _npy(_HEADER % ("<f4", "(64, 80)"), _KERNEL.tobytes())[:9000]),
    "npy with more": ("kernel.npy", _npy(_HEADER % ("<f4", "(64, 80)"), _KERNEL.tobytes() + b"more")),
    "npy that claims 2^60": ("kernel.npy", _npy(_HEADER % ("<f4", f"({_HUGE}, 64)"), bytes(64))),
    "npy of objects": ("kernel.npy", _npy(_HEADER % ("|O", "(8,)"), bytes(64))),
    "npy of long doubles": ("kernel.npy", _npy(_HEADER % ("<f16", "(4,)"), bytes(64))),
    # What people have in place of a checkpoint
    "a pointer of git LFS": (
        "model.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n",
    ),
    "a pointer of git LFS for PyTorch": (
        "pytorch_model.bin",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
    ),
    "a page": ("model.safetensors", b"<!DOCTYPE html><html>404</html>"),
    "a page that begins with a line": ("model.pt", b"\n<html><body>404</body></html>"),
    "GGUF": ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + bytes(100)),
    "TensorFlow Lite": ("model.tflite", struct.pack("<I", 28) + b"TFL3" + bytes(100)),
    "a tar archive": ("model.pt", bytes(257) + b"ustar\x0000" + bytes(500)),
    "HDF5 without its half": ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(2000)),
    "Keras without its weights": ("model.keras", _zip({"metadata.json": "{}", "config.json": "{}"})),
    "Keras with damaged weights": ("model.keras", _zip({"model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(2000)})),
    "a picture": ("model.h5", b"\x89PNG\r\n\x1a\n" + bytes(200)),
    "text as PyTorch": ("model.pt", b"These are words, no weights at all.\n"),
    "a zip of PyTorch without its end": ("model.pt", _zip({"model/data.pkl": b"\x80\x02}."})[:-10]),
    "an index of PyTorch that names no file": ("pytorch_model.bin.index.json", b'{"weight_map": {"a": "gone.bin"}}'),
    # npz
    "npz without its end": ("model.npz", _npz(kernel=_KERNEL)[:-40]),
    "npz without its half": ("model.npz", _npz(kernel=_KERNEL)[:9000]),
    "npz without arrays": ("model.npz", _zip({})),
    "npz of other files": ("model.npz", _zip({"a.txt": b"words", "b.npy": b"words"})),
    "npz that claims 2^60": ("model.npz", _zip({"kernel.npy": _npy(_HEADER % ("<f4", f"({_HUGE}, 64)"), bytes(64))})),
    "npz that claims more than an int": ("model.npz", _zip({"kernel.npy": _npy(_HEADER % ("<f4", f"({2**90}, 64)"))})),
    "npz that claims less than nothing": ("model.npz", _zip({"kernel.npy": _npy(_HEADER % ("<f4", "(-64, 64)"))})),
    "npz with a call in its header": (
        "model.npz",
        _zip({"kernel.npy": _npy("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (64, 80), }")}),
    ),
    "npz with a deep header": ("model.npz", _zip({"kernel.npy": _npy("(" * 60_000)})),
    "npz of a later version": ("model.npz", _zip({"kernel.npy": b"\x93NUMPY\x09\x00" + bytes(100)})),
    "npz that is too short": ("model.npz", _zip({"kernel.npy": _npy(_HEADER % ("<f4", "(64, 80)"), bytes(64))})),
    # safetensors
    "safetensors without its end": ("model.safetensors", save({"kernel": _KERNEL})[:-1]),
    "safetensors with more": ("model.safetensors", save({"kernel": _KERNEL}) + b"more"),
    "safetensors with half a header": ("model.safetensors", save({"kernel": _KERNEL})[:20]),
    "safetensors that claims 2^60": ("model.safetensors", _safetensors({}, claimed=_HUGE)),
    "safetensors that claims 2^64 - 1": ("model.safetensors", _safetensors({}, claimed=2**64 - 1)),
    "safetensors without arrays": ("model.safetensors", _safetensors({})),
    "safetensors with no JSON": ("model.safetensors", _safetensors(b'{"a": ' + b" " * 50)),
    "safetensors with deep JSON": ("model.safetensors", _safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    "safetensors that point outside": ("model.safetensors", _safetensors({"k": _tensor([64, 64], [0, _HUGE])}, bytes(64))),
    "safetensors that point before": ("model.safetensors", _safetensors({"k": _tensor([4], [-16, 0])}, bytes(64))),
    "safetensors with a huge shape": ("model.safetensors", _safetensors({"k": _tensor([2**40, 2**40], [0, 64])}, bytes(64))),
    "safetensors that overlap": (
        "model.safetensors",
        _safetensors({"a": _tensor([16], [0, 64]), "b": _tensor([16], [0, 64])}, bytes(64)),
    ),
    "safetensors with a name twice": (
        "model.safetensors",
        _safetensors(
            b'{"k":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},'
            + b'"k":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
            bytes(64),
        ),
    ),
    "safetensors of unknown numbers": ("model.safetensors", _safetensors({"k": _tensor([64], [0, 64], "F7")}, bytes(64))),
    # msgpack
    "msgpack without its end": ("model.msgpack", flax.serialization.to_bytes({"kernel": _KERNEL})[:-1]),
    "msgpack with more": ("model.msgpack", flax.serialization.to_bytes({"kernel": _KERNEL}) + b"\xc0"),
    "msgpack of an array alone": ("model.msgpack", msgpack.packb(_array((64,), "float32", bytes(256)))),
    "msgpack of a list": ("model.msgpack", msgpack.packb([1, 2, 3])),
    "msgpack without arrays": ("model.msgpack", _map({"epoch": 3, "words": "words"})),
    "msgpack that claims 4 GiB": ("model.msgpack", b"\x81\xa6kernel\xc9\xff\xff\xff\xff\x01" + bytes(64)),
    "msgpack with 2^32 - 1 names": ("model.msgpack", b"\xdf\xff\xff\xff\xff" + bytes(64)),
    "msgpack with a huge shape": ("model.msgpack", _map({"kernel": _array((2**40, 2**40), "float32", bytes(64))})),
    "msgpack with a negative shape": ("model.msgpack", _map({"kernel": _array((-4, -16), "uint8", bytes(64))})),
    "msgpack with a shape of words": ("model.msgpack", _map({"kernel": _array(("a", "b"), "float32", bytes(64))})),
    "msgpack with a shape that is none": ("model.msgpack", _map({"kernel": _array(4, "float32", bytes(16))})),
    "msgpack of one piece": ("model.msgpack", _map({"kernel": msgpack.ExtType(1, b"\x01")})),
    "msgpack of objects": ("model.msgpack", _map({"kernel": _array((8,), "O", bytes(64))})),
    "msgpack with a dtype of words": ("model.msgpack", _map({"kernel": _array((8, 8), "words", bytes(256))})),
    "msgpack with a module's name": ("model.msgpack", _map({"kernel": _array((8, 8), "__name__", bytes(256))})),
    "msgpack with names of bytes": ("model.msgpack", _map({b"kernel": _array((8, 8), "float32", bytes(256))})),
    "deep msgpack": ("model.msgpack", _deep(100_000)),
    "msgpack chunks without a shape": ("model.msgpack", _map({"k": {"__msgpack_chunked_array__": True}})),
    "msgpack chunks that do not fill it": (
        "model.msgpack",
        _map(
            {
                "k": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2**40, "1": 64},
                    "chunks": {"0": _array((64,), "float32", bytes(256))},
                }
            }
        ),
    ),
    # an index
    "an index of nothing": ("model.safetensors.index.json", b"{}"),
    "an index that is no JSON": ("model.safetensors.index.json", b"{"),
    "an index that is a list": ("model.safetensors.index.json", b"[1, 2]"),
    "an index of numbers": ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}'),
    "a deep index": ("model.safetensors.index.json", b"[" * 200_000),
    "an index that is no text": ("model.safetensors.index.json", b"\xff\xfe\x00"),
    "an index that names no file": ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}'),
    "an index that names itself": (
        "model.safetensors.index.json",
        b'{"weight_map": {"a": "model.safetensors.index.json"}}',
    ),
    "an index without arrays": ("model.safetensors.index.json", b'{"weight_map": {}}'),
    "an index with a NUL": ("model.safetensors.index.json", b'{"weight_map": {"a": "b\\u0000.safetensors"}}'),
}


@pytest.fixture
def says(capsys, monkeypatch):
    """Runs the command on a path that cannot be read; the one line that it says."""

    def never(*_):
        raise AssertionError("something was computed")

    def run(path):
        monkeypatch.setattr(measuring, "spectra_in_turn", never)
        with pytest.raises(SystemExit) as end:
            command.run(["report", str(path), "--no-compilation-cache"])
        monkeypatch.undo()
        said = capsys.readouterr()
        assert end.value.code == 1
        assert not said.out
        assert said.err.startswith("tb-optax: ") and said.err.endswith(".\n") and said.err.count("\n") == 1
        assert said.err[:-1].isprintable() and len(said.err) < 1500
        return said.err

    return run


@pytest.mark.parametrize(("name", "content"), _FILES.values(), ids=_FILES)
def test_a_file_that_is_no_checkpoint_is_told_in_one_line(says, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in says(tmp_path / name)
    with pytest.raises(tb_optax.CheckpointError):
        tb_optax.report(tmp_path / name)


def test_paths_that_are_no_files_are_told(says, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "nothing").mkdir()
    for path in ("missing", "missing/model.safetensors", "loop", "nowhere", "nothing", "x" * 5000, "new\nline"):
        says(tmp_path / path)
    assert "No such file" in says(tmp_path / "missing")
    if os.geteuid():
        (tmp_path / "nothing").chmod(0)
        assert "Permission" in says(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(says, tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a file" in says(tmp_path / "model.safetensors")


# Code in files.


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.npz", "model.safetensors", "model.msgpack", "model"])
def test_a_pickle_is_refused_and_not_run(says, tmp_path, protocol, name):
    trace = tmp_path / "run"
    (tmp_path / name).write_bytes(pickle.dumps({"kernel": _Bomb(trace)}, protocol))
    said = says(tmp_path / name)
    assert not trace.exists()
    if name in ("model.pkl", "model.pt"):
        assert "safetensors" in said


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "pytorch_model.bin", "model.ckpt", "model"])
def test_a_file_of_torch_save_without_arrays_is_told_and_not_run(says, tmp_path, name):
    trace = tmp_path / "run"
    members = {"archive/data.pkl": pickle.dumps(_Bomb(trace), 2), "archive/data/0": bytes(256), "archive/version": b"3\n"}
    (tmp_path / name).write_bytes(_zip(members))
    assert "no arrays" in says(tmp_path / name)
    assert not trace.exists()


def test_objects_in_an_npz_are_not_unpickled(says, tmp_path):
    trace = tmp_path / "run"
    np.savez(tmp_path / "model.npz", kernel=np.array([_Bomb(trace)], object))
    says(tmp_path / "model.npz")
    np.savez(tmp_path / "model.npz", kernel=np.array([_Bomb(trace)], object), other=_KERNEL)
    assert tb_optax.report(tmp_path / "model.npz").left_out["kernel"].startswith("it holds Python objects")
    assert not trace.exists()


# Memory.


def test_a_zip_that_grows_is_refused_before_it_has_grown(says, tmp_path):
    rows = 2**18
    content = _npy(_HEADER % ("<f4", f"({rows}, 64)")) + bytes(4 * 64 * rows)
    (tmp_path / "model.npz").write_bytes(_zip({"kernel.npy": content}, zipfile.ZIP_BZIP2))
    assert (tmp_path / "model.npz").stat().st_size < len(content) / 10_000
    assert "bytes" in says(tmp_path / "model.npz")


def test_an_archive_that_unpacks_to_a_hundred_times_its_size_is_refused(says, tmp_path):
    rows = 2**19
    content = _npy(_HEADER % ("<f4", f"({rows}, 64)")) + bytes(4 * 64 * rows)
    (tmp_path / "model.npz").write_bytes(_zip({"kernel.npy": content}, zipfile.ZIP_DEFLATED))
    assert "times its size" in says(tmp_path / "model.npz")


def test_what_no_memory_could_hold_is_left_out_not_read(says, tmp_path):
    rows = 2**34
    header = _safetensors({"kernel": _tensor([rows, 64], [0, 4 * 64 * rows])})
    try:
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + 4 * 64 * rows)
    except OSError:
        pytest.skip("this file system knows no file of 4 TiB, not even an empty one")
    assert "GiB in float32" in says(tmp_path / "model.safetensors")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(says, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("kernel.npy", _npy(_HEADER % ("<f4", "(64, 80)"), _KERNEL.tobytes()))
    assert "two arrays are called 'kernel'" in says(tmp_path / "model.npz")


# Directories.


def test_directories_of_something_else_are_told(says, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"kernel": _KERNEL}, tmp_path / name)
    assert "a.safetensors, b.safetensors" in says(tmp_path)
    (tmp_path / "model.mlpackage").mkdir()
    assert "does not read Core ML" in says(tmp_path / "model.mlpackage")
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "saved_model.pb").write_bytes(b"words")
    assert "does not read TensorFlow's SavedModel; save the weights as .npz" in says(tmp_path / "saved_model")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.txt").write_text("words")
    assert "neither an Orbax checkpoint" in says(tmp_path / "words")


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/tmp/secret.safetensors", "sub/x.safetensors", "..", "", "."])
def test_an_index_does_not_lead_out_of_its_directory(says, tmp_path, outside):
    (tmp_path / "model" / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.safetensors", tmp_path / "model" / "sub" / "x.safetensors"):
        save_file({"kernel": _KERNEL}, place)
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"kernel": outside}}))
    assert "not a file in its folder" in says(index)
    assert "not a file in its folder" in says(tmp_path / "model")


def test_an_index_that_names_what_a_file_has_not_is_told(says, tmp_path):
    save_file({"kernel": _KERNEL}, tmp_path / "model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"kernel": "model.safetensors", "other": "model.safetensors"}}))
    assert "'other' is not in model.safetensors" in says(index)


@pytest.fixture
def orbax(tmp_path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "saved", args=ocp.args.PyTreeSave({"dense": {"kernel": _KERNEL}}))
    return tmp_path / "saved"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"tree_metadata": 3}', b"\xff\xff", b"[" * 200_000])
def test_orbax_metadata_that_is_damaged_is_told(says, orbax, content):
    (orbax / "_METADATA").write_bytes(content)
    says(orbax)


def test_orbax_arrays_that_are_gone_are_told(orbax, capsys):
    (folder,) = orbax.glob("dense.kernel")
    chunk = next(chunk for chunk in folder.iterdir() if not chunk.name.startswith("."))
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(tb_optax.CheckpointError, match="'dense/kernel' is damaged"):
        tb_optax.report(orbax)
    chunk.unlink()  # Zarr reads what is missing as zeros; Orbax says that it is missing.
    with pytest.raises(tb_optax.CheckpointError, match="'dense/kernel' is damaged"):
        tb_optax.report(orbax)
    with pytest.raises(SystemExit):
        command.run(["report", str(orbax), "--no-compilation-cache"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_libraries_within_say_nothing_of_a_damaged_run(tmp_path):
    tree = ocp.args.PyTreeSave({f"layer{number}": {"kernel": _KERNEL} for number in range(6)})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        checkpointer.save(tmp_path / "saved", args=tree)
    for file in (tmp_path / "saved").rglob("manifest.ocdbt"):
        file.write_bytes(file.read_bytes()[:-7])
    ended = subprocess.run(
        [sys.executable, "-m", "tb_optax", "report", str(tmp_path / "saved")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("tb-optax: ")


def test_an_orbax_checkpoint_half_written_is_not_taken_for_one(says, orbax):
    unfinished = orbax.rename(orbax.parent / "saved.orbax-checkpoint-tmp-1")
    assert "neither an Orbax checkpoint" in says(orbax.parent)
    assert "not completely written" in says(unfinished)


def test_of_several_trees_one_must_be_named(says, tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        tree = {"dense": {"kernel": _KERNEL}}
        manager.save(1, args=ocp.args.Composite(actor=ocp.args.StandardSave(tree), critic=ocp.args.StandardSave(tree)))
    assert "actor, critic" in says(tmp_path / "run" / "1")


# Weights.


def test_hostile_names_reach_no_terminal(tmp_path, capsys):
    name = "\x1b]0;owned\x07\x1b[2J\u202eabc\r\nnext"
    save_file({f"{name}{number}.weight": _KERNEL for number in range(3)}, tmp_path / "model.safetensors")
    command.run(["report", str(tmp_path / "model.safetensors"), "--no-compilation-cache"])
    said = capsys.readouterr().out
    assert not set(said) & set("\x1b\x07\u202e\r")
    assert "\\x1b" in said


def test_a_network_without_matrices_is_told(says, tmp_path):
    save_file({"norm.weight": np.ones(64, np.float32)}, tmp_path / "a.safetensors")
    assert "no array has two axes" in says(tmp_path / "a.safetensors")
    save_file({"fc.weight": np.ones((10, 64), np.float32)}, tmp_path / "b.safetensors")
    assert "10 eigenvalues, fewer" in says(tmp_path / "b.safetensors")
    save_file({"wte.weight": np.ones((100, 64), np.int32)}, tmp_path / "c.safetensors")
    assert "int32" in says(tmp_path / "c.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_reported_and_told(tmp_path, capsys, value):
    broken = _KERNEL.copy()
    broken[3, 4] = value
    save_file({"a.weight": _KERNEL, "b.weight": broken}, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit) as end:
        command.run(["report", str(tmp_path / "model.safetensors"), "--no-compilation-cache"])
    said = capsys.readouterr()
    assert end.value.code == 1
    assert said.err == "tb-optax: b: the weights hold NaN or infinity; look for where training diverged.\n"
    assert "64×80" in said.out


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    save_file({"kernel": _KERNEL}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(tb_optax.CheckpointError, match=r"not installed; pip install \"tb_optax\[report\]\""):
        formats.open_checkpoint(tmp_path / "model.safetensors")
