"""Safetensors, in one file or several with an index, by the format's own package."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import ml_dtypes
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.formats.index import files_of_index
from tb_optax._report.source import CheckpointError, Source, printable, shape_of

_WAY_OUT = "get or save the file again"
_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def open_safetensors(where: FilePath) -> Source:
    return _of_files(where, {where: None})


def open_index(where: FilePath) -> Source:
    """The arrays of the files that an index names, all of which lie beside it."""
    return _of_files(where, files_of_index(where, _WAY_OUT))


def _of_files(where: FilePath, files: Mapping[FilePath, set[Path] | None]) -> Source:
    """The arrays of these files, all of them or those named."""
    shapes, unreadable, file_of = {}, {}, {}
    layouts = set()
    for file, wanted in files.items():
        handle = _open(file)
        _refuse_repeated_names(file)
        has = set(handle.keys())
        # PyTorch's `save_pretrained` writes "pt".
        layouts.add("torch" if (handle.metadata() or {}).get("format") == "pt" else None)
        if wanted is not None and not wanted <= has:
            raise CheckpointError(where, f"{sorted(wanted - has)[0]!r} is not in {printable(file.name)}", _WAY_OUT)
        for path in sorted(has if wanted is None else wanted):
            part = handle.get_slice(path)
            if part.get_dtype() in _DTYPES:
                shapes[path] = shape_of(part.get_shape(), _DTYPES[part.get_dtype()])
                file_of[path] = file
            else:
                unreadable[path] = f"its dtype, {part.get_dtype()}, is not known"
    layout = "torch" if layouts == {"torch"} else None
    return Source(str(where), "safetensors", shapes, functools.partial(_read, where, file_of), unreadable, layout=layout)


def _refuse_repeated_names(file: FilePath) -> None:
    """Refuses two arrays with one name: the format's package silently takes the last."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise CheckpointError(file, "its header has a name twice", _WAY_OUT)
        return found

    with file.open("rb") as opened:  # The package has checked the header.
        json.loads(opened.read(int.from_bytes(opened.read(8), "little")), object_pairs_hook=unique)


def _open(file: FilePath) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(file, f"not a valid safetensors file ({error})", _WAY_OUT) from error


def _read(where: FilePath, file_of: Mapping[Path, FilePath], path: Path) -> np.ndarray:
    from safetensors import SafetensorError

    try:
        # The package maps the file into memory: all of it would be there in the end if it stayed open.
        with _open(file_of[path]) as opened:
            return opened.get_tensor(path)
    except (SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(where, f"{path!r} is damaged ({error})", _WAY_OUT) from error
