"""PyTorch's files are read without PyTorch: every array right, and nothing of a file is run."""

import json
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from pytorch_files import MAGIC, Opcodes, Writer, archive, call, name_of, opcodes, storage, stream, view

import tb_optax
from tb_optax._report.formats import open_checkpoint
from tb_optax._report.weights import weights_of

_FORMATS = pytest.mark.parametrize("old", [False, True], ids=["zip", "stream"])


def _array(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _opened(tmp_path, content, name="model.pt"):
    (tmp_path / name).write_bytes(content)
    return open_checkpoint(tmp_path / name)


def _same(source, expected):
    assert set(source.shapes) == set(expected)
    for path, array in expected.items():
        found = source.read(path)
        assert found.dtype == source.shapes[path].dtype == array.dtype
        assert found.shape == source.shapes[path].shape == array.shape
        np.testing.assert_array_equal(found, array)


@_FORMATS
@pytest.mark.parametrize("name", ["model.pt", "model.pth.tar", "pytorch_model.bin", "last.ckpt", "model", "model.npz"])
def test_a_state_dict_is_read_whatever_its_name(tmp_path, old, name):
    writer = Writer(old)
    arrays = {"fc.weight": _array(0, 64, 80), "fc.bias": _array(1, 64), "norm.num_batches_tracked": np.int64(3)}
    arrays = {path: np.asarray(array) for path, array in arrays.items()}
    content = writer.file(call("collections.OrderedDict", [(path, writer.tensor(a)) for path, a in arrays.items()]))
    _same(_opened(tmp_path, content, name), arrays)
    assert [record.layer for record in tb_optax.report(tmp_path / name).records] == ["fc"]


@_FORMATS
def test_arrays_of_each_dtype_stride_and_size_are_read(tmp_path, old):
    writer, base = Writer(old), _array(0, 30, 40)
    tree = {
        "transposed": writer.tensor(base, shape=(40, 30), strides=(1, 40)),
        "same storage": writer.of("0", 45, (5, 7), (80, 3)),
        "half": writer.tensor(_array(1, 3, 4, dtype=np.float16)),
        "bfloat16": writer.tensor(_array(2, 3, 4, dtype=ml_dtypes.bfloat16)),
        "double": writer.tensor(_array(3, 5, dtype=np.float64)),
        "scalar": writer.tensor(np.asarray(np.float32(3))),
        "empty": writer.tensor(np.zeros((0, 5), np.float32)),
        "expanded": writer.tensor(_array(4, 1, 4), shape=(3, 4), strides=(0, 1)),
        "one place": writer.tensor(_array(5, 1, 4), shape=(1, 4), strides=(2**61, 1)),
    }
    expected = {
        "transposed": base.T,
        "same storage": np.lib.stride_tricks.as_strided(base.reshape(-1)[45:], (5, 7), (320, 12)),
        "half": _array(1, 3, 4, dtype=np.float16),
        "bfloat16": _array(2, 3, 4, dtype=ml_dtypes.bfloat16),
        "double": _array(3, 5, dtype=np.float64),
        "scalar": np.asarray(np.float32(3)),
        "empty": np.zeros((0, 5), np.float32),
        "expanded": np.broadcast_to(_array(4, 1, 4), (3, 4)),
        "one place": _array(5, 1, 4),
    }
    _same(_opened(tmp_path, writer.file(tree)), expected)


def test_bytes_the_other_way_round_are_turned(tmp_path):
    array = _array(0, 6, 4)
    content = archive(
        {"w": view("0", "Float", 24, 0, (6, 4), (4, 1))}, {"0": array.astype(">f4").tobytes()}, byteorder=b"big"
    )
    _same(_opened(tmp_path, content), {"w": array})


def test_a_view_of_a_storage_in_an_old_stream(tmp_path):
    array = _array(0, 20)
    root = {"part": view("0", "Float", 20, 1, (2, 3), (3, 1), (("view", 5, 10),))}
    _same(_opened(tmp_path, stream(root, {"0": (20, array.tobytes())})), {"part": array[6:12].reshape(2, 3)})


@_FORMATS
def test_of_a_training_checkpoint_the_weights_are_found(tmp_path, old):
    writer = Writer(old)
    model = {f"net.{number}.weight": _array(number, 64, 64) for number in range(2)}
    lightning = {
        "epoch": 3,
        "state_dict": {path: writer.tensor(array) for path, array in model.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": writer.tensor(_array(5, 64, 64))}}}],
        "hyper_parameters": call("omegaconf.DictConfig", {"a": 1}),
        "callbacks": {"ModelCheckpoint": {"best_model_score": writer.tensor(np.asarray(np.float32(0.5)))}},
    }
    source = _opened(tmp_path, writer.file(lightning))
    weights = weights_of(source)
    assert list(weights.shapes) == list(model) and weights.others == 2
    np.testing.assert_array_equal(source.read(weights.full_paths["net.1.weight"]), model["net.1.weight"])
    writer = Writer(old)
    nested = writer.file({"model": {"state_dict": {"fc.weight": writer.tensor(_array(0, 64, 64))}}, "optimizer": {}})
    assert list(weights_of(_opened(tmp_path, nested)).shapes) == ["fc.weight"]
    writer = Writer(old)
    two = {name: {"fc.weight": writer.tensor(_array(0, 64, 64))} for name in ("model", "net")}
    assert list(weights_of(_opened(tmp_path, writer.file(two))).shapes) == ["model/fc.weight", "net/fc.weight"]


@_FORMATS
def test_a_pickled_module_has_the_names_of_its_state_dict(tmp_path, old):
    writer = Writer(old)
    weight = call("torch._utils._rebuild_parameter", writer.tensor(_array(0, 64, 64)), True, None)

    def module(name, **state):
        return Opcodes(name_of(f"net.{name}") + b")\x81" + opcodes(state) + b"b")

    linear = module("Linear", _parameters={"weight": weight, "bias": None}, _modules={})
    statistics = module("Norm", _parameters={}, _buffers={"mean": writer.tensor(_array(1, 64))}, training=True)
    root = module("Net", _parameters={}, _modules={"fc": linear, "norm": statistics})
    _same(_opened(tmp_path, writer.file(root)), {"fc.weight": _array(0, 64, 64), "norm.mean": _array(1, 64)})


def test_tied_weights_have_two_names_and_shared_dicts_one(tmp_path):
    writer = Writer()
    tensor = writer.tensor(_array(0, 64, 64))
    tied = Opcodes(b"}(" + opcodes("a") + tensor + b"q\x01" + opcodes("b") + b"h\x01u")
    _same(_opened(tmp_path, writer.file(tied)), {"a": _array(0, 64, 64), "b": _array(0, 64, 64)})
    shared = Opcodes(b"}(" + opcodes("a") + opcodes({"w": tensor}) + b"q\x01" + opcodes("b") + b"h\x01u")
    _same(_opened(tmp_path, writer.file(shared)), {"a/w": _array(0, 64, 64)})


def test_what_cannot_be_read_is_left_out_with_its_reason(tmp_path):
    writer = Writer()
    weight = writer.tensor(_array(0, 64, 64))
    untyped = storage("0", "Untyped", 64 * 64 * 4)
    float8 = call(
        "torch._utils._rebuild_tensor_v3", untyped, 0, (64,), (1,), False, None, name_of("torch.float8_e4m3fn"), {}
    )
    conjugate = call(
        "torch._utils._rebuild_tensor_v2", storage("0", "Float", 4096), 0, (4,), (1,), False, None, {"conj": True}
    )
    tree = {
        "w": weight,
        "quantized": call("torch._utils._rebuild_qtensor", storage("0", "QInt8", 64), 0, (8, 8), (8, 1), (), False, None),
        "sparse": call("torch._utils._rebuild_sparse_tensor", name_of("torch.sparse_coo"), (weight, weight)),
        "float8": float8,
        "conjugate": conjugate,
        "NumPy": call("numpy.core.multiarray._reconstruct", name_of("numpy.ndarray"), (0,), Opcodes(b"U\x01b")),
        "subclass": call("torchao.dtypes.Quantized", weight, 3),
        "repeated": writer.of("0", 0, (2**20, 2**20), (0, 0)),
        1: {"a": weight},
        "1": {"a": writer.tensor(_array(1, 4))},
    }
    source = _opened(tmp_path, writer.file(tree))
    assert set(source.shapes) == {"w"}
    words = {
        "quantized": "quantized",
        "sparse": "dense",
        "float8": "float8_e4m3fn, is not known",
        "conjugate": "resolve_conj",
        "NumPy": "numpy.savez",
        "subclass": "torchao.dtypes.Quantized",
        "repeated": "contiguous",
        "1/a": "two arrays",
    }
    assert set(source.unreadable) == set(words)
    for path, word in words.items():
        assert word in source.unreadable[path]


def test_a_subclass_of_a_tensor_is_read_by_its_numbers(tmp_path):
    writer = Writer()
    array = _array(0, 4, 4)
    writer.storages["0"] = array
    plain = name_of("torch._utils._rebuild_tensor_v2"), name_of("lib.Tensor")
    arguments = (storage("0", "Float", 16), 0, (4, 4), (4, 1), False, None)
    root = {"w": call("torch._tensor._rebuild_from_type_v2", *plain, arguments, {})}
    _same(_opened(tmp_path, writer.file(root)), {"w": array})


def test_a_model_in_several_files_is_read_by_its_index(tmp_path):
    arrays = {f"layers.{number}.weight": _array(number, 64, 64) for number in range(3)}
    names = {path: f"pytorch_model-0000{1 + number // 2}-of-00002.bin" for number, path in enumerate(arrays)}
    for old, name in enumerate(sorted(set(names.values()))):
        writer = Writer(bool(old))
        own = {path: writer.tensor(arrays[path]) for path in arrays if names[path] == name}
        (tmp_path / name).write_bytes(writer.file(own))
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    for path in (index, tmp_path):
        _same(open_checkpoint(path), arrays)
    index.write_text(json.dumps({"weight_map": {**names, "other": names["layers.0.weight"]}}))
    with pytest.raises(tb_optax.CheckpointError, match="'other' is not in pytorch_model-00001"):
        open_checkpoint(index)


def test_a_file_may_be_larger_than_memory(tmp_path):
    """Of 64 GiB, one array of 64 x 64 is read."""
    count = 2**34
    root = {"huge": view("0", "Float", count, 0, (2**17, 2**17), (2**17, 1), (None,))}
    root["small"] = view("0", "Float", count, count - 4096, (64, 64), (64, 1), (None,))
    begun = stream(root, {"0": (count, b"")})
    try:
        with (tmp_path / "model.pt").open("wb") as file:
            file.write(begun)
            file.truncate(len(begun) + 4 * count)
    except OSError:
        pytest.skip("this file system knows no file of 64 GiB, not even an empty one")
    tracemalloc.start()
    source = open_checkpoint(tmp_path / "model.pt")
    assert source.shapes["huge"].shape == (2**17, 2**17)
    np.testing.assert_array_equal(source.read("small"), np.zeros((64, 64), np.float32))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


# Hostile pickles.

_WEIGHT = _array(0, 64, 64)
_TENSOR = Writer().tensor(_WEIGHT)
_TRACE = "a call was made"


def _beside(part):
    """A file of one array and the given value beside it."""
    return archive({"w": _TENSOR, "other": Opcodes(part)}, {"0": _WEIGHT.tobytes()})


_SYSTEM = b"cos\nsystem\n"
_COMMAND = opcodes(f"echo {_TRACE}")
_CALLS = {
    "REDUCE": _SYSTEM + _COMMAND + b"\x85R",
    "NEWOBJ": _SYSTEM + _COMMAND + b"\x85\x81",
    "NEWOBJ_EX": _SYSTEM + _COMMAND + b"\x85}\x92",
    "OBJ": b"(" + _SYSTEM + _COMMAND + b"o",
    "INST": b"(" + _COMMAND + b"ios\nsystem\n",
    "STACK_GLOBAL": opcodes("os") + opcodes("system") + b"\x93" + _COMMAND + b"\x85R",
    "GLOBAL of eval": b"cbuiltins\neval\n" + opcodes(f"print({_TRACE!r})") + b"\x85R",
    "BUILD": b"cos\nsystem\n)\x81" + opcodes({"__setstate__": name_of("os.system")}) + b"b" + _COMMAND + b"b",
    "BUILD of a dict": b"}" + opcodes({"__class__": name_of("os.system")}) + b"b",
    "EXT1": b"\x82\x01" + _COMMAND + b"\x85R",
    "EXT2": b"\x83\x01\x00" + _COMMAND + b"\x85R",
    "EXT4": b"\x84\x01\x00\x00\x00" + _COMMAND + b"\x85R",
    "a call of a call": _SYSTEM + _COMMAND + b"\x85R" + _COMMAND + b"\x85R",
    "a call through a subclass": call(
        "torch._tensor._rebuild_from_type_v2", name_of("os.system"), name_of("a.b"), (f"echo {_TRACE}",), {}
    ),
    "a subclass of a subclass": call(
        "torch._tensor._rebuild_from_type_v2", name_of("torch._tensor._rebuild_from_type_v2"), None, (), {}
    ),
    "a default of a dict": call("collections.defaultdict", name_of("os.system")) + b"N" + _COMMAND + b"s",
    "a module that does not exist": b"cno.such.module\nname\n",
    "a persistent id of words": b"Pos.system\n",
    "a persistent id of a module": opcodes(("module", name_of("os.system"), "a.py", "code")) + b"Q",
    "a set": b"\x8f(K\x01K\x02\x90",
    "numbers of protocol 0": b"(I01\nI5\nL7L\nF1.5\nV\\u00e9\nS'words'\nl",
    "a long number": b"\x8b" + struct.pack("<i", 5000) + b"\x7f" * 5000,
    "a key that is a tuple of tuples": b"}(" + b"K\x01\x85" + b"2\x86" * 200 + b"Nu",
    "tuples of one tuple": b"K\x01\x85" + b"2\x86" * 200,
    "lists in themselves": b"]q\x01(" + b"h\x01" * 200 + b"e",
    "dicts in themselves": b"}q\x01(" + b"X\x01\0\0\0ah\x01" * 200 + b"u",
}


@pytest.mark.parametrize("part", _CALLS.values(), ids=_CALLS)
def test_a_pickle_is_read_as_data(tmp_path, capfd, part):
    tracemalloc.start()
    source = _opened(tmp_path, _beside(part))
    assert set(source.shapes) == {"w"}
    np.testing.assert_array_equal(source.read("w"), _WEIGHT)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    said = capfd.readouterr()
    assert not said.out and not said.err


class _Bomb:
    def __init__(self, trace):
        self._trace = str(trace)

    def __reduce__(self):
        return open, (self._trace, "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_itself_would_run_is_not_run(tmp_path, protocol):
    trace = tmp_path / "run"
    pickle.loads(pickle.dumps(_Bomb(trace), protocol)).close()
    trace.unlink()
    source = _opened(tmp_path, _beside(pickle.dumps(_Bomb(trace), protocol)[:-1]))
    assert set(source.shapes) == {"w"} and not trace.exists()


def _one(offset=0, shape=(64, 64), strides=(64, 1), count=4096, kind="Float", key="0"):
    """A file of one tensor, of which something is wrong."""
    return archive({"w": view(key, kind, count, offset, shape, strides)}, {"0": _WEIGHT.tobytes()})


def _of(*pickle_parts):
    return archive(Opcodes(b"".join(pickle_parts)), {"0": _WEIGHT.tobytes()})


_HOSTILE = {
    "a memo index of 2^32": _of(b"}" + b"r\xff\xff\xff\xff" * 2),
    "what was never kept": _of(b"h\x07"),
    "a text of 4 GiB": _of(b"X\xff\xff\xff\xffabc"),
    "a text of 2^63": _of(b"\x8d" + struct.pack("<Q", 2**63) + b"abc"),
    "bytes of 2^62": _of(b"\x8e" + struct.pack("<Q", 2**62) + b"abc"),
    "bytes of 2^40 that change": _of(b"\x96" + struct.pack("<Q", 2**40) + b"abc"),
    "a text of less than nothing": _of(b"T\xff\xff\xff\xff"),
    "a number of 2 GiB": _of(b"\x8b\xff\xff\xff\x7f"),
    "a number of less than nothing": _of(b"\x8b\xff\xff\xff\xff"),
    "a number of 100,000 digits": _of(b"I" + b"9" * 50_000 + b"\n"),
    "a line without its end": _of(b"I" + b"9" * 100_000),
    "a value that is missing": _of(b"R"),
    "a value below a mark": _of(b"N(s"),
    "a mark that is missing": _of(b"t"),
    "items of a list": _of(b"](NNu"),
    "items that are odd": _of(b"}(Nu"),
    "elements of a dict": _of(b"}(Ne"),
    "a global without a name": _of(b"NN\x93"),
    "an instance of nothing": _of(b"(o"),
    "an unknown opcode": _of(b"\xff"),
    "a later protocol": _of(b"\x80\x7f"),
    "a buffer outside": _of(b"\x97"),
    "a pickle without its end": _of(b"}" * 10)[:-20],
    "a string with escapes": _of(b"S'\\x41'\n"),
    "lists in lists": _of(b"]" * 100_000 + b"a" * 99_999),
    "an offset that is negative": _one(offset=-1),
    "an offset outside": _one(offset=1),
    "an offset that overflows": _one(offset=2**63),
    "a shape outside": _one(shape=(64, 65)),
    "a shape that is negative": _one(shape=(-64, -64)),
    "a shape that overflows": _one(shape=(2**32, 2**32), strides=(0, 0), count=2**62),
    "a shape of 2^100": _one(shape=(2**100, 1)),
    "a shape of words": _one(shape=("a", "b")),
    "a shape of truths": _one(shape=(True, True)),
    "a shape that is no tuple": _one(shape=64),
    "an empty shape that overflows": _one(shape=(0, 2**61, 2**61), strides=(0, 0, 0)),
    "a stride outside": _one(strides=(65, 1)),
    "a stride that is negative": _one(strides=(-64, 1)),
    "a stride that overflows": _one(strides=(2**61, 2**61)),
    "strides that wrap round": _one(shape=(2, 5), strides=(2**62 - 1, 2**62)),
    "60 axes": _one(shape=(1,) * 60, strides=(1,) * 60),
    "strides that are too few": _one(strides=(64,)),
    "a storage larger than its bytes": _one(count=4097),
    "a storage of 2^61": _one(count=2**61, shape=(2**30, 2**31), strides=(2**31, 1)),
    "a storage of less than nothing": _one(count=-1),
    "a storage that is missing": _one(key="7"),
    "a storage outside the folder": _one(key="../version"),
    "a storage of an unknown type": _one(kind="Words"),
    "a storage of another module": _of(
        call("torch._utils._rebuild_tensor_v2", Opcodes(opcodes(("storage", name_of("os.FloatStorage"), "0", "", 1)) + b"Q"))
    ),
    "a tensor without a storage": _of(call("torch._utils._rebuild_tensor_v2", None, 0, (1,), (1,), False, None)),
    "a tensor of nothing": _of(call("torch._utils._rebuild_tensor_v2")),
    "members that are compressed": archive({"w": _TENSOR}, {"0": _WEIGHT.tobytes()}, zipfile.ZIP_DEFLATED),
    "a stream without its storages": stream({"w": _TENSOR}, {}),
    "a stream with a storage of 2^62": stream({"w": view("0", "Float", 2**61, 0, (1,), (1,))}, {"0": (2**61, b"abcd")}),
    "a stream with a storage of less than nothing": stream({"w": _TENSOR}, {"0": (-1, _WEIGHT.tobytes())}),
    "a stream with a storage of another size": stream({"w": _TENSOR}, {"0": (4095, _WEIGHT.tobytes())}),
    "a stream with a storage that no tensor has": stream({"w": _TENSOR}, {"5": (4096, _WEIGHT.tobytes())}),
    "a stream without its half": stream({"w": _TENSOR}, {"0": (4096, _WEIGHT.tobytes())})[:8000],
    "a stream that ends soon": b"\x80\x02" + MAGIC + b".",
    "a view beyond its storage": stream(
        {"w": view("0", "Float", 4096, 0, (1,), (1,), (("v", 4000, 97),))}, {"0": (4096, _WEIGHT.tobytes())}
    ),
}


@pytest.mark.parametrize("content", _HOSTILE.values(), ids=_HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_little_memory(tmp_path, content):
    tracemalloc.start()
    with pytest.raises(
        tb_optax.CheckpointError, match=r"not a valid PyTorch file|truncated or damaged|it holds no arrays"
    ) as told:
        _opened(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    assert str(told.value).isprintable() and len(str(told.value)) < 1500


def test_a_pickle_of_many_opcodes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tb_optax._report.formats.pickled._MOST_OPCODES", 1000)
    with pytest.raises(tb_optax.CheckpointError, match="more than 1,000 opcodes"):
        _opened(tmp_path, _of(b"N0" * 600))


_SHARED = 10_000
_LIST = b"]q\x01(" + b"N" * _SHARED + b"e"
_GROWING = {
    "dicts of one list": _LIST + b"\x85q\x020ccollections\nOrderedDict\nq\x030](" + b"h\x03h\x02R" * _SHARED + b"e",
    "objects of one state": b"}q\x01(" + b"NN" * _SHARED + b"u0](" + b"ca\nb\n)Rh\x01b" * _SHARED + b"e",
    "modules of one dict": b"}q\x01("
    + b"NN" * _SHARED
    + b"u0}q\x02X\x08\0\0\0_modulesh\x01s0]("
    + b"ca\nb\n)Rh\x02b" * _SHARED
    + b"e",
    "objects of one argument": _LIST + b"\x85q\x020](" + b"ca\nb\nh\x02R" * _SHARED + b"e",
    "tensors of one shape": _LIST + b"0(h\x01tq\x020(" + b"N" * _SHARED + b"tq\x030](" + b"h\x03Q" * _SHARED + b"e",
}


@pytest.mark.parametrize("part", _GROWING.values(), ids=_GROWING)
def test_what_is_shared_is_visited_once(tmp_path, part):
    """Each of these takes minutes where the shared part is gone through once for each that shares it."""
    tracemalloc.start()
    with pytest.raises(tb_optax.CheckpointError, match=r"more than 5,000,000 opcodes|no arrays"):
        _opened(tmp_path, _of(part))
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_names_that_would_fill_the_memory_are_refused(tmp_path):
    deep, wide = None, Opcodes(b"](" + b"]Na" * 10_000 + b"e")
    for _ in range(200):
        deep = {"a" * 10_000: deep}
    for tree in (deep, {"a" * 10_000: wide}, {"a" * 10_000: [_TENSOR] * 10_000}):
        with pytest.raises(tb_optax.CheckpointError, match="names that fill the memory"):
            _opened(tmp_path, archive(tree, {"0": _WEIGHT.tobytes()}))


def test_two_members_of_one_name_are_refused(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(archive({"w": _TENSOR}, {"0": _WEIGHT.tobytes()}))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as opened:
        opened.writestr("model/data/0", bytes(_WEIGHT.nbytes))
    with pytest.raises(tb_optax.CheckpointError, match="two members of one name"):
        open_checkpoint(file)


def test_a_number_that_has_changed_is_found_by_its_checksum(tmp_path):
    content = bytearray(archive({"w": _TENSOR}, {"0": _WEIGHT.tobytes()}))
    content[content.index(_WEIGHT.tobytes()) + 7] ^= 1
    source = _opened(tmp_path, content)
    with pytest.raises(tb_optax.CheckpointError, match="'w' is damaged"):
        source.read("w")
    content = bytearray(archive({"w": _TENSOR}, {"0": _WEIGHT.tobytes()}))
    content[content.index(b"FloatStorage")] = ord("H")
    with pytest.raises(tb_optax.CheckpointError, match=r"data\.pkl does not match its checksum"):
        _opened(tmp_path, content)
