"""Writes PyTorch's two formats by hand, opcode by opcode, right or wrong, without PyTorch."""

import io
import struct
import zipfile

import ml_dtypes
import numpy as np

_KINDS = {np.dtype(np.float32): "Float", np.dtype(np.float64): "Double", np.dtype(np.float16): "Half"}
_KINDS |= {np.dtype(ml_dtypes.bfloat16): "BFloat16", np.dtype(np.int64): "Long", np.dtype(np.int8): "Char"}
MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


class Opcodes(bytes):
    """A part of a pickle that leaves one value on the stack."""


def opcodes(value):
    """A value of protocol 2."""
    match value:
        case Opcodes():
            return value
        case None:
            return Opcodes(b"N")
        case bool():
            return Opcodes(b"\x88" if value else b"\x89")
        case int():
            size = value.bit_length() // 8 + 1
            return Opcodes(b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True))
        case str():
            return Opcodes(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        case tuple():
            return Opcodes(b"(" + b"".join(map(opcodes, value)) + b"t")
        case list():
            return Opcodes(b"](" + b"".join(map(opcodes, value)) + b"e")
        case dict():
            return Opcodes(b"}(" + b"".join(opcodes(part) for pair in value.items() for part in pair) + b"u")
    raise TypeError(value)


def name_of(name):
    """A global."""
    module, _, own = name.rpartition(".")
    return Opcodes(b"c" + f"{module}\n{own}\n".encode())


def call(name, *arguments):
    return Opcodes(name_of(name) + opcodes(arguments) + b"R")


def storage(key, kind, count, view=()):
    return Opcodes(opcodes(("storage", name_of(f"torch.{kind}Storage"), key, "cpu", count, *view)) + b"Q")


def view(key, kind, count, offset, shape, strides, extra=()):
    return call("torch._utils._rebuild_tensor_v2", storage(key, kind, count, extra), offset, shape, strides, False, None)


class Writer:
    """Collects storages while tensors are made. A key in the stream's format needs a view's place too."""

    def __init__(self, stream=False):
        self.stream, self.storages, self._extra = stream, {}, (None,) if stream else ()

    def tensor(self, array, **other):
        """A tensor in a storage of its own; shape, strides and offset may be others than the array's, in numbers."""
        key = str(len(self.storages))
        self.storages[key] = array
        shape = other.get("shape", array.shape)
        strides = other.get(
            "strides", tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
        )
        return self.of(key, other.get("offset", 0), shape, strides)

    def of(self, key, offset, shape, strides):
        array = self.storages[key]
        return view(key, _KINDS[array.dtype], array.size, offset, shape, strides, self._extra)

    def file(self, root, **options):
        contents = {key: np.ascontiguousarray(array).tobytes() for key, array in self.storages.items()}
        if self.stream:
            return stream(root, {key: (self.storages[key].size, content) for key, content in contents.items()})
        return archive(root, contents, **options)


def archive(root, storages, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    """What `torch.save` writes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        written.writestr("model/data.pkl", b"\x80\x02" + opcodes(root) + b".")
        written.writestr("model/byteorder", byteorder)
        for key, content in storages.items():
            written.writestr(f"model/data/{key}", content)
        written.writestr("model/version", b"3\n")
    return file.getvalue()


def stream(root, storages):
    """What it wrote before version 1.6: `storages` has the count and the bytes of each."""
    pickles = [MAGIC, opcodes(1001), opcodes({"little_endian": True}), opcodes(root), opcodes(list(storages))]
    begun = b"".join(b"\x80\x02" + each + b"." for each in pickles)
    return begun + b"".join(struct.pack("<q", count) + content for count, content in storages.values())
