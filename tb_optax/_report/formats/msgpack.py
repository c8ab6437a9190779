"""Flax's msgpack (`flax.serialization.to_bytes`): maps of maps, with arrays as extensions, each read by itself.

One pass notes where each array lies; the format's own package does all of the parsing.
"""

import functools
import math
import mmap
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, Source, shape_of

_WAY_OUT = "write it again with flax.serialization.to_bytes"
_ARRAY = 1  # Flax's code for an array among msgpack's extensions
_CHUNKED = "__msgpack_chunked_array__"  # what Flax makes of an array of more than 2^30 bytes
_MOST_BYTES = 2**31
_DEEPEST = 64


class _Place(NamedTuple):
    """Where an array lies: the pieces that make it, in order, each with its start, its end and its header's shape."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]


class _DamagedError(Exception):
    pass


def open_msgpack(where: FilePath) -> Source:
    import msgpack

    places: dict[Path, _Place] = {}
    unreadable: dict[Path, str] = {}
    try:
        with where.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            unpacker = msgpack.Unpacker(
                file,
                strict_map_key=False,
                max_buffer_size=_MOST_BYTES,
                ext_hook=lambda code, data: msgpack.ExtType(code, data),
            )
            if not _is_map(data, 0):
                raise _DamagedError("it does not begin with a map of names")
            for path, found in _arrays(unpacker, data, (), 0):
                if isinstance(found, str):
                    unreadable[path] = found
                elif path in places:
                    raise _DamagedError(f"{path!r} stands twice in it")
                else:
                    places[path] = found
            if unpacker.tell() != len(data):
                raise _DamagedError("more follows its end")
    except (_DamagedError, ValueError, TypeError, OverflowError, msgpack.UnpackException, RecursionError) as error:
        raise CheckpointError(where, f"not a valid msgpack file of Flax ({_words(error)})", _WAY_OUT) from error
    shapes = {path: shape_of(place.shape, place.dtype) for path, place in places.items()}
    return Source(str(where), "msgpack", shapes, functools.partial(_read, where, places), unreadable)


def _arrays(unpacker: Any, data: mmap.mmap, keys: tuple[str, ...], depth: int) -> Iterator[tuple[Path, _Place | str]]:
    """The arrays of the map that comes next."""
    if depth > _DEEPEST:
        raise _DamagedError(f"maps in maps, more than {_DEEPEST} deep")
    chunks: dict[str, Any] = {}
    for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        if not isinstance(key, (str, int)):
            raise _DamagedError(f"a name that is not text, but of type {type(key).__name__}")
        path, start = (*keys, str(key)), unpacker.tell()
        if keys and _CHUNKED in chunks:
            chunks[str(key)] = _chunk(unpacker, data)
        elif key == _CHUNKED:
            chunks[_CHUNKED] = unpacker.unpack()
        elif _is_map(data, start):
            yield from _arrays(unpacker, data, path, depth + 1)
        else:
            unpacker.skip()
            if _is_extension(data, start):
                found = _place(data, start, unpacker.tell())
                if found is not None:
                    yield "/".join(path), found
    if chunks:
        yield "/".join(keys), _joined(chunks)


def _chunk(unpacker: Any, data: mmap.mmap) -> Any:
    """What belongs to a chunked array: its shape (a map of sizes), or its chunks by number."""
    start = unpacker.tell()
    if not _is_map(data, start):
        return unpacker.unpack()
    found = {}
    for _ in range(unpacker.read_map_header()):
        key, start = str(unpacker.unpack()), unpacker.tell()
        if _is_extension(data, start):
            unpacker.skip()
            found[key] = _place(data, start, unpacker.tell())
        else:
            found[key] = unpacker.unpack()
    return found


def _joined(chunks: dict[str, Any]) -> _Place:
    shape, parts = chunks.get("shape"), chunks.get("chunks")
    if not isinstance(shape, dict) or not isinstance(parts, dict) or not parts:
        raise _DamagedError("a chunked array without its shape or its chunks")
    sizes: tuple[Any, ...] = tuple(shape.get(str(axis)) for axis in range(len(shape)))
    places = [place for number in range(len(parts)) if isinstance(place := parts.get(str(number)), _Place)]
    if not all(isinstance(size, int) and size >= 0 for size in sizes) or len(places) < len(parts):
        raise _DamagedError("a chunked array whose shape or chunks are no such")
    if sum(math.prod(place.shape) for place in places) != math.prod(sizes) or len({place.dtype for place in places}) > 1:
        raise _DamagedError("a chunked array whose chunks do not fill it")
    return _Place(sizes, places[0].dtype, tuple(piece for place in places for piece in place.pieces))


def _place(data: mmap.mmap, start: int, stop: int) -> _Place | str | None:
    """What an extension holds; None if it is no array."""
    header = {0xC7: 2, 0xC8: 3, 0xC9: 5}.get(data[start], 1)
    if data[start + header] != _ARRAY:
        return None
    shape, dtype, content = _unpacked(data[start + header + 1 : stop])
    if dtype is None:
        return "its dtype is not known"
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise _DamagedError(f"an array of shape {shape} that has not that many bytes")
    return _Place(shape, dtype, ((start + header + 1, stop),))


def _unpacked(extension: bytes) -> tuple[tuple[int, ...], np.dtype | None, bytes]:
    """Shape, dtype and bytes of an array, as Flax packs them."""
    import msgpack

    shape, name, content = msgpack.unpackb(extension, raw=True)
    if not isinstance(content, bytes) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _DamagedError("an array without a shape or content")
    try:
        name = name.decode() if isinstance(name, bytes) else name
        dtype = np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)
    except (TypeError, ValueError, AttributeError):
        dtype = None
    return tuple(shape), None if dtype is None or dtype.hasobject else dtype, content


def _read(where: FilePath, places: dict[Path, _Place], path: Path) -> np.ndarray:
    place, pieces = places[path], []
    with where.open("rb") as file:
        for start, stop in place.pieces:
            file.seek(start)
            _, _, content = _unpacked(file.read(stop - start))
            pieces.append(np.frombuffer(content, place.dtype))
    return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(place.shape)


def _is_map(data: mmap.mmap, place: int) -> bool:
    return place < len(data) and (0x80 <= data[place] <= 0x8F or data[place] in (0xDE, 0xDF))


def _is_extension(data: mmap.mmap, place: int) -> bool:
    return place < len(data) and (0xC7 <= data[place] <= 0xC9 or 0xD4 <= data[place] <= 0xD8)


def _words(error: Exception) -> str:
    return str(error) or {"OutOfData": "it ends too soon"}.get(type(error).__name__, type(error).__name__)
