"""NumPy's `.npz`: a zip of arrays, of which only the headers are read at first. No pickle, ever."""

import functools
import io
import math
import zipfile
from pathlib import Path as FilePath
from typing import IO

import jax
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, Source, shape_of

_WAY_OUT = "write it again with numpy.savez"
# What zlib can shrink at most; a zip that claims more is made to fill the memory.
_MOST_COMPRESSED = 1040


def open_npz(where: FilePath) -> Source:
    shapes: dict[Path, jax.ShapeDtypeStruct] = {}
    unreadable: dict[Path, str] = {}
    try:
        with zipfile.ZipFile(where) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if not info.is_dir()}
            for path, info in members.items():
                found = _header(archive, info)
                if isinstance(found, str):
                    unreadable[path] = found
                else:
                    shapes[path] = found
    except Exception as error:  # The parsers of zips and of arrays' headers raise anything.
        raise CheckpointError(where, f"it is no whole .npz file ({error})", _WAY_OUT) from error
    names = {path: info.filename for path, info in members.items()}
    return Source(str(where), "npz", shapes, functools.partial(_read, where, names), unreadable)


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> jax.ShapeDtypeStruct | str:
    """Shape and dtype of a member, or why it cannot be read."""
    if info.flag_bits & 1:
        return "it is encrypted"
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
        except ValueError:
            return "it is no .npy file"
        shape, dtype = _shape_and_dtype(file, version)
        if dtype.hasobject:
            return "it holds Python objects, which only a pickle could give back"
        if dtype.kind == "V":
            return f"NumPy does not know its dtype any more ({dtype}); save it as float32"
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - file.tell() or info.file_size > _MOST_COMPRESSED * (info.compress_size + 1):
            raise ValueError(f"{info.filename!r} says that it is of shape {shape}, but has not that many bytes")
    return shape_of(shape, dtype)


def _shape_and_dtype(file: IO[bytes], version: tuple[int, int]) -> tuple[tuple[int, ...], np.dtype]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its version {version} of the .npy format is not known")
    shape, _, dtype = read(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape of {shape}")
    return shape, dtype


def _read(where: FilePath, names: dict[Path, str], path: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(where) as archive, archive.open(names[path]) as file:
            return np.lib.format.read_array(io.BufferedReader(file), allow_pickle=False)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # As above.
        raise CheckpointError(where, f"{path!r} is damaged ({error})", _WAY_OUT) from error
