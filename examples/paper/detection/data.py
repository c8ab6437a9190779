"""Detection data sets as arrays: square images and their boxes, from TensorFlow Datasets or made from digits."""

import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from examples.paper.errors import UserError
from examples.paper.tfds_sets import default_test_split, open_split, open_tfds

GRAY = 114
"""What images are padded with."""
_NOT_FLIPPED = re.compile(r"^digits|svhn|text")
_ADVICE = "try digits or voc/2007, or give --data-dir."
_CANVASES = {"train": 512, "validation": 128, "test": 128}
_MOST_DIGITS, _LEAST_DIGIT, _LARGEST_DIGIT = 6, 16, 40


class Images(NamedTuple):
    """Images with their boxes, in pixels; a slot that holds none has the label -1 and zeros for a box."""

    images: UInt8[Any, "n size size channels"]
    boxes: Float[Any, "n slots 4"]
    labels: Int[Any, "n slots"]


@dataclasses.dataclass(frozen=True)
class DetectionSet:
    """A data set in memory.

    Attributes:
      name: as TFDS calls it.
      train: to train on.
      test: to test on.
      classes: their names, by label.
      flip: whether an image may be mirrored.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    flip: bool

    def contents(self) -> bytes:
        """Which tell whether several processes have the same."""
        return self.train.images.tobytes() + self.train.boxes.tobytes()


def load_detection_set(
    name: str, data_dir: Path | None, train_split: str, test_split: str | None, image_size: int, slots: int
) -> DetectionSet:
    """Loads a data set, each image letterboxed: scaled to fit into a square, the rest of it gray.

    Args:
      name: `digits`, or the name of a TFDS data set, which TFDS downloads, with the features `image`, `objects/bbox` and
        `objects/label`, or with one object an image, `bbox` and `label`.
      data_dir: a data set that TFDS has already prepared, the folder that holds its `dataset_info.json`. Goes before `name`.
      train_split: a TFDS split such as `train` or `train+validation`.
      test_split: likewise; by default `test`, or `validation` where there is no `test`.
      image_size: height and width of the square, in pixels.
      slots: boxes of an image; of more, the largest are taken. Boxes without an area are none.

    Raises:
      UserError: no such data set or split, or not one of boxes.
    """
    if data_dir is None and name == "digits":
        return _digits(train_split, test_split or "test", image_size, slots)
    builder = open_tfds(name, data_dir, _ADVICE)
    read, label = _reader(builder)
    splits = train_split, test_split or default_test_split(builder)
    train, test = (_read(open_split(builder, split), read, image_size, slots) for split in splits)
    return DetectionSet(builder.name, train, test, tuple(label.names), flip=not _NOT_FLIPPED.search(builder.name))


Example = tuple[UInt8[np.ndarray, "height width channels"], Float[np.ndarray, "boxes 4"], Int[np.ndarray, " boxes"]]


def letterbox(
    image: UInt8[np.ndarray, "height width channels"], boxes: Float[np.ndarray, "boxes 4"], size: int
) -> tuple[UInt8[np.ndarray, "size size channels"], Float[np.ndarray, "boxes 4"]]:
    """The image, scaled to fit into a square and put into its middle, and its boxes there; what is left is gray."""
    height, width, channels = image.shape
    scale = size / max(height, width)
    high, wide = max(round(height * scale), 1), max(round(width * scale), 1)
    flat = image[..., 0] if channels == 1 else image
    resized = np.asarray(Image.fromarray(flat).resize((wide, high), Image.Resampling.BILINEAR)).reshape(high, wide, channels)
    top, left = (size - high) // 2, (size - wide) // 2
    square = np.full((size, size, channels), GRAY, np.uint8)
    square[top : top + high, left : left + wide] = resized
    ratios = np.array([wide / width, high / height] * 2, np.float32)
    return square, (boxes * ratios + np.array([left, top] * 2)).astype(np.float32)


def in_slots(
    boxes: Float[np.ndarray, "boxes 4"], labels: Int[np.ndarray, " boxes"], slots: int, size: int
) -> tuple[Float[np.ndarray, "slots 4"], Int[np.ndarray, " slots"]]:
    """Boxes cut to the image, those with an area, the largest first; empty slots have zeros and the label -1."""
    boxes = np.clip(np.nan_to_num(boxes), 0, size)
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=-1)
    order = [index for index in np.argsort(-areas, kind="stable") if areas[index] > 0][:slots]
    placed, named = np.zeros((slots, 4), np.float32), np.full(slots, -1, np.int32)
    placed[: len(order)], named[: len(order)] = boxes[order], labels[order]
    return placed, named


def _reader(builder: Any) -> tuple[Callable[[Any], Example], Any]:
    """What makes an image and its boxes, in its pixels, of an example; and the feature of labels."""
    features = dict(builder.info.features.items())
    several = dict(features["objects"].items()) if "objects" in features else None
    own = features if several is None else several
    if "image" not in features or "bbox" not in own or getattr(own.get("label"), "names", None) is None:
        raise UserError(
            f"data set {builder.name!r} has the features {', '.join(features)}; image, objects/bbox and objects/label are "
            "needed, or image, bbox and label."
        )

    def read(example: Any) -> Example:
        found = example if several is None else example["objects"]
        image = example["image"]
        relative = np.asarray(found["bbox"], np.float32).reshape(-1, 4)
        sides = np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        boxes = relative[:, [1, 0, 3, 2]] * sides  # TFDS has y before x, as shares of the image
        return image, boxes, np.asarray(found["label"], np.int32).reshape(-1)

    return read, own["label"]


def _read(source: Any, read: Callable[[Any], Example], size: int, slots: int) -> Images:
    """Decodes a split, in threads: decoders release the interpreter."""
    channels = read(source[0])[0].shape[-1]
    images = np.empty((len(source), size, size, channels), np.uint8)
    boxes, labels = np.empty((len(source), slots, 4), np.float32), np.empty((len(source), slots), np.int32)

    def one(row: int) -> None:
        image, own, names = read(source[row])
        images[row], own = letterbox(image, own, size)
        boxes[row], labels[row] = in_slots(own, names, slots, size)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(len(source))))
    return Images(images, boxes, labels)


def _digits(train_split: str, test_split: str, size: int, slots: int) -> DetectionSet:
    """Scikit-learn's handwritten digits (UCI, 8x8), one to six of them scattered over each canvas.

    No digit is on canvases of two splits: 60% of them are for training, 20% for validation and 20% for testing. Each is 16
    to 40 pixels of 128 high and wide, and its box is around its ink. On about one canvas in ten there is none.
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    digits, labels = (found.images * (255 / 16)).astype(np.uint8), found.target
    order = np.random.default_rng(0).permutation(len(digits))
    fifths = np.array_split(order, 5)
    parts = {"train": np.concatenate(fifths[:3]), "validation": fifths[3], "test": fifths[4]}

    def made(split: str) -> Images:
        if split not in parts:
            raise UserError(f"data set 'digits' has no split {split!r}; it has {', '.join(parts)}.")
        random = np.random.default_rng(list(parts).index(split))
        return _scattered(random, digits[parts[split]], labels[parts[split]], _CANVASES[split], size, slots)

    return DetectionSet("digits", made(train_split), made(test_split), tuple(map(str, range(10))), flip=False)


def _scattered(
    random: np.random.Generator,
    digits: UInt8[np.ndarray, "digits 8 8"],
    labels: Int[np.ndarray, " digits"],
    count: int,
    size: int,
    slots: int,
) -> Images:
    canvases = np.zeros((count, size, size, 1), np.uint8)
    boxes, names = np.zeros((count, slots, 4), np.float32), np.full((count, slots), -1, np.int32)
    for row, canvas in enumerate(canvases):
        placed: list[tuple[int, int, int]] = []
        found: list[tuple[float, ...]] = []
        which: list[int] = []
        wanted = 0 if random.random() < 0.1 else random.integers(1, _MOST_DIGITS + 1)
        for _ in range(wanted):
            index = int(random.integers(len(digits)))
            side = int(random.integers(_LEAST_DIGIT, _LARGEST_DIGIT + 1)) * size // 128
            left, top = map(int, random.integers(0, size - side + 1, 2))
            if any(left < x + w and x < left + side and top < y + w and y < top + side for x, y, w in placed):
                continue  # it would lie over another
            placed.append((left, top, side))
            image = np.asarray(Image.fromarray(digits[index]).resize((side, side), Image.Resampling.BILINEAR))
            canvas[top : top + side, left : left + side, 0] = image
            rows, columns = (np.flatnonzero((image > 32).any(axis=axis)) for axis in (1, 0))
            found.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
            which.append(int(labels[index]))
        boxes[row], names[row] = in_slots(np.array(found).reshape(-1, 4), np.array(which, int), slots, size)
    return Images(canvases, boxes, names)
