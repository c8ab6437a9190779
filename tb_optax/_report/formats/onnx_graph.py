"""ONNX, by its own package: the initializers of the graph, and constants in it."""

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import jax
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, Source, printable, shape_of

_WAY_OUT = "export the model again"
_RECURRENT = ("LSTM", "GRU", "RNN")  # Their weights have a leading axis for the directions.
# `find_layers` takes axes above this for no window, and would take the first two axes for one.
_LARGEST_WINDOW = 31


class _Place(NamedTuple):
    """A tensor, which direction of it, and the range of another file that holds it, if one does."""

    tensor: Any
    direction: int | None
    outside: tuple[FilePath, int, int] | None


def open_onnx(where: FilePath) -> Source:
    onnx = _package()
    try:
        with where.open("rb") as file:
            graph = onnx.load_model_from_string(file.read()).graph
        if not graph.node and not graph.initializer:
            raise ValueError("it has no graph")
        return _of_graph(where, graph)
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # The parser of protocol buffers raises anything, and gives bytes for damaged text.
        raise CheckpointError(where, f"not a valid ONNX file ({error})", _WAY_OUT) from error


def _package() -> Any:
    import onnx  # pyright: ignore[reportMissingImports] # It is in an extra that the tests do without.

    return onnx


def _of_graph(where: FilePath, graph: Any) -> Source:
    shapes: dict[Path, jax.ShapeDtypeStruct] = {}
    unreadable: dict[Path, str] = {}
    places: dict[Path, _Place] = {}
    recurrent = {name for node in _nodes(graph) if node.op_type in _RECURRENT for name in node.input[1:3]}
    convolved = {name for node in _nodes(graph) if node.op_type.startswith("Conv") for name in node.input[1:2]}
    for name, tensor in _tensors(graph):
        if name in shapes or name in unreadable:
            raise ValueError(f"two arrays are called {name!r}")
        outside, shape = _outside(where, tensor), tuple(tensor.dims)
        found = outside if isinstance(outside, str) else _dtype(tensor, outside)
        if isinstance(found, str) or isinstance(outside, str):
            unreadable[name] = str(found)
        elif tensor.name in convolved and len(shape) > 3 and max(shape[2:]) > _LARGEST_WINDOW:
            unreadable[name] = f"the window of its convolution, {shape[2:]}, has a side above {_LARGEST_WINDOW}"
        elif tensor.name in recurrent and len(shape) == 3 and shape[0] in (1, 2):
            for direction in range(shape[0]):
                own = name if shape[0] == 1 else f"{name}/{('forward', 'reverse')[direction]}"
                shapes[own], places[own] = shape_of(shape[1:], found), _Place(tensor, direction, outside)
        else:
            shapes[name], places[name] = shape_of(shape, found), _Place(tensor, None, outside)
    # A Conv's weight is outputs, inputs, window in every ONNX file.
    return Source(str(where), "ONNX", shapes, functools.partial(_read, where, places), unreadable, layout="torch")


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the branches and loops within it."""
    for node in graph.node:
        yield node
        for _, inner in _subgraphs(node):
            yield from _nodes(inner)


def _subgraphs(node: Any) -> Iterator[tuple[str, Any]]:
    for attribute in node.attribute:
        yield from ((attribute.name, inner) for inner in ([attribute.g] if attribute.HasField("g") else attribute.graphs))


def _tensors(graph: Any, within: str = "") -> Iterator[tuple[Path, Any]]:
    """The initializers and constants by name; those of a branch or a loop are below its name."""
    yield from ((f"{within}{_text(tensor.name)}", tensor) for tensor in graph.initializer)
    for number, node in enumerate(graph.node):
        if node.op_type == "Constant":
            constants = [each.t for each in node.attribute if each.name == "value" and each.t.dims]
            yield from ((f"{within}{_text(node.output[0])}", constant) for constant in constants)
        for name, inner in _subgraphs(node):
            yield from _tensors(inner, f"{within}{_text(node.name) or f'{node.op_type}_{number}'}/{_text(name)}/")


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError("a name that is not text")
    return name


def _dtype(tensor: Any, outside: tuple[FilePath, int, int] | None) -> np.dtype | str:
    """The dtype of a tensor whose numbers are all there; else the reason why it cannot be read."""
    onnx = _package()
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError, ValueError):
        return "its dtype is not known"
    if dtype.kind not in "biufc" and dtype.name != "bfloat16":
        return f"its dtype, {dtype}, is not known"
    if any(size < 0 for size in tensor.dims):
        return "its shape is negative"
    size = math.prod(tensor.dims) * dtype.itemsize
    if outside is not None:
        here = outside[2]
    elif tensor.HasField("raw_data"):
        here = len(tensor.raw_data)
    else:  # Several numbers of 16 bits and less are in an int32 each, a complex one in two.
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        here = len(getattr(tensor, field)) * dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return dtype if here == size else f"of shape {tuple(tensor.dims)}, it takes {size:,} bytes and has {here:,}"


def _outside(where: FilePath, tensor: Any) -> tuple[FilePath, int, int] | str | None:
    """The range of another file that holds a tensor's numbers, or why it cannot be read; None if they are in this one."""
    if tensor.data_location != tensor.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if name != FilePath(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        return f"its numbers are in {printable(name)!r}, which is not a file in its folder"
    file = where.parent / name
    try:
        start, size = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        whole = file.stat().st_size if file.is_file() else -1
    except (ValueError, OSError):
        return "where its numbers are is damaged"
    if whole < 0:
        return f"its numbers are in {printable(name)}, which is not there"
    size = whole - start if size < 0 else size
    return (file, start, size) if 0 <= start <= start + size <= whole else f"it goes beyond {printable(name)}"


def _read(where: FilePath, places: Mapping[Path, _Place], path: Path) -> np.ndarray:
    onnx = _package()
    tensor, direction, outside = places[path]
    try:
        if outside is None:
            array = onnx.numpy_helper.to_array(tensor)
        else:
            file, start, size = outside
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            array = np.fromfile(file, dtype.newbyteorder("<"), size // dtype.itemsize, offset=start)
            array = array.astype(dtype, copy=False).reshape(tuple(tensor.dims))
    except Exception as error:  # As above.
        raise CheckpointError(where, f"{path!r} is damaged ({error})", _WAY_OUT) from error
    return array if direction is None else array[direction]
