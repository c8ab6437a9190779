"""A folder of images, one subfolder for each class, as arrays."""

import concurrent.futures
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Int, UInt8

from examples.paper.errors import UserError, first_line

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
_TEST_SPLITS = ("test", "validation", "val")
_HELD_OUT = 5
"""Where the folder has no test images of its own, one image of so many is held out."""


class Split(NamedTuple):
    """Images to train or to test on."""

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"]


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has images in its subfolders, or in subfolders of `train`."""
    return bool(_classes(folder) or _classes(folder / "train"))


def read_image_folder(folder: Path, train_split: str, test_split: str | None) -> tuple[Split, Split, list[str]]:
    """Reads `folder/CLASS/*.png` or `folder/train/CLASS/*.png` and `folder/test/CLASS/*.png`.

    The subfolders' names in alphabetical order are the classes 0, 1 and so on. Where all images are gray, they have one
    channel, otherwise three.

    Args:
      folder: if its subfolders are the classes themselves, a fifth of the images, drawn at random with a fixed seed, is
        for testing.
      train_split: the subfolder to train on.
      test_split: the subfolder to test on; by default `test`, `validation` or `val`.

    Returns:
      Images to train on, images to test on, and the classes.

    Raises:
      UserError: a subfolder is missing, the images differ in size, or one cannot be read.
    """
    if classes := _classes(folder):
        if (train_split, test_split) != ("train", None):
            raise UserError(
                f"--data-dir {folder} has no splits, its subfolders are classes; leave --train-split and --test-split out, "
                "or sort the images into subfolders train and test."
            )
        files = _files(folder, classes)
        order = np.random.default_rng(0).permutation(len(files))
        test = sorted(order[: len(files) // _HELD_OUT])
        train = sorted(order[len(files) // _HELD_OUT :])
        parts = [[files[index] for index in chosen] for chosen in (train, test)]
    else:
        if test_split is None:
            test_split = next((split for split in _TEST_SPLITS if (folder / split).is_dir()), _TEST_SPLITS[0])
        found = {split: _classes(folder / split) for split in (train_split, test_split)}
        for split, of_split in found.items():
            if not of_split:
                raise UserError(f"--data-dir {folder} has no subfolder {split} with a subfolder of images for each class.")
        classes = sorted(set().union(*found.values()))
        parts = [_files(folder / split, classes) for split in (train_split, test_split)]
    if not all(parts):
        raise UserError(f"--data-dir {folder} has {sum(map(len, parts))} images, too few to train and to test on.")
    images = _read(folder, [path for files in parts for path, _ in files])
    labels = [np.array([label for _, label in files], np.int32) for files in parts]
    count = len(parts[0])
    return Split(images[:count], labels[0]), Split(images[count:], labels[1]), classes


def _classes(folder: Path) -> list[str]:
    """The subfolders that hold images."""
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and any(map(_is_image, each.iterdir())))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Every image with its label, in alphabetical order."""
    there = ((folder / name, label) for label, name in enumerate(classes) if (folder / name).is_dir())
    return [(path, label) for place, label in there for path in sorted(place.iterdir()) if _is_image(path)]


def _read(folder: Path, paths: Sequence[Path]) -> UInt8[np.ndarray, "n height width channels"]:
    """Decodes images, in threads: decoders release the interpreter."""

    def read(path: Path) -> np.ndarray:
        try:
            with PIL.Image.open(path) as image:
                gray = image.mode in ("1", "L", "LA")
                return np.asarray(image.convert("L" if gray else "RGB"))
        except OSError as error:
            raise UserError(f"--data-dir {folder}: {path} cannot be read as an image: {first_line(error)}") from error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(read, paths))
    sizes = {image.shape[:2]: path for image, path in zip(images, paths, strict=True)}
    if len(sizes) > 1:
        told = " and ".join(f"{width} x {height} ({path})" for (height, width), path in sorted(sizes.items())[:2])
        raise UserError(
            f"--data-dir {folder}: the images have {len(sizes)} sizes, such as {told}; they must all have one: resize them, "
            "or use examples.image_classification, which does."
        )
    channels = max(1 if image.ndim == 2 else 3 for image in images)
    shaped = (image if image.ndim == 3 else image[..., None].repeat(channels, axis=-1) for image in images)
    return np.stack(list(shaped))
