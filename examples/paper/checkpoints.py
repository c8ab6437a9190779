"""Checkpoints of a run: one an interval, atomically, with Orbax, and with a checksum of every file."""

import contextlib
import json
import threading
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from examples.paper.errors import UserError
from examples.paper.parallel import is_first_process

PyTree = Any

_CHECKSUMS = "checksums.json"
_METADATA = "_CHECKPOINT_METADATA"  # Orbax's; written once more behind the checksums
_UNFINISHED = "*.orbax-checkpoint-tmp*"
_PATIENCE = 30.0
"""Seconds to wait for a save when training has failed."""


class Checkpoints:
    """The checkpoints in a folder, by the number of intervals done. Saving goes on in the background until the `with` ends.

    Where there are several processes, all make one and call it together, and all see the folder.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        options = ocp.options.AsyncOptions(post_finalization_callback=self._write_checksums)
        self._manager = ocp.CheckpointManager(
            directory, options=ocp.CheckpointManagerOptions(max_to_keep=2, async_options=options)
        )
        self.latest = self._manager.latest_step

    def save(self, number: int, state: PyTree) -> None:
        self._manager.save(number, args=ocp.args.StandardSave(state))  # pyright: ignore[reportCallIssue]

    def restore(self, number: int, like: PyTree) -> PyTree:
        """The state after an interval, with the shapes, dtypes and shardings of `like`.

        Raises:
          UserError: the checkpoint holds another kind of state, as an earlier version of this program saved it.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(number, args=ocp.args.StandardRestore(target))  # pyright: ignore[reportCallIssue]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._directory / str(number)} holds another kind of state, as another version of this program saves it; "
                "go on with that version, or start again in another folder."
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits until all is saved; after an error not for ever, as one of Orbax's threads might."""
        if kind is None or not issubclass(kind, Exception):
            self._close()
            return
        closing = threading.Thread(target=self._close, args=(Exception,), daemon=True)
        closing.start()
        closing.join(_PATIENCE)

    def _close(self, *ignored: type[Exception]) -> None:
        with contextlib.suppress(*ignored):
            self._manager.wait_until_finished()
            self._manager.close()

    def _write_checksums(self) -> None:
        """Of a checkpoint that is complete but for its name, which Orbax gives it next."""
        if is_first_process():
            for unfinished in self._directory.glob(_UNFINISHED):
                files = sorted(path for path in unfinished.rglob("*") if path.is_file() and path.name != _METADATA)
                sums = {str(path.relative_to(unfinished)): _checksum(path) for path in files}
                (unfinished / _CHECKSUMS).write_text(json.dumps(sums))


def saved(directory: Path) -> list[int]:
    """The intervals of which a folder holds checkpoints, ascending; none that was only begun."""
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.exists() else []


def last_saved(directory: Path) -> int:
    """The last of `saved`, which after an interruption is not always the last one begun; -1 for none."""
    return max(saved(directory), default=-1)


def find_damage(checkpoint: Path) -> Path | None:
    """The first file of a checkpoint that is not as it was written. Orbax reads a flipped byte as another number."""
    path = checkpoint / _METADATA
    try:
        json.loads(path.read_text())
        path = checkpoint / _CHECKSUMS
        for name, checksum in dict(json.loads(path.read_text())).items():
            if _checksum(checkpoint / name) != checksum:
                return checkpoint / name
    except FileNotFoundError as error:
        return Path(error.filename)
    except (OSError, ValueError, TypeError):
        return path
    return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
