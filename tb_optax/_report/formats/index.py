"""The index of a checkpoint in several files, as Hugging Face's libraries write it: which file holds which array."""

import json
from pathlib import Path as FilePath

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, printable


def files_of_index(where: FilePath, way_out: str) -> dict[FilePath, set[Path]]:
    """The arrays of each file that an index names, all of which lie beside it."""
    try:
        weight_map = json.loads(where.read_text("utf-8"))["weight_map"]
        names = {str(path): str(name) for path, name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(where, "not an index of a checkpoint: it has no weight_map", way_out) from error
    files: dict[FilePath, set[Path]] = {}
    for path, name in names.items():
        if name != FilePath(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise CheckpointError(where, f"it names {name!r}, which is not a file in its folder", "correct the index")
        files.setdefault(where.parent / name, set()).add(path)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            where, f"it names {printable(missing[0])}, which is missing", "get all files of the checkpoint"
        )
    return files
