"""The formats of checkpoints that can be read, a module each, and the one of a given path."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path as FilePath

from tb_optax._report.formats import msgpack, npz, orbax, safetensors
from tb_optax._report.source import CheckpointError, Source, printable

_ZIP = b"PK\x03\x04"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_OPENED_BY_SUFFIX: dict[str, Callable[[FilePath], Source]] = {
    ".npz": npz.open_npz,
    ".safetensors": safetensors.open_safetensors,
    ".safetensors.index.json": safetensors.open_index,
    ".msgpack": msgpack.open_msgpack,
}
READABLE = "Orbax directories, .safetensors (or their .index.json), Flax .msgpack and .npz files"


def open_checkpoint(path: str | os.PathLike[str]) -> Source:
    """The arrays of a checkpoint, of which nothing but names, shapes and dtypes has been read.

    The format is told by the file's first bytes or the directory's content, and where these say nothing, by the name.

    Raises:
      CheckpointError: it is not there, damaged, or of no format that is read.
    """
    where = FilePath(path)
    try:
        opened = _opened(where)
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(where, f"{error.name or error} is not installed", 'pip install "tb_optax[report]"') from error
    except OSError as error:
        raise CheckpointError(where, error.strerror or str(error), "give a path that can be read") from error
    if not opened.shapes:
        others = f" ({len(opened.unreadable)} that cannot be read)" if opened.unreadable else ""
        raise CheckpointError(where, f"it holds no arrays{others}", "give a checkpoint of a network's weights")
    return opened


def _opened(where: FilePath) -> Source:
    if where.is_dir():
        return _opened_directory(where)
    if where.exists() and not where.is_file():  # A pipe would be waited for.
        raise CheckpointError(where, "it is no file", f"give one of: {READABLE}")
    with where.open("rb") as file:  # Raises what is wrong with a path that is no file.
        start = file.read(16)
    if _is_pickle(where, start):
        raise CheckpointError(
            where,
            "it is a pickle, which could run any code when it is read",
            "save the weights as safetensors: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        )
    for suffix, opener in _OPENED_BY_SUFFIX.items():
        if where.name.lower().endswith(suffix):
            return opener(where)
    if start[:4] == _ZIP:
        return npz.open_npz(where)
    if start[8:9] == b"{":
        return safetensors.open_safetensors(where)
    if start[:1] and (0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return msgpack.open_msgpack(where)
    if where.suffix == ".eqx":
        raise CheckpointError(where, "an Equinox file has no names of arrays", "save the weights with Orbax or as .npz")
    raise CheckpointError(where, "it is of no format that is read", f"give one of: {READABLE}")


def _is_pickle(where: FilePath, start: bytes) -> bool:
    """By its first bytes, by what a zip of PyTorch holds, or by its suffix."""
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{":
        return True
    if start[:4] == _ZIP:
        try:
            with zipfile.ZipFile(where) as archive:
                return any(name.endswith("data.pkl") for name in archive.namelist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return False
    return where.suffix.lower() in _PICKLES


def _opened_directory(where: FilePath) -> Source:
    if (found := orbax.find_checkpoint(where)) is not None:
        return orbax.open_orbax(found)
    indices = sorted(where.glob("*.safetensors.index.json"))
    files = indices or sorted(where.glob("*.safetensors"))
    if len(files) == 1:
        return _opened(files[0])
    if files:
        names = ", ".join(printable(file.name) for file in files[:5])
        raise CheckpointError(where, f"it holds {len(files)} safetensors files ({names})", "give one of them")
    raise CheckpointError(where, "this directory is no Orbax checkpoint", f"give one of: {READABLE}")
