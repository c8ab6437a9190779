"""The tensors in PyTorch's pickles: what its own functions would make, as data, once it is known to make sense."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tb_optax._report.formats import pickled
from tb_optax._report.formats.pickled import Global, PickleError

LARGEST = 2**62
_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": ml_dtypes.bfloat16},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8"},
    **{"QInt8": "int8", "QUInt8": "uint8", "QInt32": "int32", "QUInt4x2": "uint8", "QUInt2x4": "uint8"},
}
_DTYPES = {
    **{name: name for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")},
    **{name: name for name in ("uint16", "uint32", "uint64", "complex64", "complex128")},
    "bfloat16": ml_dtypes.bfloat16,
}
_TENSORS = frozenset(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
_WRAPPED = frozenset(f"torch._utils._rebuild_parameter{kind}" for kind in ("", "_with_state"))
_SUBCLASSES = frozenset(
    f"{module}._rebuild_from_type{version}" for module in ("torch._tensor", "torch.tensor") for version in ("", "_v2")
)
_DICTS = frozenset(("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"))
_MOST_AXES = 32  # NumPy's, before version 2
_MOST_REPEATED = 2**20  # bytes of a tensor whose strides repeat the numbers of its storage


class Storage(NamedTuple):
    """Numbers in the file: `length` of them, from the one of number `first` on in the storage called `key`."""

    key: str
    dtype: np.dtype
    first: int
    length: int


class Tensor(NamedTuple):
    """A view of a storage, or the reason why it cannot be read."""

    storage: Storage | None
    dtype: np.dtype | None
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    reason: str = ""


def storage_of(identifier: Any) -> Any:
    """The storage that a persistent id names: type, key, device, how many numbers, and of a view, which of them."""
    if not isinstance(identifier, tuple) or not 5 <= len(identifier) <= 6 or identifier[0] not in ("storage", b"storage"):
        return identifier[1] if isinstance(identifier, tuple) and len(identifier) > 1 else None  # A module's source.
    kind, key, _, count, *view = identifier[1:]
    name = kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Global) else ""
    if name not in _STORAGES or not kind.name.startswith("torch."):
        raise PickleError(f"a storage of an unknown type, {kind.name[:100] if isinstance(kind, Global) else 'none'}")
    if not isinstance(key, str) or not _are_counts((count,)):
        raise PickleError("a storage without its key or size")
    dtype, first = np.dtype(_STORAGES[name]), 0
    if view and view[0] is not None:
        if not isinstance(view[0], tuple) or len(view[0]) != 3 or not _are_counts(view[0][1:]):
            raise PickleError("a view of a storage without offset and size")
        first, own = view[0][1:]
        if first + own > count:
            raise PickleError("a view that goes beyond its storage")
        count = own
    return Storage(key, dtype, first, count)


def call(name: str, arguments: tuple[Any, ...]) -> Any:
    """What PyTorch's own functions would give: tensors, and what wraps them."""
    if name in _DICTS:
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else ()
        return pickled.Mapping([(pair[0], pair[1]) for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2])
    if name in _TENSORS:
        return _tensor(name, arguments)
    if name in _WRAPPED or name == "torch.Size":
        return arguments[0] if arguments else NotImplemented
    if name in _SUBCLASSES and len(arguments) > 2 and isinstance(arguments[0], Global) and isinstance(arguments[2], tuple):
        function, parts = arguments[0].name, arguments[2]
        return call(function, parts) if function not in _SUBCLASSES else NotImplemented
    if name == "torch._utils._rebuild_qtensor":
        return Tensor(None, None, 0, (), (), "quantized; give a checkpoint with floating-point weights")
    if name.startswith("torch._utils._rebuild_"):
        kind = name.removeprefix("torch._utils._rebuild_").replace("_", " ")
        return Tensor(None, None, 0, (), (), f"PyTorch's {kind[:60]} cannot be read; save a dense tensor")
    return NotImplemented


def cannot_be_read(tensor: Tensor) -> str:
    """Why a tensor that its storage may hold is left out; else nothing."""
    assert tensor.storage is not None and tensor.dtype is not None
    size = math.prod(tensor.shape) * tensor.dtype.itemsize
    own = tensor.storage.length * tensor.storage.dtype.itemsize
    if size > max(own, _MOST_REPEATED):
        return f"of shape {tensor.shape}, it repeats the {own:,} bytes of its storage; save it after .contiguous()"
    return ""


def _tensor(name: str, arguments: tuple[Any, ...]) -> Tensor:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise PickleError("a tensor without a storage")
    storage, offset, shape, strides, *more = arguments
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or not len(shape) == len(strides) <= _MOST_AXES:
        raise PickleError(f"a tensor without its shape or strides, or of more than {_MOST_AXES} axes")
    if not _are_counts((offset, *shape, *strides)):
        raise PickleError("a tensor whose offset, shape or strides are negative or not integers")
    dtype, metadata = storage.dtype, more[2:3]
    if name.endswith("_v3"):
        kind = more[2].name.removeprefix("torch.") if len(more) > 2 and isinstance(more[2], Global) else ""
        if kind not in _DTYPES:
            return Tensor(None, None, 0, (), (), f"its dtype, {kind[:60]}, is not known")
        dtype, metadata = np.dtype(_DTYPES[kind]), more[3:4]
    if metadata and isinstance(metadata[0], pickled.Mapping) and metadata[0].pairs:
        return Tensor(None, None, 0, (), (), "PyTorch conjugates or negates it on reading; save it with .resolve_conj()")
    return Tensor(storage, dtype, offset, shape, strides)


def _are_counts(numbers: Iterable[Any]) -> bool:
    return all(type(number) is int and 0 <= number < LARGEST for number in numbers)
