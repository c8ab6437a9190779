"""The folder of a run: settings, log, summary, a lock, and what of it can be believed after damage or a kill."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import rich.console

from examples.paper.checkpoints import find_damage, saved
from examples.paper.domain import Domain
from examples.paper.errors import UserError
from examples.paper.settings import RunSettings


class RunDirectory:
    """A folder with `settings.json`, `log.jsonl`, `checkpoints/`, TensorBoard events, and in the end a summary and plots."""

    def __init__(self, path: Path, domain: Domain):
        self.path, self.domain = path, domain
        self.checkpoints = path.absolute() / "checkpoints"
        self._settings = path / "settings.json"
        self._log = path / "log.jsonl"
        self._summary = path / "summary.json"
        self._lock = path / "lock"
        self._holder = path / "lock-holder"

    def exists(self) -> bool:
        """Whether it holds a run."""
        return self._settings.exists()

    def check(self, settings: RunSettings, resume: bool) -> None:
        """Checks that a new run overwrites nothing, and that a resumed one has the same settings.

        Raises:
          UserError: it holds a run and `resume` is not given, or it holds none, or another one, and it is.
        """
        if not resume and self.exists():
            raise UserError(f"--out {self.path} already holds a run; add --resume to go on with it, or give another --out.")
        if resume and not self.exists():
            raise UserError(f"--resume: {self.path} holds no run; check --out, or start one without --resume.")
        if resume:
            wanted, found = _as_json(settings), self.settings()
            names = [name for name in wanted | found if name not in self.domain.settings.places()]
            different = [name for name in names if wanted.get(name) != found.get(name)]
            if different:
                flags = ", ".join(f"--{name.replace('_', '-')} {found.get(name)}" for name in different)
                raise UserError(f"--resume: the run in {self.path} has {flags}; give the same, or another --out.")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder, and keeps every other process from training in it meanwhile.

        The system lets go of the lock when the process ends in whatever way. Between hosts it holds where their file system
        has locks (NFS from version 4, Lustre mounted with `flock`).

        Raises:
          UserError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self._lock, blocking=False):
                now = datetime.datetime.now().astimezone().isoformat(" ", timespec="seconds")
                write_whole(self._holder, f"process {os.getpid()} on {socket.gethostname()} since {now}")
                yield
        except filelock.Timeout as error:
            time.sleep(0.5)  # it may have got the lock this moment, and be about to say so
            holder = self._holder.read_text() if self._holder.exists() else "another process"
            raise UserError(f"{self.path} is being trained by {holder}; wait for it, or give another folder.") from error

    def begin(self, settings: RunSettings, resume: bool, console: rich.console.Console) -> None:
        """Readies the folder, which is held, for a run that begins or goes on."""
        self.check(settings, resume)  # perhaps once more: it may have been another's until now
        self.start(settings)
        self.recover(lambda line: console.print(line, style="yellow", soft_wrap=True))

    def start(self, settings: RunSettings) -> None:
        """Makes the folder and writes down the settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self._settings, json.dumps(_as_json(settings), indent=2) + "\n")

    def settings(self) -> dict[str, Any]:
        """The settings as JSON. A setting that did not exist when the run was started has its default."""
        if not self.exists():
            raise UserError(f"{self.path} holds no run.")
        return _as_json(self.domain.settings().resolved()) | _read_object(self._settings)

    def log(self) -> list[dict[str, Any]]:
        """The lines of the log, one for each interval from the first. A line that is cut off or out of order ends it."""
        lines = []
        for line in self._log.read_text(errors="replace").splitlines() if self._log.exists() else []:
            try:
                content = json.loads(line)
                if content[self.domain.interval] != len(lines) + 1:
                    break
            except (ValueError, KeyError, TypeError):
                break
            lines.append(content)
        return lines

    def cut_log(self, done: int) -> None:
        """Drops the lines after this number of intervals: a resumed run logs them again."""
        write_whole(self._log, "".join(json.dumps(line) + "\n" for line in self.log()[:done]))

    def write_log(self, line: Mapping[str, Any]) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(_finite(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes what is known only at the end: the final spectra, test metrics, and where the run was computed."""
        write_whole(self._summary, json.dumps(_finite(summary)) + "\n")

    def summary(self) -> dict[str, Any]:
        """The summary; empty before the end of the run."""
        return _read_object(self._summary) if self._summary.exists() else {}

    def recover(self, tell: Callable[[str], None]) -> None:
        """Leaves the run at the last interval whose checkpoint is whole and that is in the log, so that it goes on there.

        Later checkpoints are put aside, and a line tells what was wrong with them. Nothing happens to the folder of a run
        that has none yet.

        Raises:
          UserError: there are checkpoints, and none can be gone on from.
        """
        done, logged, interval = saved(self.checkpoints), len(self.log()), self.domain.interval
        problems: dict[int, str] = {}
        for number in reversed(done):
            damaged = find_damage(self.checkpoints / str(number))
            if damaged is not None:
                problems[number] = f"{damaged.relative_to(self.path.absolute())} is damaged"
            elif number > logged:
                problems[number] = f"the log ends with {interval} {logged}, before checkpoint {number}"
        whole = [number for number in done if number not in problems]
        if done and not whole:
            found = "; ".join(problems.values())
            raise UserError(f"{self.path} cannot be resumed: {found}. Put back what is missing, or give another --out.")
        for number, problem in problems.items():
            if number > whole[-1]:
                aside = self.path / "put_aside" / str(number)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self.checkpoints / str(number)).rename(aside)
                tell(f"{problem}; put into {aside}, going on from {interval} {whole[-1]}")


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically: after a kill, the file is complete or as it was before."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error}). Put it back, or give another folder.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object. Put it back, or give another folder.")
    return content


def _as_json(settings: RunSettings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {name: os.path.abspath(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}


def _finite(value: Any) -> Any:
    """The value with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
