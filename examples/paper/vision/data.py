"""Image-classification data sets as arrays: TensorFlow Datasets without TensorFlow, and an embedded default."""

import concurrent.futures
import dataclasses
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from examples.paper.errors import UserError, first_line
from examples.paper.tfds_sets import default_test_split, open_split, open_tfds
from examples.paper.vision.image_folder import is_image_folder, read_image_folder

# Mean and standard deviation of each channel, of pixels in 0 to 1, as the paper's code has them. A TFDS data set whose name
# starts with one of these shares them; any other data set is measured, and so are files and folders of any name.
_NORMALIZATION = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny_imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# A mirrored digit or letter is another one, or none; clothes (`fashion_mnist`) may be. The paper's code mirrors SVHN all the
# same; here it is left as it is.
_NOT_FLIPPED = re.compile(r"^(digits|svhn|omniglot|cmaterdb)|^(?!fashion_).*mnist")
_ADVICE = {
    "tiny_imagenet": "get tiny-imagenet-200.zip from cs231n.stanford.edu and run: "
    "python -m examples.paper vision tiny_imagenet tiny-imagenet-200.zip",
}
_OTHERS = "try digits, cifar10, cifar100 or svhn_cropped, or give --data-dir."
_DIGITS_TEST = 360
_DIGITS_SCALE = 4


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
      name: as TFDS calls it.
      num_classes: labels are below this.
      mean: of each channel, of pixels in 0 to 1.
      std: likewise.
      flip: whether an image may be mirrored.
    """

    name: str
    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int[np.ndarray, " test"]
    num_classes: int
    mean: Float[np.ndarray, " channels"]
    std: Float[np.ndarray, " channels"]
    flip: bool

    def contents(self) -> bytes:
        """Which tell whether several processes have the same."""
        return self.train_images.tobytes()


def load_dataset(name: str, data_dir: Path | None, train_split: str, test_split: str | None) -> Dataset:
    """Loads a data set.

    Args:
      name: `digits`, or the name of a TFDS image-classification data set, which TFDS downloads; or `tiny_imagenet`, once
        `examples.paper.vision.tiny_imagenet` has prepared it.
      data_dir: a data set that TFDS has already prepared, the folder that holds its `dataset_info.json`; or an `.npz` file
        of the arrays `train_images`, `train_labels`, `test_images` and `test_labels`: images as uint8 of shape
        `(n, height, width, channels)`, labels as whole numbers from 0 on; or a folder of images, one subfolder a class,
        as `read_image_folder` describes it. Goes before `name`.
      train_split: a TFDS split such as `train` or `train[:10000]`, or such a folder's subfolder.
      test_split: likewise; by default `test`, or `validation` where there is no `test`.

    Raises:
      UserError: no such data set or split, or not one of labelled images of one size.
    """
    if data_dir is None and name == "digits":
        return _digits()
    if data_dir is not None and data_dir.suffix == ".npz":
        if (train_split, test_split) != ("train", None):
            raise UserError(f"--data-dir {data_dir} has no splits but its own; leave --train-split and --test-split out.")
        return _arrays(data_dir)
    if data_dir is not None and is_image_folder(data_dir):
        train, test, classes = read_image_folder(data_dir, train_split, test_split)
        return _own_data_set(data_dir.resolve().name, f"--data-dir {data_dir}", *train, *test, len(classes))
    builder = open_tfds(name, data_dir, _ADVICE.get(name, _OTHERS), ", or a folder of images with one subfolder a class")
    test_split = test_split or default_test_split(builder)
    features = dict(builder.info.features.items())
    num_classes = getattr(features.get("label"), "num_classes", None)
    if num_classes is None or "image" not in features:
        raise UserError(
            f"data set {builder.name!r} has the features {', '.join(features)}; an image and a class label are needed."
        )
    train_images, train_labels = _read(builder, train_split)
    test_images, test_labels = _read(builder, test_split)
    for split, labels in ((train_split, train_labels), (test_split, test_labels)):
        if labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(
                f"data set {builder.name!r}, split {split!r}, has labels from {labels.min()} to {labels.max()}, and its "
                f"{num_classes} classes are 0 to {num_classes - 1}; give a split whose images are labelled."
            )
    mean, std = _normalization(builder.name, train_images)
    flip = not _NOT_FLIPPED.search(builder.name)
    return Dataset(builder.name, train_images, train_labels, test_images, test_labels, num_classes, mean, std, flip)


def _digits() -> Dataset:
    """Scikit-learn's 1,797 handwritten digits (UCI, 8x8), each pixel made four by four; 360 are for testing."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images, labels = digits.images, digits.target
    images = (images[..., None] * (255 / 16)).astype(np.uint8)
    images = images.repeat(_DIGITS_SCALE, axis=1).repeat(_DIGITS_SCALE, axis=2)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    labels = labels.astype(np.int32)
    mean, std = _normalization("digits", images[train])
    return Dataset("digits", images[train], labels[train], images[test], labels[test], 10, mean, std, flip=False)


def _arrays(path: Path) -> Dataset:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, KeyError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(f"--data-dir {path} is no .npz file of {', '.join(names)}: {first_line(error)}") from error
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
            raise UserError(
                f"--data-dir {path}: {split}_images is {images.dtype} of shape {images.shape}; give uint8, with the axes "
                "n, height, width, channels."
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise UserError(
                f"--data-dir {path}: {split}_labels is {labels.dtype} of shape {labels.shape}; give whole numbers from 0 "
                f"on, one for each of the {len(images)} images."
            )
        if labels.max() >= len(arrays["train_images"]):
            raise UserError(
                f"--data-dir {path}: {split}_labels has the label {labels.max()}, and labels number the classes from 0 on: "
                f"there cannot be {int(labels.max()) + 1} classes of {len(arrays['train_images'])} training images."
            )
        arrays[f"{split}_labels"] = labels.astype(np.int32)
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise UserError(
            f"--data-dir {path}: images to train and to test on differ in shape; they must all have one: resize them."
        )
    num_classes = 1 + max(int(arrays[f"{split}_labels"].max()) for split in ("train", "test"))
    return _own_data_set(path.stem, f"--data-dir {path}", **arrays, num_classes=num_classes)


def _own_data_set(
    name: str,
    flag: str,
    train_images: UInt8[np.ndarray, "train height width channels"],
    train_labels: Int[np.ndarray, " train"],
    test_images: UInt8[np.ndarray, "test height width channels"],
    test_labels: Int[np.ndarray, " test"],
    num_classes: int,
) -> Dataset:
    """A data set that is not TFDS's: its normalization is measured, whatever its name is."""
    mean, std = _measured(flag, train_images)
    flip = not _NOT_FLIPPED.search(name)
    return Dataset(name, train_images, train_labels, test_images, test_labels, num_classes, mean, std, flip)


def _read(builder: Any, split: str) -> tuple[UInt8[np.ndarray, "n height width channels"], Int[np.ndarray, " n"]]:
    """Decodes a split, in threads: decoders release the interpreter."""
    source = open_split(builder, split)
    first = source[0]["image"]
    images = np.empty((len(source), *first.shape), first.dtype)  # filled as they come: a list of them would be as much again

    def read(row: int) -> tuple[tuple[int, ...], int]:
        example = source[row]
        image = example["image"]
        if image.shape == first.shape:
            images[row] = image
        return image.shape, example["label"]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        shapes, labels = zip(*pool.map(read, range(len(source))), strict=True)
    if len(set(shapes)) > 1:
        raise UserError(
            f"the images of data set {builder.name!r} have {len(set(shapes))} different shapes, such as "
            f"{' and '.join(map(str, sorted(set(shapes))[:2]))}; they must all have one: resize them."
        )
    return images, np.array(labels, np.int32)


def _normalization(
    name: str, images: UInt8[np.ndarray, "n height width channels"]
) -> tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    for prefix, (mean, std) in _NORMALIZATION.items():
        if name.startswith(prefix) and images.shape[-1] == len(mean):
            return np.array(mean, np.float32), np.array(std, np.float32)
    return _measured(f"data set {name!r}", images)


def _measured(
    which: str, images: UInt8[np.ndarray, "n height width channels"]
) -> tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    """The mean and the standard deviation of each channel, of pixels in 0 to 1."""
    pixels = images.reshape(-1, images.shape[-1]) / np.float32(255)
    mean, std = pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)
    if (std == 0).any():
        raise UserError(
            f"{which}: channel {int(np.argmin(std))} is the same in every pixel of the training images, so it cannot be "
            "normalized; leave this channel out."
        )
    return mean.astype(np.float32), std.astype(np.float32)
