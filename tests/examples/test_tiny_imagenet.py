"""Tiny ImageNet in small: three classes in a zip of the official layout, and what becomes of it."""

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest
import rich.console
import tensorflow_datasets as tfds

from examples.paper.errors import UserError
from examples.paper.vision.data import load_dataset
from examples.paper.vision.tiny_imagenet import prepare

WNIDS = ("n03", "n01", "n02")  # not sorted, as in the official file
GRAY = "train/n02/images/n02_1.JPEG"
TRAINING = {f"train/{name}/images/{name}_{index}.JPEG": name for name in WNIDS for index in range(4)}
VALIDATION = {f"val/images/val_{index}.JPEG": WNIDS[index % 3] for index in range(6)}

UNLABELLED = "\n".join(path.rpartition("/")[2] for path in VALIDATION).encode()


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


def run_command(*flags, **environment):
    command = [sys.executable, "-m", "examples.paper", "vision", "tiny_imagenet", *map(str, flags)]
    result = subprocess.run(command, env=os.environ | environment, stdout=-1, stderr=-2, text=True, timeout=120)
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def by_command(tmp_path_factory, archive):
    """TFDS's own directory, and what the command said that wrote there."""
    directory = tmp_path_factory.mktemp("tfds")
    code, output = run_command(archive, TFDS_DATA_DIR=str(directory))
    assert code == 0, output
    return directory, output


@pytest.fixture
def tfds_directory(monkeypatch):
    """Has TFDS look in another directory: it reads TFDS_DATA_DIR when it is imported."""
    return lambda path: monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(path))


def prepare_quietly(path, data_dir):
    return prepare(path, data_dir, rich.console.Console(quiet=True))


def check(dataset, contents):
    """Every image and label, whatever their order."""
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


def test_what_the_command_prepares_is_found_by_its_name(by_command, contents, tfds_directory):
    directory, output = by_command
    assert re.search(r"12 train and 6 validation images of 3 classes in \S+/tiny_imagenet/1\.0\.0\n", output)
    assert "python -m examples.paper vision train --dataset tiny_imagenet\n" in output
    assert len(output.splitlines()) == 2
    tfds_directory(directory)
    check(load_dataset("tiny_imagenet", None, "train", None), contents)
    assert len(load_dataset("tiny_imagenet", None, "train[:5]", "validation[:2]").train_images) == 5


def test_a_second_time_nothing_is_written(by_command, archive):
    directory, _ = by_command
    written = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    code, output = run_command(archive, TFDS_DATA_DIR=str(directory))
    assert code == 0 and "already prepared" in output and "--dataset tiny_imagenet" in output
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == written


def test_a_colour_image_keeps_its_file_and_a_gray_one_its_pixels(by_command, contents):
    builder = tfds.builder_from_directory(by_command[0] / "tiny_imagenet" / "1.0.0")
    assert builder.info.features["label"].names == sorted(WNIDS)
    source = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    files = {source[index]["image"] for index in range(len(source))}
    assert files >= {contents[path] for path in TRAINING if path != GRAY}
    (rewritten,) = files - set(contents.values())
    image = PIL.Image.open(io.BytesIO(rewritten))
    gray = PIL.Image.open(io.BytesIO(contents[GRAY]))
    assert image.mode == "RGB" and image.format == "PNG" and gray.mode == "L"
    np.testing.assert_array_equal(image, np.repeat(np.asarray(gray)[..., None], 3, axis=2))


@pytest.mark.parametrize("parent", [False, True])
def test_the_unpacked_folder_gives_the_same(archive, contents, tmp_path, parent):
    zipfile.ZipFile(archive).extractall(tmp_path / "here")
    (tmp_path / "here" / "tiny-imagenet-200" / "train" / ".DS_Store").write_bytes(b"")
    path = tmp_path / "here" if parent else tmp_path / "here" / "tiny-imagenet-200"
    folder = prepare_quietly(path, tmp_path / "out")
    assert folder == tmp_path / "out" / "tiny_imagenet" / "1.0.0" and (folder / "dataset_info.json").is_file()
    check(load_dataset("digits", folder, "train", None), contents)


def test_without_it_the_name_says_what_to_run(tmp_path, tfds_directory):
    tfds_directory(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}.*tiny-imagenet-200\.zip.*examples\.paper vision tiny_imagenet tiny-"):
        load_dataset("tiny_imagenet", None, "train", None)


def without(path):
    return lambda files: {name: content for name, content in files.items() if not name.startswith(path)}


def with_file(path, content):
    return lambda files: files | {path: content}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("wnids.txt"), r"has no tiny-imagenet-200/wnids\.txt"),
        (with_file("wnids.txt", b""), r"wnids\.txt is empty"),
        (with_file("wnids.txt", b"n03\nn01"), r"class 'n02' of train/n02/images/n02_0\.JPEG is not in wnids\.txt"),
        (with_file("wnids.txt", b"n01\nn02\nn03\nn04"), r"class n04 of wnids\.txt has no image in train/n04/images"),
        (without("val/val_annotations.txt"), r"val/val_annotations\.txt.*is missing"),
        (without("val/images/val_3.JPEG"), r"val/images/val_3\.JPEG, which has a line.*, is missing"),
        (with_file("val/images/val_9.JPEG", jpeg(9)), r"val/images/val_9\.JPEG has no line in val/val_annotations\.txt"),
        (with_file("val/val_annotations.txt", UNLABELLED), r"class '' of val/images/val_0\.JPEG is not in wnids"),
        (with_file("val/val_annotations.txt", b"val_0.JPEG\tn01\n"), r"val/images/val_1\.JPEG has no line in val/val_anno"),
        (without("val/images/"), r"val/images has no image"),
        (with_file(GRAY, jpeg(0)[:-300]), rf"{GRAY} is damaged"),
        (with_file(GRAY, b"<html>"), rf"{GRAY} is damaged"),
        (with_file(GRAY, jpeg(0, size=(32, 48))), rf"{GRAY} is of 32x48 pixels"),
    ],
)
def test_a_zip_that_is_not_whole_is_refused_with_what_is_wrong(contents, tmp_path, change, problem):
    path = write_zip(tmp_path / "changed.zip", change(contents))
    with pytest.raises(UserError, match=problem) as caught:
        prepare_quietly(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/tiny_imagenet/*"))  # not even the half of it


def test_a_damaged_or_truncated_zip_is_refused(archive, tmp_path):
    content = archive.read_bytes()
    half = tmp_path / "half.zip"
    half.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{half} is no zip, or not a whole one"):
        prepare_quietly(half, tmp_path)
    flipped = tmp_path / "flipped.zip"
    flipped.write_bytes(content[:300] + bytes(200) + content[500:])  # in the first image
    with pytest.raises(UserError, match=r"train/n\d+/images/.*JPEG is damaged; get tiny-imagenet-200\.zip again"):
        prepare_quietly(flipped, tmp_path)


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, archive):
    text = tmp_path / "some.txt"
    text.write_text("no zip")
    (tmp_path / "empty").mkdir()
    for path, problem in (
        (tmp_path / "none.zip", "there is no"),
        (text, "is no zip"),
        (tmp_path / "empty", "has no wnids.txt"),
    ):
        code, output = run_command(path)
        assert code == 2 and output.count("\n") == 1 and "error: " in output and problem in output and str(path) in output
    code, output = run_command(archive, "--data-dir", text)  # a file, where a folder must be
    assert code == 2 and output.count("\n") == 1 and str(text) in output


def test_it_is_prepared_where_it_is_asked_for(archive, tmp_path):
    code, output = run_command(archive, "--data-dir", tmp_path / "here")
    folder = tmp_path / "here" / "tiny_imagenet" / "1.0.0"
    assert code == 0 and f"python -m examples.paper vision train --data-dir {folder}\n" in output
    assert (folder / "dataset_info.json").is_file()
    shutil.rmtree(tmp_path / "here")
