"""NumPy's `.npy`, folders of them, and `.npz`: only the headers are read at first. No pickle, ever."""

import functools
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import IO, Any

import jax
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, Source, printable, shape_of

_WAY_OUT = "write it again with numpy.savez"
# What zlib can shrink at most; a zip that claims more is made to fill the memory.
_MOST_COMPRESSED = 1040
# Of a whole archive. Weights shrink by less than 2, pruned ones by 20; masks and zeros by 1,000.
_MOST_GROWTH, _ALWAYS_ALLOWED = 100, 2**26


def open_npz(where: FilePath) -> Source:
    shapes: dict[Path, jax.ShapeDtypeStruct] = {}
    unreadable: dict[Path, str] = {}
    try:
        with zipfile.ZipFile(where) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            _check_growth(sum(info.file_size for info in infos), where.stat().st_size)
            members: dict[Path, zipfile.ZipInfo] = {}
            for info in infos:
                path = info.filename.removesuffix(".npy")
                if path in members:
                    raise ValueError(f"two arrays are called {path!r}")
                members[path] = info
                found = _header_of_member(archive, info)
                if isinstance(found, str):
                    unreadable[path] = found
                else:
                    shapes[path] = found
    except Exception as error:  # The parsers of zips and of arrays' headers raise anything.
        raise CheckpointError(where, f"not a valid .npz file ({error})", _WAY_OUT) from error
    names = {path: info.filename for path, info in members.items()}
    return Source(str(where), "npz", shapes, functools.partial(_read_member, where, names), unreadable)


def open_npy(where: FilePath) -> Source:
    """The one array of a file, by the file's name."""
    return _of_files(where, {printable(where.name).removesuffix(".npy"): where})


def open_folder(where: FilePath, files: list[FilePath]) -> Source:
    """The arrays of `.npy` files, by their names."""
    return _of_files(where, {printable(file.name).removesuffix(".npy"): file for file in files})


def _of_files(where: FilePath, files: Mapping[Path, FilePath]) -> Source:
    shapes: dict[Path, jax.ShapeDtypeStruct] = {}
    unreadable: dict[Path, str] = {}
    for path, file in files.items():
        try:
            with file.open("rb") as opened:
                found = _header(opened, file.stat().st_size, file.name)
        except OSError:
            raise
        except Exception as error:  # As above.
            raise CheckpointError(file, f"not a valid .npy file ({error})", "write it again with numpy.save") from error
        if isinstance(found, str):
            unreadable[path] = found
        else:
            shapes[path] = found
    return Source(str(where), "npy", shapes, functools.partial(_read_file, files), unreadable)


def _check_growth(unpacked: int, packed: int) -> None:
    if unpacked > _MOST_GROWTH * packed + _ALWAYS_ALLOWED:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, {unpacked // max(packed, 1):,} times its size")


def _header_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> jax.ShapeDtypeStruct | str:
    if info.flag_bits & 1:
        return "it is encrypted"
    if info.file_size > _MOST_COMPRESSED * (info.compress_size + 1):
        raise ValueError(f"{info.filename!r} declares {info.file_size:,} bytes but has fewer")
    with archive.open(info) as file:
        return _header(file, info.file_size, info.filename)


def _header(file: IO[bytes], file_size: int, name: str) -> jax.ShapeDtypeStruct | str:
    """Shape and dtype, or why the array cannot be read."""
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        return "not an .npy file"
    shape, dtype = _shape_and_dtype(file, version)
    if dtype.hasobject:
        return "it holds Python objects, which only a pickle could give back"
    if dtype.kind == "V":
        return f"NumPy does not know its dtype any more ({dtype}); save it as float32"
    if math.prod(shape) * dtype.itemsize != file_size - file.tell():
        raise ValueError(f"{name!r} declares the shape {shape} but has fewer bytes")
    if dtype.kind in "fc" and dtype.itemsize > {"f": 8, "c": 16}[dtype.kind]:
        return f"its dtype, {dtype}, differs from machine to machine; save it as float64"
    return shape_of(shape, dtype.newbyteorder("="))


def _shape_and_dtype(file: IO[bytes], version: tuple[int, int]) -> tuple[tuple[int, ...], np.dtype]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"unknown version {version} of the .npy format")
    shape, _, dtype = read(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape of {shape}")
    return shape, dtype


def _read_member(where: FilePath, names: Mapping[Path, str], path: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(where) as archive, archive.open(names[path]) as file:
            return _array(io.BufferedReader(file))  # pyright: ignore[reportArgumentType]
    except Exception as error:  # As above.
        raise CheckpointError(where, f"{path!r} is damaged ({error})", _WAY_OUT) from error


def _read_file(files: Mapping[Path, FilePath], path: Path) -> np.ndarray:
    try:
        with files[path].open("rb") as file:
            return _array(file)
    except Exception as error:  # As above.
        raise CheckpointError(files[path], f"it is damaged ({error})", "write it again with numpy.save") from error


def _array(file: Any) -> np.ndarray:
    """In the byte order of this machine, the only one that JAX reads."""
    array = np.lib.format.read_array(file, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
