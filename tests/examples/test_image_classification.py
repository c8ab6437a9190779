"""The one-file image-classification program: it learns, on several devices too, and goes on after a kill."""

import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import CheckpointManager
from orbax.checkpoint.args import Composite, StandardRestore
from processes import finish, start

from examples import image_classification
from examples.image_classification import Settings, train

SMALL = dict(model="vgg16", width=1 / 8, image_size=8, batch_size=256, epochs=4, seed=3)
COMMAND = """
from functools import partial
import jax, numpy, tyro
from jax.sharding import Mesh
from examples import image_classification
image_classification.NETWORKS["vgg16"] = partial(image_classification.vgg, (1, 1, 1, 1, 1))
settings = tyro.cli(image_classification.Settings)
image_classification.train(settings, Mesh(numpy.array(jax.local_devices()), ("batch",)))
"""


@pytest.fixture(autouse=True, scope="module")
def small_network():
    """Five convolutions in the place of VGG16's thirteen; TempBalance balances the last four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image_classification.NETWORKS, "vgg16", partial(image_classification.vgg, (1, 1, 1, 1, 1)))
        yield


def devices(count):
    return Mesh(np.array(jax.local_devices()[:count]), ("batch",))


def log_of(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def arrays_of(out):
    """What the last checkpoint holds."""
    with CheckpointManager(out / "checkpoints") as checkpoints:
        last = checkpoints.latest_step()
        return jax.tree.leaves(checkpoints.restore(last, args=Composite(state=StandardRestore()))["state"])


def check_same_run(out, other):
    assert json.dumps(log_of(out)) == json.dumps(log_of(other))
    for array, other_array in zip(arrays_of(out), arrays_of(other), strict=True):
        np.testing.assert_array_equal(array, other_array)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(Settings(out=out, **SMALL), devices(1))
    return out


def test_a_reader_can_copy_the_file_alone():
    source = Path(image_classification.__file__).read_text()
    assert len(source.splitlines()) <= 300
    assert not re.search(r"^\s*(from|import) examples", source, re.MULTILINE)


def test_it_learns_with_a_scale_for_each_layer(finished):
    log = log_of(finished)
    assert [line["epoch"] for line in log] == [1, 2, 3, 4]
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    for line in log:
        assert list(line["alpha"]) == [f"layers/{number}/conv" for number in (3, 6, 9, 12)]  # as the network has them
        assert min(line["alpha"].values()) > 1
        assert min(line["scale"].values()) == 0.5 and max(line["scale"].values()) == 1.5
    assert PIL.Image.open(finished / "layers.png").size == (1650, 600)


def test_a_run_stopped_and_resumed_ends_bit_for_bit_as_one_that_was_not(finished, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        save = CheckpointManager.save
        saves = iter([save, save, stop])
        patch.setattr(CheckpointManager, "save", lambda *args, **kwargs: next(saves)(*args, **kwargs))
        with pytest.raises(KeyboardInterrupt):
            train(Settings(out=tmp_path, **SMALL), devices(1))
    assert len(log_of(tmp_path)) == 3  # one more than there are checkpoints
    train(Settings(out=tmp_path, resume=True, **SMALL), devices(1))
    check_same_run(tmp_path, finished)


def test_a_folder_with_a_run_is_not_written_to_by_another(finished):
    before = (finished / "log.jsonl").read_bytes()
    for changes, message in (
        (dict(), "holds a run; add --resume to go on with it, or give another folder"),
        (dict(resume=True, epochs=5), r"holds another run \(epochs is 4\); give another folder"),
        (dict(seed=4), r"holds another run \(seed is 3\); give another folder"),
    ):
        with pytest.raises(SystemExit, match=f"{finished} {message}"):
            train(Settings(out=finished, **SMALL | changes), devices(1))
    assert (finished / "log.jsonl").read_bytes() == before


def write_images(folder):
    """Images of two classes that differ in brightness, of several sizes and modes."""
    for name, brightness in (("dark", 40), ("light", 220)):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((20 + index, 30), brightness, np.uint8)
            mode, suffix = [("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("P", "PNG")][index % 4]
            PIL.Image.fromarray(pixels).convert(mode).save(folder / name / f"{index}.{suffix}")
        (folder / name / "notes.txt").write_text("no image")
    (folder / "outside.png").write_bytes(b"")


def test_images_in_a_folder_are_labelled_by_their_subfolders(tmp_path):
    write_images(tmp_path)
    sets, classes = image_classification.load(Settings(folder=tmp_path, image_size=16, batch_size=4), 1)
    assert classes == 2 and [len(images.labels) for images in sets] == [14, 2, 4]
    for images in sets:
        assert images.pixels.shape[1:] == (16, 16, 3) and images.pixels.dtype == np.uint8
        np.testing.assert_array_equal(images.labels, images.pixels.mean(axis=(1, 2, 3)) > 128)


def test_a_prepared_data_set_is_read_without_tensorflow(prepared, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(Path(prepared).parents[1]))
    sets, classes = image_classification.load(Settings(dataset="brightness", batch_size=4), 1)
    assert classes == 3 and [len(images.labels) for images in sets] == [86, 10, 24]  # validation, for there is no test
    source = tfds.builder_from_directory(prepared).as_data_source("validation")
    for row, label, pixels in zip(range(24), sets[2].labels, sets[2].pixels, strict=True):
        assert label == source[row]["label"]
        np.testing.assert_array_equal(pixels, source[row]["image"])
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dataset="no_such_set"), r"--dataset no_such_set is neither digits nor .* in TFDS: .*no_such_set"),
        (dict(folder=Path("no_such_folder")), "--folder no_such_folder has images in 0 subfolders"),
        (dict(batch_size=7), "--batch-size 7: give a multiple of 2, at most 1294"),
        (dict(batch_size=1300), "--batch-size 1300: give a multiple of 2, at most 1294"),
    ],
)
def test_data_that_cannot_be_used_end_in_one_line(changes, message):
    with pytest.raises(SystemExit, match=message) as error:
        image_classification.load(Settings(**changes), 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_of_the_classes_are_refused(label):
    examples = [{"image": np.zeros((4, 4, 3), np.uint8), "label": each} for each in (0, 1, label)]
    with pytest.raises(SystemExit, match=r"pets has labels from (-1 to 1|0 to 2); they have to be 0 to 1"):
        image_classification.read("pets", examples, 2, 4)


def test_images_of_16_bits_are_refused():
    with pytest.raises(SystemExit, match="scans has an image of mode I;16; only 8 bits"):
        image_classification.read("scans", [{"image": np.zeros((4, 4), np.uint16), "label": 0}], 1, 4)


def test_a_training_image_is_a_window_of_the_image_in_a_frame_of_zeros_mirrored_or_not():
    images = jax.random.randint(jax.random.key(0), (64, 6, 6, 3), 1, 255).astype(np.uint8)
    augment = jax.jit(image_classification.crop_and_flip, static_argnums=2)
    crops, framed = np.asarray(augment(jax.random.key(1), images, True)), np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    mirrored = 0
    for crop, frame in zip(crops, framed, strict=True):
        windows = [frame[y : y + 6, x : x + 6] for y in range(9) for x in range(9)]
        plain = any((crop == window).all() for window in windows)
        assert plain or any((crop[:, ::-1] == window).all() for window in windows)
        mirrored += not plain
    assert 16 < mirrored < 48


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet34", 21_282_122), ("vgg19", 20_040_522 - 5_504)],  # VGG without biases under norms
)
def test_networks_are_those_of_the_paper(name, parameters):
    create = partial(image_classification.NETWORKS[name], 1.0, 10)
    model = nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0)))
    assert sum(array.size for array in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


@pytest.mark.slow
def test_two_devices_train_as_one_does(finished, tmp_path):
    train(Settings(out=tmp_path, **SMALL), devices(2))
    for line, other in zip(log_of(tmp_path), log_of(finished), strict=True):
        np.testing.assert_allclose(line["loss"], other["loss"], rtol=1e-3)
        np.testing.assert_allclose(list(line["alpha"].values()), list(other["alpha"].values()), rtol=1e-3)


@pytest.mark.slow
def test_zeros_and_ones_in_a_folder_are_told_apart_in_bfloat16_without_tempbalance(tmp_path):
    for row, (image, label) in enumerate(zip(*sklearn.datasets.load_digits(return_X_y=True), strict=True)):
        if label < 2:
            (tmp_path / str(label)).mkdir(exist_ok=True)
            PIL.Image.fromarray(np.uint8(image.reshape(8, 8) * 15)).save(tmp_path / str(label) / f"{row}.png")
    changes = dict(method="cal", dtype="bfloat16", flip=False, image_size=16, batch_size=32, epochs=6)
    assert train(Settings(folder=tmp_path, out=tmp_path / "out", **SMALL | changes), devices(1)) > 0.9
    assert "alpha" not in log_of(tmp_path / "out")[0]


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with_on_two_devices(tmp_path):
    flags = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = ["-c", COMMAND, *flags, "--epochs", 12, "--out"]
    (process,) = start([[*command, tmp_path / "killed"]], 2)
    try:
        while process.poll() is None and not (tmp_path / "killed" / "checkpoints" / "3").exists():
            time.sleep(0.05)
    finally:
        process.kill()
    (output,) = finish([process])
    assert "epoch   3" in output and "test" not in output
    outputs = finish(start([[*command, tmp_path / "killed", "--resume"], [*command, tmp_path / "whole"]], 2))
    assert "epoch   1" not in outputs[0] and "epoch  12" in outputs[0]
    check_same_run(tmp_path / "killed", tmp_path / "whole")
