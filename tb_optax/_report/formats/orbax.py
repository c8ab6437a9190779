"""Orbax's directories: a tree saved alone, as an item of a step, or the newest step of a run; OCDBT or not, sharded or not.

The tree's own metadata gives names, shapes and dtypes, so that no code of the model is needed. Only the arrays asked for are
read, whole, whatever devices wrote them.
"""

import functools
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from tb_optax._layers.layer import Path, path_name
from tb_optax._report.source import CheckpointError, Source, shape_of

_METADATA = "_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"  # A directory is renamed when all is in it.
_WAY_OUT = "restore an older step, or save it again"


def find_checkpoint(where: FilePath) -> FilePath | None:
    """The directory that holds a tree: this one, its one item with a tree, or those of its newest step; else None."""
    if _UNFINISHED in where.name:
        raise CheckpointError(where, "the step was not completely written", "give an older step")
    if (where / _METADATA).is_file():
        return where
    children = sorted(child for child in where.iterdir() if child.is_dir() and _UNFINISHED not in child.name)
    items = [child for child in children if (child / _METADATA).is_file()]
    preferred = [item for item in items if item.name in ("params", "default", "state", "model", "pytree")]
    if len(items) > 1 and len(preferred) != 1:
        names = ", ".join(item.name for item in items)
        raise CheckpointError(where, f"it holds several trees: {names}", f"give one of them: {where / items[0].name}")
    if items:
        return (preferred or items)[0]
    steps = {number: child for child in children if (number := step_of(child)) is not None}
    for number in sorted(steps, reverse=True):
        if (found := find_checkpoint(steps[number])) is not None:
            return found
    return None


def step_of(directory: FilePath) -> int | None:
    """The step of a run that a directory's name says it is of: `1000`, `step_1000`, `checkpoint-1000`."""
    digits = directory.name[len(directory.name.rstrip("0123456789")) :]
    return int(digits[:18]) if digits else None


def open_orbax(where: FilePath) -> Source:
    import orbax.checkpoint as ocp

    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(_epath(where.absolute())).tree
        leaves = {path_name(key_path): leaf for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        shapes = {
            path: shape_of(leaf.shape, leaf.dtype)
            for path, leaf in leaves.items()
            if isinstance(getattr(leaf, "shape", None), tuple) and getattr(leaf, "dtype", None) is not None
        }
    except Exception as error:  # Orbax and what it stands on raise anything.
        raise CheckpointError(where, f"its tree's metadata cannot be read ({error})", _WAY_OUT) from error
    return Source(str(where), "Orbax", shapes, functools.partial(_read, where, tree))


def _read(where: FilePath, tree: Any, path: Path) -> np.ndarray:
    import orbax.checkpoint as ocp

    wanted = lambda key_path, leaf: leaf if path_name(key_path) == path else ocp.PLACEHOLDER
    item = jax.tree_util.tree_map_with_path(wanted, tree)
    restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(where.absolute(), args=ocp.args.PyTreeRestore(item=item, restore_args=restore))
        leaves = {path_name(key_path): leaf for key_path, leaf in jax.tree_util.tree_leaves_with_path(found)}
        return np.asarray(leaves[path])
    except Exception as error:  # As above.
        raise CheckpointError(where, f"{path!r} is damaged ({error})", _WAY_OUT) from error


def _epath(where: FilePath) -> Any:
    from etils import epath

    return epath.Path(where)
