"""ONNX's initializers are read as their graph uses them; a damaged file is told in one line."""

import sys

import ml_dtypes
import numpy as np
import pytest

import tb_optax
from tb_optax._report.formats import open_checkpoint


def _array(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _model(initializers, nodes=()):
    onnx = pytest.importorskip("onnx")
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = onnx.helper.make_graph([onnx.helper.make_node(*node) for node in nodes], "graph", [], [], tensors)
    return onnx.helper.make_model(graph)


def _write(path, model):
    path.write_bytes(model.SerializeToString())
    return path


def _same(source, expected):
    assert set(source.shapes) == set(expected)
    for path, array in expected.items():
        found = source.read(path)
        assert found.dtype == source.shapes[path].dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_initializers_are_read(tmp_path):
    arrays = {
        "conv.W": _array(0, 128, 64, 3, 3),
        "onnx::MatMul_7": _array(1, 64, 80),
        "half": _array(2, 4, 4, dtype=np.float16),
        "bfloat16": _array(3, 4, 4, dtype=ml_dtypes.bfloat16),
        "double": _array(4, 4, dtype=np.float64),
        "scalar": np.asarray(np.float32(2)),
        "whole": np.arange(3),
    }
    path = _write(tmp_path / "model.onnx", _model(arrays))
    _same(open_checkpoint(path), arrays)
    matrices = {record.layer: record.matrices for record in tb_optax.report(path).records}
    assert sorted(matrices.values()) == [1, 9]  # A window of 3 x 3 comes last.


def test_numbers_that_are_not_raw_are_read(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = _model({})
    for name, kind, numbers in (
        ("f", "FLOAT", [1.5, 2, 3, 4]),
        ("h", "FLOAT16", [1.5, 2, 3, 4]),
        ("i", "INT8", [1, 2, 3, 4]),
    ):
        tensor = onnx.helper.make_tensor(name, getattr(onnx.TensorProto, kind), (2, 2), numbers)
        assert not tensor.HasField("raw_data")
        model.graph.initializer.append(tensor)
    expected = {
        "f": np.array([[1.5, 2], [3, 4]], np.float32),
        "h": np.array([[1.5, 2], [3, 4]], np.float16),
        "i": np.array([[1, 2], [3, 4]], np.int8),
    }
    _same(open_checkpoint(_write(tmp_path / "model.onnx", model)), expected)


def test_the_directions_of_a_recurrent_layer_are_apart(tmp_path):
    weights, both = _array(0, 1, 256, 64), _array(1, 2, 256, 64)
    model = _model({"w": weights, "r": both}, [("LSTM", ["x", "w", "r"], ["y"])])
    source = open_checkpoint(_write(tmp_path / "model.onnx", model))
    _same(source, {"w": weights[0], "r/forward": both[0], "r/reverse": both[1]})


def test_constants_of_the_graph_are_read(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = _model({})
    value = onnx.numpy_helper.from_array(_array(0, 64, 64))
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["weight"], value=value))
    _same(open_checkpoint(_write(tmp_path / "model.onnx", model)), {"weight": _array(0, 64, 64)})


def test_a_window_that_could_be_taken_for_a_matrix_is_left_out(tmp_path):
    arrays = {"a": _array(0, 64, 64, 3, 39), "b": _array(1, 64, 64, 3, 3)}
    model = _model(arrays, [("Conv", ["x", "a"], ["y"]), ("Conv", ["y", "b"], ["z"])])
    report = tb_optax.report(_write(tmp_path / "model.onnx", model))
    assert [(record.layer, record.matrices) for record in report.records] == [("b", 9)]
    assert "(3, 39), has a side above 31" in report.left_out["a"]


def test_weights_of_branches_are_read(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = _model({"w": _array(0, 64, 64)})
    branches = {
        name: _model({"w": _array(number, 1, 256, 64)}, [("LSTM", ["x", "w", "r"], ["y"])]).graph
        for number, name in enumerate(("then_branch", "else_branch"), 1)
    }
    model.graph.node.append(onnx.helper.make_node("If", ["wide"], ["y"], name="rate", **branches))
    expected = {"w": _array(0, 64, 64)}
    expected |= {f"rate/{name}/w": _array(number, 256, 64) for number, name in enumerate(branches, 1)}
    _same(open_checkpoint(_write(tmp_path / "model.onnx", model)), expected)


def test_numbers_in_a_file_beside_it_are_read_and_in_no_other(tmp_path):
    onnx = pytest.importorskip("onnx")
    arrays = {"a": _array(0, 64, 64), "b": _array(1, 64, 80)}
    model = _model(arrays)
    onnx.save_model(
        model,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    _same(open_checkpoint(tmp_path / "model.onnx"), arrays)
    for key, value, word in (
        ("location", "../secret", "not a file in its folder"),
        ("location", "/etc/passwd", "not a file in its folder"),
        ("location", "gone.bin", "not there"),
        ("offset", "-4", "beyond"),
        ("offset", str(2**62), "beyond"),
        ("length", str(2**62), "beyond"),
        ("length", "words", "damaged"),
        ("length", "16", "takes"),
    ):
        changed = onnx.load_model(tmp_path / "model.onnx", load_external_data=False)
        entries = {entry.key: entry for entry in changed.graph.initializer[0].external_data}
        entries[key].value = value
        source = open_checkpoint(_write(tmp_path / "changed.onnx", changed))
        assert set(source.shapes) == {"b"} and word in source.unreadable["a"]


def test_hostile_tensors_are_left_out(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = _model({"w": _array(0, 64, 64)})
    for name, dims, kind in (
        ("huge", (2**40, 2**40), 1),
        ("negative", (-4, -16), 1),
        ("words", (2,), 8),
        ("other", (2,), 99),
    ):
        model.graph.initializer.append(onnx.TensorProto(name=name, dims=dims, data_type=kind, raw_data=bytes(256)))
    source = open_checkpoint(_write(tmp_path / "model.onnx", model))
    assert set(source.shapes) == {"w"} and set(source.unreadable) == {"huge", "negative", "words", "other"}


@pytest.mark.parametrize("content", [b"", b"words", bytes(100), b"\x08\x07\x12\x07pytorch" + bytes(100), b"\xff" * 100])
def test_a_damaged_file_is_told_in_one_line(tmp_path, content):
    pytest.importorskip("onnx")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(tb_optax.CheckpointError, match="not a valid ONNX file"):
        open_checkpoint(tmp_path / "model.onnx")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    model = _model({"w": _array(0, 4, 4)})
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(tb_optax.CheckpointError, match="two arrays are called 'w'"):
        open_checkpoint(_write(tmp_path / "model.onnx", model))


def test_without_onnx_the_way_out_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(tb_optax.CheckpointError, match=r"onnx is not installed; pip install \"tb_optax\[onnx\]\""):
        open_checkpoint(tmp_path / "model.onnx")
