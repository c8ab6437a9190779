"""Writes tables and plots from the result files of a run: `python -m benchmarks.report DIRECTORY`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from benchmarks import busy, checkpoint, choice, devices, figure23, refresh, steps
from benchmarks.plots import plot
from benchmarks.tables import table
from benchmarks.targets import targets

# In the order of the report.
PARTS = {
    "refresh": refresh,
    "steps": steps,
    "figure23": figure23,
    "busy": busy,
    "devices": devices,
    "choice": choice,
    "checkpoint": checkpoint,
}


def report(directory: Path) -> str:
    """Writes `report.md` and the plots next to the results, and returns the report's text.

    Raises:
      FileNotFoundError: the directory holds no results.
    """
    files = {part: directory / f"{part}.json" for part in PARTS}
    read = {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}
    if not read:
        names = ", ".join(file.name for file in files.values())
        raise FileNotFoundError(f"{directory} holds none of {names}; run the benchmarks.")
    parts = {part: content["cases"] for part, content in read.items() if content["cases"]}
    origins = {part: content["provenance"] for part, content in read.items()}
    device_of = {part: _device(origin) for part, origin in origins.items()}
    paragraphs = [f"# {'; '.join(dict.fromkeys(device_of.values()))}", *_provenance(origins)]
    for part, cases in parts.items():
        paragraphs += PARTS[part].section(cases)
    paragraphs += [f"![{path.stem}]({path.name})" for path in plot(parts, device_of, directory)]
    platform = next(iter(origins.values()))["platform"]
    paragraphs += ["## To reach", table(("to reach", "measured", "bound", ""), targets(parts, platform))]
    text = "\n\n".join(paragraphs) + "\n"
    (directory / "report.md").write_text(text)
    return text


def _device(origin: Mapping[str, Any]) -> str:
    return origin["device_kind"] + (f", {origin['cores']} cores" if origin["platform"] == "cpu" else "")


def _provenance(origins: Mapping[str, Any]) -> list[str]:
    """A line for each provenance: parts may have been measured on different days."""
    lines: dict[str, list[str]] = {}
    for part, origin in origins.items():
        commit = (origin["commit"] or "unknown")[:10] + (" with changes" if origin["changed"] else "")
        versions = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
        line = f"{origin['date'][:10]}, commit {commit}, {origin['processor']}, {origin['cores']} cores; {versions}"
        lines.setdefault("; ".join([line, *origin["blas"]]), []).append(part)
    return [f"{', '.join(names)}: {line}." for line, names in lines.items()]


def main(directory: tyro.conf.Positional[Path]) -> None:
    """Writes tables and plots next to the results of a run, and prints the tables.

    Args:
      directory: where the results are.
    """
    print(report(directory))


if __name__ == "__main__":
    tyro.cli(main)
