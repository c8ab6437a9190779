"""HDF5, as Keras writes it (`.h5`, `.weights.h5`, and within `.keras`), by h5py."""

import contextlib
import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, Source, one_line, shape_of

IN_KERAS = "model.weights.h5"
_WAY_OUT = "get or save the file again"
_MOST_GROWTH, _ALWAYS_ALLOWED = 100, 2**26  # as in `npz`


def open_hdf5(where: FilePath) -> Source:
    return _opened(where, "HDF5", functools.partial(where.open, "rb"))


def open_keras(where: FilePath) -> Source:
    """Keras 3's archive, in which an HDF5 file has the weights."""
    return _opened(where, "Keras", functools.partial(_open_in_archive, where))


def _opened(where: FilePath, name: str, open_file: Callable[[], Any]) -> Source:
    shapes: dict[Path, jax.ShapeDtypeStruct] = {}
    unreadable: dict[Path, str] = {}
    layouts: set[str] = set()

    def note(path: str, item: Any) -> None:
        if "backend" in item.attrs or "keras_version" in item.attrs or "vars" in path.split("/"):
            layouts.add("jax")  # Keras has a convolution's outputs last, whatever computes it.
        if not hasattr(item, "shape"):  # A group.
            return
        if reason := _why_not(item):
            unreadable[path] = reason
        else:
            shapes[path] = shape_of(item.shape, item.dtype.newbyteorder("="))

    with _as_checkpoint_error(where, "not a valid HDF5 file"), _hdf5(open_file) as opened:
        note("", opened)
        opened.visititems(note)  # Follows no links, so none leads out of the file.
    layout = "jax" if layouts else None
    return Source(str(where), name, shapes, functools.partial(_read, where, open_file), unreadable, layout=layout)


def _why_not(dataset: Any) -> str:
    """Why a dataset cannot be read; else nothing."""
    if dataset.is_virtual or dataset.external:
        return "its numbers are in another file"
    if dataset.shape is None:
        return "it is empty"
    if dataset.dtype.kind not in "biufc" or dataset.dtype.itemsize > (16 if dataset.dtype.kind == "c" else 8):
        return f"its dtype, {one_line(str(dataset.dtype), 60)}, is not known"
    size, packed = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if size > _MOST_GROWTH * packed + (_ALWAYS_ALLOWED if packed else 0):
        return f"of shape {dataset.shape}, it takes {size:,} bytes and has {packed:,} in the file"
    return ""


def _read(where: FilePath, open_file: Callable[[], Any], path: Path) -> np.ndarray:
    with _as_checkpoint_error(where, f"{path!r} is damaged"), _hdf5(open_file) as opened:
        array = opened[path][()]
        return array.astype(array.dtype.newbyteorder("="), copy=False)


@contextlib.contextmanager
def _hdf5(open_file: Callable[[], Any]) -> Iterator[Any]:
    import h5py

    with open_file() as file, h5py.File(file, "r") as opened:
        yield opened


@contextlib.contextmanager
def _as_checkpoint_error(where: FilePath, what: str) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:  # HDF5's library and h5py raise anything.
        raise CheckpointError(where, f"{what} ({error})", _WAY_OUT) from error


def _open_in_archive(where: FilePath) -> io.BufferedReader:
    """The HDF5 file of an archive; Keras stores it uncompressed, so that it can be read at any place."""
    with zipfile.ZipFile(where) as archive:
        info = archive.getinfo(IN_KERAS)
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(where, f"{IN_KERAS} is compressed in it, which Keras does not do", f"unpack {IN_KERAS}")
    file = where.open("rb")
    file.seek(info.header_offset)
    header = file.read(30)
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return io.BufferedReader(_Window(file, start, info.file_size))


class _Window(io.RawIOBase):
    """A range of a file, as a file."""

    def __init__(self, file: io.BufferedReader, start: int, size: int):
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence] + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._place)
        content = self._file.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
