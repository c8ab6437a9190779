"""The formats of checkpoints that can be read, a module each, and the one of a given path."""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path as FilePath

from tb_optax._report.formats import hdf5, msgpack, npz, onnx_graph, orbax, pytorch, safetensors
from tb_optax._report.source import CheckpointError, Source, printable

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_STARTS = 512  # bytes that tell a format; a tar has its mark at 257
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_OPENED_BY_SUFFIX: dict[str, Callable[[FilePath], Source]] = {
    ".npz": npz.open_npz,
    ".safetensors": safetensors.open_safetensors,
    ".safetensors.index.json": safetensors.open_index,
    ".bin.index.json": pytorch.open_index,
    ".msgpack": msgpack.open_msgpack,
    ".onnx": onnx_graph.open_onnx,
}
# Of a directory with one file of these, and no other that comes before it.
_IN_DIRECTORIES = (
    *("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt"),
    *("*.keras", "*.h5", "*.onnx", "*.msgpack", "*.npz"),
)
_EXTRAS = {"onnx": "onnx"}  # The extra that brings a package, if it is not `report`.
READABLE = (
    "Orbax directories, .safetensors, PyTorch's .pt, .pth, .ckpt and .bin, Keras's .keras and .h5, .onnx, Flax .msgpack,"
    " .npz and .npy files, or an .index.json"
)
_SAVE_AS_SAFETENSORS = (
    "save the weights as safetensors: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


def open_checkpoint(path: str | os.PathLike[str]) -> Source:
    """The arrays of a checkpoint, with only names, shapes and dtypes read so far.

    The file's first bytes or the directory's content decide the format, and where these are ambiguous, by the name.

    Raises:
      CheckpointError: it is not there, damaged, or of no format that is read.
    """
    where = FilePath(path)
    try:
        opened = _opened(where)
    except CheckpointError:
        raise
    except ImportError as error:
        name = error.name or str(error)
        extra = _EXTRAS.get(name.partition(".")[0], "report")
        raise CheckpointError(where, f"{name} is not installed", f'pip install "tb_optax[{extra}]"') from error
    except FileNotFoundError as error:
        way_out = "give a path on this machine; download a model of a hub first"
        raise CheckpointError(where, error.strerror or str(error), way_out) from error
    except OSError as error:
        raise CheckpointError(where, error.strerror or str(error), "give a path that can be read") from error
    if not opened.shapes:
        first = next((f"{name}: {reason}" for name, reason in opened.unreadable.items()), "")
        others = f" ({len(opened.unreadable)} that cannot be read; {first})" if opened.unreadable else ""
        raise CheckpointError(where, f"it holds no arrays{others}", "give a checkpoint of a network's weights")
    return opened


def _opened(where: FilePath) -> Source:
    if where.is_dir():
        return _opened_directory(where)
    if where.exists() and not where.is_file():  # A pipe would be waited for.
        raise CheckpointError(where, "not a file", f"the report reads: {READABLE}")
    with where.open("rb") as file:  # Raises what is wrong with a path that is no file.
        start = file.read(_STARTS)
    _refuse_what_is_no_checkpoint(where, start)
    if (opener := _opener_by_content(where, start) or _opener_by_suffix(where)) is not None:
        return opener(where)
    if start[:1] and (0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return msgpack.open_msgpack(where)
    if where.suffix.lower() in _PICKLES:
        raise CheckpointError(
            where, "neither a file of torch.save nor of another format that the report reads", _SAVE_AS_SAFETENSORS
        )
    raise CheckpointError(where, "unrecognized format", f"the report reads: {READABLE}")


def _opener_by_content(where: FilePath, start: bytes) -> Callable[[FilePath], Source] | None:
    if start.startswith(_HDF5):
        return hdf5.open_hdf5
    if start.startswith(_ZIP):
        return _opener_of_zip(where)
    if start.startswith(b"\x93NUMPY"):
        return npz.open_npy
    if pytorch.is_stream(start[:64]):
        return pytorch.open_stream
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= where.stat().st_size:
        return safetensors.open_safetensors
    return None


def _opener_by_suffix(where: FilePath) -> Callable[[FilePath], Source] | None:
    return next((opener for end, opener in _OPENED_BY_SUFFIX.items() if where.name.lower().endswith(end)), None)


def _opener_of_zip(where: FilePath) -> Callable[[FilePath], Source]:
    """The opener by what the archive holds; for a damaged archive, by its suffix."""
    try:
        with zipfile.ZipFile(where) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError):
        return pytorch.open_zip if where.suffix.lower() in _PICKLES else npz.open_npz
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return pytorch.open_zip
    return hdf5.open_keras if hdf5.IN_KERAS in names else npz.open_npz


def _refuse_what_is_no_checkpoint(where: FilePath, start: bytes) -> None:
    """Files that people often have in place of a checkpoint, or in a format that is not read."""
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(where, "a git LFS pointer, not the file itself", "run: git lfs pull")
    if re.match(rb"\s*<(!doctype|html)", start, re.IGNORECASE):
        raise CheckpointError(where, "an HTML page: the download failed", "download the file again")
    if start.startswith(b"GGUF"):
        raise CheckpointError(
            where,
            "the report does not read GGUF, whose weights are mostly quantized",
            "give the model's safetensors file instead",
        )
    if start[4:8] == b"TFL3":
        raise CheckpointError(
            where, "the report does not read TensorFlow Lite", "give the Keras model that it was made from, or ONNX"
        )
    if start[257:262] == b"ustar":
        raise CheckpointError(
            where,
            "a tar archive (PyTorch wrote such files before version 0.1.10)",
            "unpack it, or load and save it again with a newer PyTorch",
        )
    if where.suffix.lower() == ".eqx":
        raise CheckpointError(
            where, "an Equinox file, which has no names of arrays", "save the weights with Orbax or as .npz"
        )
    if (
        start[:1] == b"\x80"
        and start[1:2] in b"\x02\x03\x04\x05"
        and start[8:9] != b"{"
        and not pytorch.is_stream(start[:64])
    ):
        raise CheckpointError(
            where, "a pickle that torch.save did not write; loading it could run any code", _SAVE_AS_SAFETENSORS
        )


def _opened_directory(where: FilePath) -> Source:
    if where.suffix == ".mlpackage":
        raise CheckpointError(where, "the report does not read Core ML", "give the model that it was converted from")
    if (found := orbax.find_checkpoint(where)) is not None:
        return orbax.open_orbax(found)
    for pattern in _IN_DIRECTORIES:
        files = sorted(file for file in where.glob(pattern) if pattern != "*.bin" or "training_args" not in file.name)
        if len(files) == 1:
            return _opened(files[0])
        if files:
            names = ", ".join(printable(file.name) for file in files[:5])
            raise CheckpointError(where, f"the folder has {len(files)} files {pattern} ({names})", "give one of them")
    if files := sorted(where.glob("*.npy")):
        return npz.open_folder(where, files)
    if (where / "saved_model.pb").exists():
        raise CheckpointError(
            where,
            "the report does not read TensorFlow's SavedModel",
            "save the weights as .npz: numpy.savez('model.npz', **{v.name: v.numpy() for v in model.variables})",
        )
    raise CheckpointError(
        where, "neither an Orbax checkpoint nor a folder with a file of weights", f"the report reads: {READABLE}"
    )
