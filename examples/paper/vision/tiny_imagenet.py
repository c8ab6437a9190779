"""Prepares Tiny ImageNet, which TFDS does not know: `python -m examples.paper vision tiny_imagenet tiny-imagenet-200.zip`.

Reads the official zip (Stanford's CS231n: 200 classes, 100,000 training and 10,000 validation images of 64x64) where it
lies, or the folder that it unpacks to. Its test images have no labels and are left out.
"""

import contextlib
import dataclasses
import io
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import PIL.Image
import rich.console
import rich.progress
import tensorflow_datasets as tfds
import tyro
from tensorflow_datasets.core import constants

from examples.paper.errors import UserError, telling_errors

_FOLDER = "tiny-imagenet-200"
_ANNOTATIONS = "val/val_annotations.txt"
_SIZE = (64, 64)

Labels = dict[str, str]
"""The class of each image: by its path, a WordNet ID such as n01443537."""


def tiny_imagenet(path: Annotated[Path, tyro.conf.Positional], data_dir: Path | None = None) -> None:
    """Prepares Tiny ImageNet for training with --dataset tiny_imagenet.

    Args:
      path: tiny-imagenet-200.zip, or the folder that it unpacks to.
      data_dir: where to write the data set; by default TFDS's own directory, where --dataset tiny_imagenet is looked for.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS reports its every step
    console = rich.console.Console(highlight=False)
    try:
        with telling_errors(data_dir or Path(constants.DATA_DIR)):
            folder = prepare(path, data_dir, console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is prepared")
        sys.exit(130)
    flag = "--dataset tiny_imagenet" if data_dir is None else f"--data-dir {folder}"
    console.print(f"train on it: python -m examples.paper vision train {flag}", soft_wrap=True)


def prepare(path: Path, data_dir: Path | None, console: rich.console.Console) -> Path:
    """Writes the data set for TFDS and returns the folder that holds its `dataset_info.json`.

    Args:
      path: `tiny-imagenet-200.zip`, or the folder that it unpacks to.
      data_dir: where to; by default TFDS's own directory.
      console: where to tell of it.

    Raises:
      UserError: `path` is neither, or not whole.
    """
    tfds.disable_progress_bar()  # its own
    with _open_files(path) as files:
        names, splits = _read_labels(files)
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("images", total=sum(map(len, splits.values())))
            builder = TinyImagenet(
                files.read, names, splits, lambda: progress.advance(task), data_dir=data_dir, file_format="array_record"
            )
            folder = Path(builder.data_path)
            if folder.exists():
                console.print(f"already prepared: {folder}; delete that folder to prepare it anew", soft_wrap=True)
                return folder
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    counts = " and ".join(f"{len(labels):,} {split}" for split, labels in splits.items())
    console.print(f"{counts} images of {len(names)} classes in {folder}", soft_wrap=True)
    return folder


# Not registered: by its name TFDS would build it, and not knowing from what, fail; so it reads what is prepared.
class TinyImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes Tiny ImageNet; `read` gives an image's file by its path."""

    name = "tiny_imagenet"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        read: Callable[[str], bytes],
        names: list[str],
        splits: dict[str, Labels],
        on_image: Callable[[], None],
        **kwargs: Any,
    ):
        self._read, self._names, self._splits, self._on_image = read, names, splits, on_image
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            # Without an encoding: each file is as it was, but for those that are written anew.
            "image": tfds.features.Image(shape=(*_SIZE, 3)),
            "label": tfds.features.ClassLabel(names=self._names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny ImageNet: 200 classes of ImageNet, scaled to 64x64.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _log_download_bytes(self) -> None:
        """Says nothing, for nothing is downloaded."""

    _log_download_done = _log_download_bytes

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager
        return {split: self._generate_examples(labels) for split, labels in self._splits.items()}

    def _generate_examples(self, labels: Labels) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, name in labels.items():
            yield path, {"image": _as_rgb(path, self._read(path)), "label": name}
            self._on_image()


def _as_rgb(path: str, file: bytes) -> bytes:
    """An image's file: as it is, if in colour; of a gray one, the same pixels in three channels, without loss."""
    try:
        with PIL.Image.open(io.BytesIO(file)) as image:
            pixels = image.convert("RGB")  # which decodes it: what is cut off does not pass
            colour = image.mode == "RGB"
    except (OSError, SyntaxError) as error:
        raise _damaged(path) from error
    if pixels.size != _SIZE:
        raise UserError(f"{path} is of {pixels.width}x{pixels.height} pixels; those of {_FOLDER}.zip are of 64x64.")
    if colour:
        return file
    rewritten = io.BytesIO()
    pixels.save(rewritten, "png")
    return rewritten.getvalue()


@dataclasses.dataclass(frozen=True)
class _Files:
    """The files of `tiny-imagenet-200`, zipped or not, by their path in it."""

    names: set[str]
    read: Callable[[str], bytes]


@contextlib.contextmanager
def _open_files(path: Path) -> Iterator[_Files]:
    if path.is_dir():
        root = next((root for root in (path, path / _FOLDER) if (root / "wnids.txt").is_file()), None)
        if root is None:
            raise UserError(f"the folder {path} has no wnids.txt; give {_FOLDER}.zip, or the folder that it unpacks to.")
        names = {file.relative_to(root).as_posix() for file in root.rglob("*")}
        yield _Files(names, lambda name: (root / name).read_bytes())
        return
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; give {_FOLDER}.zip, or the folder that it unpacks to.") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is no zip, or not a whole one; get {_FOLDER}.zip again.") from error
    with archive:
        names = set(archive.namelist())
        prefix = next((prefix for prefix in ("", f"{_FOLDER}/") if f"{prefix}wnids.txt" in names), None)
        if prefix is None:
            raise UserError(f"the zip {path} has no {_FOLDER}/wnids.txt; give {_FOLDER}.zip.")

        def read(name: str) -> bytes:
            try:
                return archive.read(prefix + name)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise _damaged(name) from error

        yield _Files({name.removeprefix(prefix) for name in names}, read)


def _damaged(name: str) -> UserError:
    return UserError(f"{name} is damaged; get {_FOLDER}.zip again.")


def _read_labels(files: _Files) -> tuple[list[str], dict[str, Labels]]:
    """The classes, and the images of each split.

    Classes are numbered in the order of their WordNet IDs, as PyTorch's `ImageFolder` numbers folders, and not in that of
    `wnids.txt`.
    """
    names = sorted(files.read("wnids.txt").decode().split())
    if not names:
        raise _incomplete("wnids.txt is empty")
    paths = sorted(files.names)
    train = {path: found[1] for path in paths if (found := re.fullmatch(r"train/(\w+)/images/.*\.JPEG", path))}
    for name in sorted(set(names) - set(train.values())):
        raise _incomplete(f"the class {name} of wnids.txt has no image in train/{name}/images")
    if _ANNOTATIONS not in files.names:
        raise _incomplete(f"{_ANNOTATIONS}, which has the labels of val/images, is missing")
    lines = [line.split("\t") for line in files.read(_ANNOTATIONS).decode().splitlines() if line.strip()]
    annotated = {f"val/images/{line[0]}": "".join(line[1:2]) for line in lines}
    images = {path for path in paths if re.fullmatch(r"val/images/.*\.JPEG", path)}
    if not images:
        raise _incomplete("val/images has no image")
    for path in sorted(images ^ annotated.keys()):
        raise _incomplete(
            f"{path} has no line in {_ANNOTATIONS}"
            if path in images
            else f"{path}, which has a line in {_ANNOTATIONS}, is missing"
        )
    for path, name in (train | annotated).items():
        if name not in names:
            raise _incomplete(f"the class {name!r} of {path} is not in wnids.txt")
    return names, {"train": train, "validation": annotated}


def _incomplete(problem: str) -> UserError:
    return UserError(f"{problem}; unpack {_FOLDER}.zip again.")
