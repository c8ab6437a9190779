"""Results: one line of JSON for each finished run, in plain files that merge by being put behind one another.

A line holds the run's settings, its final accuracies and losses, how accuracy, learning rate and every layer's alpha,
scale and gradient norm went over the epochs, gradient norms within the first epochs and spectra of one weight there and
later (not in lines of older versions), histograms of the final spectra, and where it was computed. A run is known by its
settings: where several lines have the same, the last one counts.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from examples.runs.errors import UserError
from examples.runs.run_directory import RunDirectory, write_whole
from examples.vision.settings import Settings

Row = Mapping[str, Any]

_DEFAULTS = dataclasses.asdict(Settings())
_OVER_EPOCHS = ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "images_per_second")
_OVER_LAYERS = ("alpha", "scale", "gradient_norm")


def run_key(settings: Settings | Mapping[str, Any]) -> str:
    """What a run is known by: every setting but the place of its data, as text."""
    if not isinstance(settings, Settings):
        known = {name: value for name, value in settings.items() if name in _DEFAULTS}
        settings = Settings(**known)
    values = dataclasses.asdict(settings.resolved())
    return json.dumps({name: value for name, value in sorted(values.items()) if name != "data_dir"})


def setting_key(settings: Settings | Mapping[str, Any]) -> str:
    """What runs that differ in their seed only have in common."""
    return json.dumps({name: value for name, value in json.loads(run_key(settings)).items() if name != "seed"})


def row_of(directory: RunDirectory) -> Row:
    """The line of a finished run."""
    log, summary = directory.log(), directory.summary()
    last = log[-1]
    settings = {name: value for name, value in directory.settings(Settings).items() if name != "data_dir"}
    return {
        "settings": settings,
        **{name: last[name] for name in ("test_accuracy", "test_loss", "train_accuracy", "train_loss")},
        "seconds": round(sum(line["seconds"] for line in log), 1),
        "history": {name: [_rounded(line[name]) for line in log] for name in _OVER_EPOCHS}
        | {name: {layer: [_rounded(line[name][layer]) for line in log] for layer in last[name]} for name in _OVER_LAYERS}
        | _within_epochs(log),
        **summary,
    }


def _within_epochs(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each layer the gradient norms within each epoch that has them, and all spectra of one weight.

    Nothing of a run whose first epoch's line lacks them: an older version began it.
    """
    found = {}
    if "gradient_norms_within" in log[0]:
        lines = [line["gradient_norms_within"] for line in log if "gradient_norms_within" in line]
        norms = {layer: [list(map(_rounded, line["norms"][layer])) for line in lines] for layer in lines[0]["norms"]}
        found["gradient_norms_within"] = {**lines[0], "norms": norms}
    if "spectra_within" in log[0]:
        lines = [line["spectra_within"] for line in log if "spectra_within" in line]
        found["spectra_within"] = {**lines[0], "spectra": [each for line in lines for each in line["spectra"]]}
    return found


def read_results(paths: Iterable[Path]) -> list[Row]:
    """The rows of files, and of all `*.jsonl` in folders; of those with the same settings, the last.

    Raises:
      UserError: a file is not there, or a line is not a row. A last line that was cut off is left out.
    """
    rows: dict[str, Row] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file of results.")
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            for row in _read(file):
                rows[run_key(row["settings"])] = row
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """Adds a line; what a kill left of another before it is cut off first. Others that add one meanwhile wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        kept = "".join(json.dumps(other) + "\n" for other in _read(path)) if path.exists() else ""
        write_whole(path, kept + json.dumps(row) + "\n")


def _read(file: Path) -> list[Row]:
    rows, lines = [], file.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "settings": dict(row["settings"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise UserError(f"{file}, line {number}, is not a result: a JSON object with settings.") from error
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
