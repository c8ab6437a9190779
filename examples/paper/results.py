"""Results: one line of JSON for each finished run, in plain files that merge by being put behind one another.

A line holds the run's settings, its final metrics, how these, the learning rate and every layer's alpha, scales and gradient
norm went over the intervals, gradient norms within the first intervals and spectra of one weight there and later (not in
lines of older versions), histograms of the final spectra, and where it was computed. A run is known by its
settings: where several lines have the same, the last one counts. A line may have a `note`, which reports repeat.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from examples.paper.domain import Domain
from examples.paper.errors import UserError
from examples.paper.run_directory import RunDirectory, write_whole
from examples.paper.settings import RunSettings

Row = Mapping[str, Any]

_OVER_LAYERS = ("alpha", "scale", "decay_scale", "gradient_norm")


def run_key(domain: Domain, row: Row) -> str:
    """What the run of a line of results is known by: every setting but the places of data, as text."""
    return domain.settings.of(row["settings"]).key()


def setting_key(settings: RunSettings) -> str:
    """What runs that differ in their seed only have in common."""
    return json.dumps({name: value for name, value in json.loads(settings.key()).items() if name != "seed"})


def row_of(directory: RunDirectory) -> Row:
    """The line of a finished run."""
    domain, log, summary = directory.domain, directory.log(), directory.summary()
    last = log[-1]
    settings = {name: value for name, value in directory.settings().items() if name not in domain.settings.places()}
    over_intervals = ("learning_rate", *domain.metrics, domain.speed)
    return {
        "settings": settings,
        **{name: last[name] for name in domain.metrics},
        "seconds": round(sum(line["seconds"] for line in log), 1),
        "history": {name: [rounded(line[name]) for line in log] for name in over_intervals}
        | {
            name: {layer: [rounded(line[name][layer]) for line in log] for layer in last[name]}
            for name in _OVER_LAYERS
            if all(name in line for line in log)
        }
        | _within_intervals(log),
        **summary,
    }


def _within_intervals(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each layer the gradient norms within each interval that has them, and all spectra of one weight.

    Nothing of a run whose first interval's line lacks them: an older version began it.
    """
    found = {}
    if "gradient_norms_within" in log[0]:
        lines = [line["gradient_norms_within"] for line in log if "gradient_norms_within" in line]
        norms = {layer: [list(map(rounded, line["norms"][layer])) for line in lines] for layer in lines[0]["norms"]}
        found["gradient_norms_within"] = {**lines[0], "norms": norms}
    if "spectra_within" in log[0]:
        lines = [line["spectra_within"] for line in log if "spectra_within" in line]
        found["spectra_within"] = {**lines[0], "spectra": [each for line in lines for each in line["spectra"]]}
    return found


def read_results(domain: Domain, paths: Iterable[Path]) -> list[Row]:
    """The rows of files, and of all `*.jsonl` in folders; of those with the same settings, the last.

    Raises:
      UserError: a file is not there, a line is not a row, or its method is unknown. A last line that was cut off is left
        out.
    """
    rows: dict[str, Row] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file of results.")
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            for number, row in enumerate(read_rows(file), 1):
                method = row["settings"].get("method", domain.style.baseline)
                if method not in domain.settings.methods():
                    raise UserError(
                        f"{file}, line {number}, has the method {method!r}, which this version does not know; take the line "
                        "out, or read it with the version that wrote it."
                    )
                rows[run_key(domain, row)] = row
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """Adds a line; what a kill left of another before it is cut off first. Others that add one meanwhile wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        kept = "".join(json.dumps(other) + "\n" for other in read_rows(path)) if path.exists() else ""
        write_whole(path, kept + json.dumps(row) + "\n")


def read_rows(file: Path) -> list[Row]:
    """The rows of one file, as they stand in it; a last line that was cut off is left out.

    Raises:
      UserError: a line is not a row, or the file is not in UTF-8.
    """
    try:
        rows, lines = [], file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not in UTF-8 (byte {error.start}); give a file of results, one JSON line each."
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "settings": dict(row["settings"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise UserError(f"{file}, line {number}, is not a result: a JSON object with settings.") from error
    return rows


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
