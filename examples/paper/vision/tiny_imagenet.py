"""Prepares Tiny ImageNet, which TFDS does not know: `python -m examples.paper vision tiny_imagenet tiny-imagenet-200.zip`.

Reads the official zip (Stanford's CS231n: 200 classes, 100,000 training and 10,000 validation images of 64x64) where it
lies, and writes an .npz file. The test images of the zip have no labels and are left out.
"""

import concurrent.futures
import io
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL.Image
import tyro
from jaxtyping import UInt8

from examples.paper.errors import UserError, first_line
from examples.paper.vision.data import NORMALIZATION, TINY_IMAGENET


def prepare(path: Annotated[Path, tyro.conf.Positional], out: Path = TINY_IMAGENET) -> None:
    """Prepares Tiny ImageNet for training with --dataset tiny_imagenet.

    Classes are numbered in the order of their WordNet IDs, as PyTorch's `ImageFolder` numbers folders, and not in that of
    `wnids.txt`.

    Args:
      path: tiny-imagenet-200.zip.
      out: the .npz file to write. By default it is where --dataset tiny_imagenet looks for it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _read(archive)
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; give tiny-imagenet-200.zip.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not the whole tiny-imagenet-200.zip ({first_line(error)}); get it again.") from error
    mean, std = np.array(NORMALIZATION["tiny_imagenet"], np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".unfinished.npz")
    np.savez(unfinished, **arrays, mean=mean, std=std)  # pyright: ignore[reportArgumentType]
    unfinished.rename(out)
    counts = " and ".join(f"{len(arrays[f'{split}_labels']):,} {split}" for split in ("train", "test"))
    flag = "--dataset tiny_imagenet" if out == TINY_IMAGENET else f"--data-dir {out}"
    print(f"{counts} images in {out}; train on it: python -m examples.paper vision train {flag}")


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """The arrays of a data set, as `load_dataset` describes them."""
    root = "tiny-imagenet-200/"
    lines = lambda name: archive.read(root + name).decode().splitlines()
    classes = sorted(lines("wnids.txt"))
    labels = {name: label for label, name in enumerate(classes)}
    paths = sorted(archive.namelist())
    train = {path: labels[found[1]] for path in paths if (found := re.fullmatch(rf"{root}train/(\w+)/images/.*JPEG", path))}
    annotated = [line.split("\t") for line in lines("val/val_annotations.txt")]
    test = {f"{root}val/images/{name}": labels[label] for name, label, *_ in annotated}
    if set(train.values()) != set(labels.values()):
        raise ValueError("a class of wnids.txt has no image in train")
    if set(test) != {path for path in paths if path.startswith(f"{root}val/images/") and path.endswith("JPEG")}:
        raise ValueError("val/val_annotations.txt has not a line for each image in val/images")

    def pixels(path: str) -> UInt8[np.ndarray, "64 64 3"]:
        try:
            with PIL.Image.open(io.BytesIO(archive.read(path))) as image:
                return np.asarray(image.convert("RGB"))  # some are gray
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is damaged") from error

    arrays = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter
        for split, examples in (("train", train), ("test", test)):
            arrays[f"{split}_images"] = np.stack(list(pool.map(pixels, examples)))
            arrays[f"{split}_labels"] = np.array(list(examples.values()), np.int32)
    return arrays
