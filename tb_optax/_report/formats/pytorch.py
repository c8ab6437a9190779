"""PyTorch's files, read without PyTorch and without running anything: the zip archive of `torch.save`, the older stream of
pickles, and TorchScript.

`pickled` reads the pickle as data, and `tensors` knows what PyTorch puts there. A tensor is a view of a storage, by offset,
shape and strides; a storage is a range of the file. Both are checked against the file before an array is made. Each array is
read when it is asked for.
"""

import functools
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import jax
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.formats.found import tensors_by_path
from tb_optax._report.formats.index import files_of_index
from tb_optax._report.formats.pickled import Bytes, Machine, PickleError
from tb_optax._report.formats.tensors import LARGEST, Storage, Tensor, call, cannot_be_read, storage_of
from tb_optax._report.source import CheckpointError, Source, printable, shape_of

_WAY_OUT = "get or save the file again with torch.save"
_MAGIC_NUMBER, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # The first two pickles of the older stream.


class _Range(NamedTuple):
    """A storage's bytes in the file, with their checksum, or 0 if there is none."""

    start: int
    stop: int
    checksum: int = 0


class _Place(NamedTuple):
    """Where a tensor lies: the first byte and how many, and what to make of them."""

    start: int
    size: int
    dtype: np.dtype
    strides: tuple[int, ...]
    big_endian: bool
    checksum: int


def open_zip(where: FilePath) -> Source:
    """The arrays of the archive that `torch.save` writes, or of a TorchScript."""
    return _opened(where, _read_zip)


def open_stream(where: FilePath) -> Source:
    """The arrays of what `torch.save` wrote before 1.6: pickles, one after another, then the storages."""
    return _opened(where, _read_stream)


def open_index(where: FilePath) -> Source:
    """The arrays of the files that a `pytorch_model.bin.index.json` names."""
    shapes, unreadable, reads = {}, {}, {}
    for file, wanted in files_of_index(where, "get all files of the checkpoint").items():
        with file.open("rb") as opened:
            source = (open_zip if opened.read(4) == b"PK\x03\x04" else open_stream)(file)
        if missing := sorted(wanted - set(source.shapes) - set(source.unreadable)):
            raise CheckpointError(where, f"{missing[0]!r} is not in {printable(file.name)}", _WAY_OUT)
        shapes |= {path: source.shapes[path] for path in wanted & set(source.shapes)}
        reads |= {path: source.read for path in wanted}
        unreadable |= {path: source.unreadable[path] for path in wanted & set(source.unreadable)}
    read = lambda path: reads[path](path)
    return Source(str(where), "PyTorch", dict(sorted(shapes.items())), read, unreadable, layout="torch")


def is_stream(start: bytes) -> bool:
    """Whether a file begins as the older stream does: with a pickle of PyTorch's magic number."""
    magic = _MAGIC_NUMBER.to_bytes(10, "little")
    return magic in start or str(_MAGIC_NUMBER).encode() in start


def _opened(where: FilePath, read_from: Any) -> Source:
    shapes: dict[Path, jax.ShapeDtypeStruct] = {}
    places: dict[Path, _Place] = {}
    try:
        with where.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            root, storages, big_endian = read_from(where, data)
            tensors, unreadable = tensors_by_path(root, Tensor)
            for path, tensor in tensors.items():
                if reason := tensor.reason or cannot_be_read(tensor):
                    unreadable[path] = reason
                else:
                    places[path] = _place(path, tensor, storages, big_endian)
                    shapes[path] = shape_of(tensor.shape, tensor.dtype)
    except (PickleError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        what = "truncated or damaged" if isinstance(error, zipfile.BadZipFile) else "not a valid PyTorch file"
        raise CheckpointError(where, f"{what} ({error})", _WAY_OUT) from error
    read = functools.partial(_read, where, places, shapes)
    return Source(str(where), "PyTorch", shapes, read, unreadable, layout="torch")


def _read_zip(where: FilePath, data: mmap.mmap) -> tuple[Any, dict[str, _Range], bool]:
    """The root of the pickle, the byte range of each storage, and whether its bytes are the other way round."""
    with zipfile.ZipFile(where) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise PickleError("two members of one name")
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleError(f"{len(pickles)} members called data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    inside = {name.removeprefix(folder): info for name, info in members.items() if name.startswith(folder)}
    start, stop, checksum = _range(data, inside["data.pkl"])
    if checksum and zlib.crc32(data[start:stop]) != checksum:
        raise PickleError("data.pkl does not match its checksum")
    root = Machine(call, storage_of).load(Bytes(data, start, stop))
    storages = {name.removeprefix("data/"): _range(data, info) for name, info in inside.items() if name.startswith("data/")}
    start, stop, _ = _range(data, inside["byteorder"]) if "byteorder" in inside else _Range(0, 0)
    return root, storages, data[start:stop].strip() == b"big"


def _range(data: mmap.mmap, info: zipfile.ZipInfo) -> _Range:
    """Where the content of a member lies."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
        raise PickleError("a compressed or encrypted member, which torch.save does not write")
    name_length, extra_length = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
    start = info.header_offset + 30 + name_length + extra_length
    if info.header_offset < 0 or start + info.file_size > len(data):
        raise PickleError(f"{printable(info.filename)} goes beyond its end")
    return _Range(start, start + info.file_size, info.CRC)


def _read_stream(where: FilePath, data: mmap.mmap) -> tuple[Any, dict[str, _Range], bool]:
    """As `_read_zip`. The bytes of storages are little-endian whatever machine wrote them."""
    known: dict[str, Storage] = {}

    def noted(identifier: Any) -> Any:
        found = storage_of(identifier)
        if isinstance(found, Storage):
            whole = found._replace(first=0, length=identifier[4])
            if known.setdefault(found.key, whole) != whole:
                raise PickleError("a storage of two sizes")
        return found

    source, machine = Bytes(data, 0, len(data)), Machine(call, noted)
    if machine.load(source) != _MAGIC_NUMBER or machine.load(source) != _PROTOCOL:
        raise PickleError("it does not begin with PyTorch's magic number")
    machine.load(source)  # The machine that wrote it.
    root, keys = machine.load(source), machine.load(source)
    ranges: dict[str, _Range] = {}
    start = source.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in known or key in ranges:
            raise PickleError("a storage that no tensor has")
        (count,) = struct.unpack("<q", data[start : start + 8])
        stop = start + 8 + count * known[key].dtype.itemsize
        if count != known[key].length or stop > len(data):
            raise PickleError(f"a storage of {count:,} numbers, which exceeds the file or differs from its declared size")
        ranges[key], start = _Range(start + 8, stop), stop
    return root, ranges, False


def _place(path: Path, tensor: Tensor, storages: Mapping[str, _Range], big_endian: bool) -> _Place:
    """Where a tensor lies in the file, once all of it is known to lie within its storage."""
    assert tensor.storage is not None and tensor.dtype is not None
    width, storage = tensor.dtype.itemsize, tensor.storage
    if storage.key not in storages:
        raise PickleError(f"the storage of {printable(path)} is missing")
    start, stop, checksum = storages[storage.key]
    first = start + storage.first * storage.dtype.itemsize
    after = first + storage.length * storage.dtype.itemsize
    # Where an axis has one place, its stride says nothing; NumPy takes it for bytes all the same.
    strides = tuple(width * stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    empty = 0 in tensor.shape
    span = 0 if empty else width + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    begin = first + tensor.offset * width
    if after > stop or (not empty and begin + span > after):
        raise PickleError(f"{printable(path)} goes beyond its storage")
    if math.prod(size for size in tensor.shape if size) * width >= LARGEST:
        raise PickleError(f"{printable(path)} is of shape {tensor.shape}")
    whole = (begin, begin + span) == (start, stop)  # Of a part, the checksum says nothing.
    return _Place(first if empty else begin, span, tensor.dtype, strides, big_endian, checksum if whole else 0)


def _read(
    where: FilePath, places: Mapping[Path, _Place], shapes: Mapping[Path, jax.ShapeDtypeStruct], path: Path
) -> np.ndarray:
    place, shape = places[path], shapes[path].shape
    with where.open("rb") as file:
        file.seek(place.start)
        content = file.read(place.size)
    if len(content) < place.size:
        raise CheckpointError(where, f"{path!r} is damaged (the file was truncated)", _WAY_OUT)
    if place.checksum and zlib.crc32(content) != place.checksum:
        raise CheckpointError(where, f"{path!r} is damaged (it does not match its checksum)", _WAY_OUT)
    if not place.size:
        return np.zeros(shape, place.dtype)
    part = np.dtype(place.dtype).itemsize // (2 if place.dtype.kind == "c" else 1)
    numbers = np.frombuffer(content, f"{'>' if place.big_endian else '<'}u{part}")
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False).view(place.dtype)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers, shape, place.strides)).reshape(shape)
