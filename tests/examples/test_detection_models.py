"""YOLOv8: its size, its layers, its weights from PyTorch; average precision on cases whose value is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.paper.detection.average_precision import evaluate
from examples.paper.detection.boxes import Detections
from examples.paper.detection.data import Images
from examples.paper.detection.domain import find_layers
from examples.paper.detection.pretrained import from_torch, load_weights, names
from examples.paper.detection.yolo import create_model
from examples.paper.errors import UserError
from examples.paper.network import Network


@functools.cache
def parts(classes, **kwargs):
    """Graph, parameters and statistics, as shapes."""
    build = lambda: create_model(
        "yolov8n", classes=classes, image_size=64, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0), **kwargs
    )
    return nnx.split(nnx.eval_shape(build), nnx.Param, ...)


@pytest.mark.parametrize(("classes", "published"), [(20, 3_014_748), (80, 3_157_200)])
def test_parameters_are_as_many_as_published(classes, published):
    """Of the published ones 16 are the fixed numbers of the bins."""
    assert sum(leaf.size for leaf in jax.tree.leaves(parts(classes)[1])) == published - 16


def balanced(classes, **kwargs):
    graphdef, params, batch_stats = parts(classes)
    return find_layers(Network(graphdef), params, batch_stats, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), **kwargs)


def test_the_stem_and_the_last_output_of_classes_are_left_out_and_small_layers():
    layers = balanced(80, min_eigenvalues=65)
    reasons = layers.left_out
    assert reasons.pop("layer0/conv/kernel") == "the first layer"
    assert reasons.pop("layer22/cv3/2/output/kernel") == "the last layer"
    assert len(reasons) == 9 and all("fewer than min_eigenvalues=65" in reason for reason in reasons.values())
    assert len(layers) == 63 - 11
    names = {layer.name: layer for layer in layers}
    assert {"layer22/cv3/0/output", "layer22/cv3/1/output"} < set(names)  # of 80 classes: 80 eigenvalues
    assert names["layer4/m/1/cv2/conv"].follows == ("layer4/m/1/cv2/bn/scale", "layer4/m/1/cv2/bn/bias")
    assert {layer.name for layer in balanced(20, min_eigenvalues=65)} == set(names) - {
        "layer22/cv3/0/output",
        "layer22/cv3/1/output",
    }


def test_images_that_the_largest_stride_does_not_divide_are_refused():
    with pytest.raises(UserError, match="--image-size 100 must be a multiple of 32"):
        create_model("yolov8n", classes=2, image_size=100, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_weights_of_other_classes_leave_the_outputs_of_classes_as_they_are(tmp_path):
    from safetensors.numpy import save_file

    _, params, batch_stats = parts(80)
    file = {name: np.full(leaf.shape, 7, np.float32) for tree in (params, batch_stats) for name, leaf in names(tree).items()}
    assert {"layer2.m.0.cv1.conv.kernel", "layer2.m.0.cv1.bn.scale", "layer2.m.0.cv1.bn.var"} < set(file)
    save_file(file, tmp_path / "coco.safetensors")
    own = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree) for tree in parts(20)[1:]]
    loaded = load_weights(tmp_path / "coco.safetensors", *own)
    # 80 classes have 80 channels in their branches, 20 have 64.
    assert {name.rsplit(".", 1)[0] for name in loaded.missing} >= {f"layer22.cv3.{index}.output" for index in range(3)}
    assert all(name.startswith("layer22.cv3.") for name in loaded.missing)
    values = names(loaded.params) | names(loaded.batch_stats)
    for name, value in values.items():
        assert (value == (0 if name in loaded.missing else 7)).all()


def test_files_that_are_no_weights_say_so(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "text").write_text("no")
    trees = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree) for tree in parts(20)[1:]]
    with pytest.raises(UserError, match=r"is no safetensors file .* python -m examples\.paper detection convert makes one"):
        load_weights(tmp_path / "text", *trees)
    save_file({"encoder.weight": np.zeros(2, np.float32)}, tmp_path / "other")
    with pytest.raises(UserError, match=r"holds nothing of this network; its names are like encoder\.weight"):
        load_weights(tmp_path / "other", *trees)
    with pytest.raises(UserError, match=r"encoder\.weight is none of YOLOv8's names"):
        from_torch({"encoder.weight": np.zeros((2, 2))})


def test_every_array_has_a_name_in_pytorch(tmp_path):
    """The names that PyTorch's YOLOv8 is known to have, made here of ours by rules of their own."""
    _, params, batch_stats = parts(80)
    expected = {name: leaf.shape for tree in (params, batch_stats) for name, leaf in names(tree).items()}
    state_dict = {"model.22.dfl.conv.weight": np.arange(16).reshape(1, 16, 1, 1)}
    for name, shape in expected.items():
        words = name.split(".")
        kind = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(
            words[-1], words[-1]
        )
        inner = [{"unit1": "0", "unit2": "1", "output": "2"}.get(word, word) for word in words[1:-1]]
        turned = tuple(shape[axis] for axis in (3, 2, 0, 1)) if words[-1] == "kernel" else shape
        state_dict[".".join(["model", words[0].removeprefix("layer"), *inner, kind])] = np.zeros(turned)
        if words[-1] == "var":
            state_dict[".".join(["model", words[0].removeprefix("layer"), *inner, "num_batches_tracked"])] = np.zeros(())
    assert {"model.0.conv.weight", "model.9.cv2.bn.running_var", "model.22.cv2.1.0.conv.weight"} < set(state_dict)
    assert {name: array.shape for name, array in from_torch(state_dict).items()} == expected


BOX = [10.0, 10.0, 30.0, 30.0]


def truth(*labels):
    """An image with one box for each label, or none."""
    return Images(
        np.zeros((len(labels), 64, 64, 1), np.uint8),
        np.array([[BOX if label >= 0 else [0, 0, 0, 0]] for label in labels], np.float32),
        np.array([[label] for label in labels], np.int32),
    )


def found(*images):
    """Each image's detections: box, score, label."""
    most = max(map(len, images))
    padded = [[*image, *[([0.0] * 4, 0.0, -1)] * (most - len(image))] for image in images]
    return Detections(*(np.array([[each[part] for each in image] for image in padded]) for part in range(3)))


CASES = {
    "all right": (found([(BOX, 0.9, 0)], [(BOX, 0.8, 1)]), (0, 1), 1.0, 1.0),
    "nothing": (found([([0.0] * 4, 0.0, -1)], [([0.0] * 4, 0.0, -1)]), (0, 1), 0.0, 0.0),
    "the wrong class": (found([(BOX, 0.9, 1)], [(BOX, 0.8, 0)]), (0, 1), 0.0, 0.0),
    # IoU of 16 / 20: right at the thresholds 0.5 to 0.8, seven of ten.
    "a fifth too narrow": (found([([10.0, 10, 26, 30], 0.9, 0)]), (0,), 0.7, 1.0),
    # One of two is found: precision is 1 up to a recall of a half, 51 of the 101 recalls.
    "one of two": (found([(BOX, 0.9, 0)], []), (0, 0), 51 / 101, 51 / 101),
    # A wrong one with a higher score in an image without boxes: precision is a half.
    "a false alarm first": (found([(BOX, 0.5, 0)], [(BOX, 0.9, 0)]), (0, -1), 0.5, 0.5),
    "of two classes one": (found([(BOX, 0.9, 0)], [(BOX, 0.8, 0)]), (0, 1), 0.5, 0.5),
    "no boxes at all": (found([(BOX, 0.9, 0)]), (-1,), 0.0, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_as_known(case):
    detections, labels, expected, at_half = CASES[case]
    evaluation = evaluate(detections, truth(*labels), ("a", "b"))
    assert evaluation.average.map == pytest.approx(expected, abs=1e-6)
    assert evaluation.average.map50 == pytest.approx(at_half, abs=1e-6)
    assert evaluation.precision.shape == (101, 2)
