"""The source of weights: the arrays of a checkpoint or a tree by path, each read when it is needed."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tb_optax._layers.conventions import Layout
from tb_optax._layers.layer import Path, PyTree, leaves_by_path


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: in one line, which one, what is wrong with it, and what to do."""

    def __init__(self, where: str | os.PathLike[str], what: str, way_out: str):
        super().__init__(f"{shortened(printable(os.fspath(where)), 600)}: {one_line(what)}; {one_line(way_out)}.")


@dataclasses.dataclass(frozen=True)
class Source:
    """Arrays by path. Only their shapes and dtypes have been read.

    Attributes:
      name: what it is called, as the user gave it.
      format: of the file, for people: `"safetensors"`.
      shapes: shape and dtype of every array that can be read.
      read: the array of a path; may be called from several threads.
      unreadable: why other arrays cannot be read.
      layout: whether its convolutions have their outputs first (`"torch"`), if the file says so.
      tree: the arrays themselves as the user has them, where they come from no file: its modules tell more than paths.
    """

    name: str
    format: str
    shapes: Mapping[Path, jax.ShapeDtypeStruct]
    read: Callable[[Path], Any]
    unreadable: Mapping[Path, str] = dataclasses.field(default_factory=dict)
    tree: PyTree | None = None
    layout: Layout | None = None


def of_tree(params: PyTree) -> Source:
    """The arrays of a parameter tree."""
    leaves = {
        path: leaf for path, leaf in leaves_by_path(params).items() if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    }
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    return Source("params", "tree", shapes, leaves.__getitem__, tree=params)


def shape_of(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(int(size) for size in shape), np.dtype(dtype))


def printable(text: str) -> str:
    """A name as a terminal can show it: control characters, and those that turn the direction of text, are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def shortened(text: str, most: int) -> str:
    """Both ends of a very long text."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def one_line(text: str, most: int = 300) -> str:
    """The words of a message that may have lines, without its last full stop."""
    words = printable(" ".join(text.split()))
    return (words if len(words) <= most else words[:most] + "…").rstrip(".")
