"""Tiny ImageNet in small: three classes in a zip of the official layout, and what becomes of it."""

import io
import zipfile

import numpy as np
import PIL.Image
import pytest

from examples.paper.__main__ import main
from examples.paper.errors import UserError
from examples.paper.vision import data, tiny_imagenet
from examples.paper.vision.data import load_dataset
from examples.paper.vision.tiny_imagenet import prepare

WNIDS = ("n03", "n01", "n02")  # not sorted, as in the official file
GRAY = "train/n02/images/n02_1.JPEG"
TRAINING = {f"train/{name}/images/{name}_{index}.JPEG": name for name in WNIDS for index in range(4)}
VALIDATION = {f"val/images/val_{index}.JPEG": WNIDS[index % 3] for index in range(6)}


def jpeg(seed, mode="RGB", size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).resize(size).convert(mode).save(file, "jpeg")
    return file.getvalue()


@pytest.fixture(scope="module")
def contents():
    files = {path: jpeg(seed, "L" if path == GRAY else "RGB") for seed, path in enumerate([*TRAINING, *VALIDATION])}
    lines = [f"{path.rpartition('/')[2]}\t{name}\t0\t32\t44\t62\n" for path, name in VALIDATION.items()]
    files |= {f"train/{name}/{name}_boxes.txt": b"" for name in WNIDS}
    files["test/images/test_0.JPEG"] = jpeg(100)
    files["wnids.txt"] = "\n".join(WNIDS).encode()
    files["words.txt"] = b"n01\tgoldfish\nn02\tsalamander\nn03\tbullfrog\n"
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files


def write_zip(path, contents):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("tiny-imagenet-200")
        for name, content in contents.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory, contents):
    return write_zip(tmp_path_factory.mktemp("zip") / "tiny-imagenet-200.zip", contents)


def test_what_the_command_prepares_is_found_by_its_name(archive, contents, tmp_path, monkeypatch, capsys):
    """Every image and label, whatever their order."""
    main(["vision", "tiny_imagenet", str(archive), "--out", str(tmp_path / "here" / "tiny_imagenet.npz")])
    said = capsys.readouterr().out
    assert "12 train and 6 test images in" in said and f"--data-dir {tmp_path}/here/tiny_imagenet.npz" in said
    monkeypatch.setattr(data, "TINY_IMAGENET", tmp_path / "here" / "tiny_imagenet.npz")
    dataset = load_dataset("tiny_imagenet", None, "train", None)
    assert dataset.name == "tiny_imagenet" and dataset.num_classes == 3 and dataset.flip
    for images, labels, expected in (
        (dataset.train_images, dataset.train_labels, TRAINING),
        (dataset.test_images, dataset.test_labels, VALIDATION),
    ):
        assert images.shape == (len(expected), 64, 64, 3) and images.dtype == np.uint8
        pixels = {path: np.asarray(PIL.Image.open(io.BytesIO(contents[path])).convert("RGB")) for path in expected}
        found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        assert found == {pixels[path].tobytes(): sorted(WNIDS).index(name) for path, name in expected.items()}
    np.testing.assert_array_equal(dataset.mean, np.float32([0.485, 0.456, 0.406]))
    np.testing.assert_array_equal(dataset.std, np.float32([0.229, 0.224, 0.225]))


def test_without_it_the_name_says_what_to_run(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(data, "TINY_IMAGENET", tmp_path / "nowhere.npz")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}.*tiny-imagenet-200\.zip.*examples\.paper vision tiny_imagenet tiny-"):
        load_dataset("tiny_imagenet", None, "train", None)


def without(path):
    return lambda files: {name: content for name, content in files.items() if not name.startswith(path)}


def with_file(path, content):
    return lambda files: files | {path: content}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("wnids.txt"), r"no item named 'tiny-imagenet-200/wnids\.txt'"),
        (with_file("wnids.txt", b"n03\nn01"), "n02"),
        (with_file("wnids.txt", b"n01\nn02\nn03\nn04"), r"a class of wnids\.txt has no image in train"),
        (without("val/val_annotations.txt"), r"val/val_annotations\.txt"),
        (without("val/images/val_3.JPEG"), r"has not a line for each image"),
        (with_file("val/images/val_9.JPEG", jpeg(9)), r"has not a line for each image"),
        (with_file("val/val_annotations.txt", b"val_0.JPEG\nval_1.JPEG"), "values to unpack"),
        (with_file(GRAY, jpeg(0)[:-300]), rf"{GRAY} is damaged"),
        (with_file(GRAY, b"<html>"), rf"{GRAY} is damaged"),
        (with_file(GRAY, jpeg(0, size=(32, 48))), "same shape"),
    ],
)
def test_a_zip_that_is_not_whole_is_refused_with_what_is_wrong(contents, tmp_path, change, problem):
    path = write_zip(tmp_path / "changed.zip", change(contents))
    with pytest.raises(UserError, match=rf"is not the whole tiny-imagenet-200\.zip \(.*{problem}") as caught:
        prepare(path, tmp_path / "out.npz")
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*.npz"))


def test_a_damaged_file_that_is_no_zip_or_is_not_there_is_refused(archive, tmp_path):
    content = archive.read_bytes()
    paths = {name: tmp_path / name for name in ("half.zip", "flipped.zip", "none.zip")}
    paths["half.zip"].write_bytes(content[: len(content) // 2])
    paths["flipped.zip"].write_bytes(content[:300] + bytes(200) + content[500:])  # in the first image
    for name, problem in (("half.zip", "not a zip"), ("flipped.zip", ""), ("none.zip", "there is no")):
        with pytest.raises(UserError, match=problem) as caught:
            tiny_imagenet.prepare(paths[name], tmp_path / "out.npz")
        assert str(paths[name]) in str(caught.value) and "\n" not in str(caught.value)
