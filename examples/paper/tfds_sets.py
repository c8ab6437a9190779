"""TensorFlow Datasets without TensorFlow: prepared sets are opened, named ones are downloaded and prepared."""

import os
from pathlib import Path
from typing import Any

from examples.paper.errors import UserError, first_line


def open_tfds(name: str, data_dir: Path | None, advice: str, others: str = "") -> Any:
    """A builder whose splits can be read.

    Args:
      name: of a TFDS data set, such as `voc/2007`.
      data_dir: the folder that holds the `dataset_info.json` of a set that TFDS has prepared. Goes before `name`.
      advice: what to do where TFDS has no set of that name.
      others: what else `data_dir` may be, for the error.

    Raises:
      UserError: there is none, or it could not be had.
    """
    return _open_named(name, advice) if data_dir is None else _open_directory(data_dir, others)


def open_split(builder: Any, split: str) -> Any:
    """A sequence of the examples of a split.

    Raises:
      UserError: there is no such split, or nothing in it.
    """
    try:
        source = builder.as_data_source(split=split)
    except Exception as error:
        raise UserError(
            f"data set {builder.name!r} has no split {split!r}; it has {', '.join(builder.info.splits) or 'none'}."
        ) from error
    if len(source) == 0:
        raise UserError(f"the split {split!r} of data set {builder.name!r} is empty.")
    return source


def default_test_split(builder: Any) -> str:
    """`test`, or `validation` where there is no `test`."""
    return next((split for split in ("test", "validation") if split in builder.info.splits), "test")


def _tfds() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    return tfds


def _open_directory(data_dir: Path, others: str) -> Any:
    try:
        return _tfds().builder_from_directory(data_dir)
    except Exception as error:
        raise UserError(
            f"--data-dir {data_dir} is not a data set that TFDS has prepared; "
            f"give the folder that holds its dataset_info.json (usually NAME/VERSION){others}."
        ) from error


def _open_named(name: str, advice: str) -> Any:
    tfds = _tfds()
    try:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        where = f" in {tfds.core.constants.DATA_DIR}"
        raise UserError(f"--dataset {name}: TFDS has no data set of that name{where}; {advice}") from error
    except Exception as error:
        raise UserError(
            f"--dataset {name}: TFDS could not download, prepare or open it (prepared sets: in TFDS_DATA_DIR): "
            f"{first_line(error)}"
        ) from error
    return builder
