"""The report command against WeightWatcher on the same file: `python -m benchmarks.checkpoint --help`."""

import csv
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import part
from benchmarks.networks import create, torch_layout
from benchmarks.part import Deadline
from benchmarks.tables import table
from benchmarks.timing import ContenderFailed, Result, failure, paired_ratio, turns

# Columns of this library's report and WeightWatcher's names for them.
COLUMNS = {
    "alpha": "alpha",
    "ks_distance": "D",
    "xmin": "xmin",
    "lambda_max": "lambda_max",
    "stable_rank": "stable_rank",
    "eigenvalues": "num_evals",
}


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Runs both commands on a safetensors file of each network, in turn, and compares their numbers for each layer."""

    networks: tuple[str, ...] = ("resnet50", "gpt2")
    """Networks of benchmarks/networks.py, with random weights."""
    rounds: int = 3
    """How often each command is run, after a first run without compiled programs."""


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    cases: list[Result] = []
    for network in deadline.admits(settings.networks):
        with tempfile.TemporaryDirectory() as directory:
            cases.append({"network": network, **_compare(network, settings.rounds, deadline, Path(directory))})
        settings.write("checkpoint", cases)
    return cases


def _compare(network: str, rounds: int, deadline: Deadline, directory: Path) -> Result:
    file = directory / "model.safetensors"
    write_checkpoint(network, file)
    report = ["report", str(file), "--fit", "goodness_of_fit", "--csv", str(directory / "tb_optax.csv")]
    commands = {
        "tb-optax report": ["-m", "tb_optax", *report],
        "WeightWatcher": ["-m", "benchmarks.weightwatcher_command", str(file), str(directory / "weightwatcher.csv")],
    }
    results: dict[str, Result] = {name: {"seconds": [], "peak_memory": 0} for name in commands}
    for name in turns(commands, rounds + 1):
        result = results[name]
        if "error" in result or (len(result["seconds"]) > 1 and deadline.left() < 0):
            continue
        try:
            seconds, memory = _timed([sys.executable, *commands[name]], cache=directory / "cache")
            result["seconds"].append(seconds)
            result["peak_memory"] = max(result["peak_memory"], memory)
        except ContenderFailed as error:
            results[name] = {"error": str(error)}
    for result in results.values():
        if "error" not in result:
            result["first_seconds"] = result["seconds"].pop(0)
            result["median"] = statistics.median(result["seconds"])
    if any("error" in result for result in results.values()):
        return {"commands": results}
    ours, theirs = (results[name]["seconds"] for name in commands)
    rows, others = (_read(directory / f"{name}.csv") for name in ("tb_optax", "weightwatcher"))
    return {"commands": results, "ratio": paired_ratio(theirs, ours), **agreement(rows, others)}


def write_checkpoint(network: str, file: Path) -> None:
    """The balanced weights of a network as PyTorch would have them: `NAME.weight`, outputs first, windows last."""
    from safetensors.numpy import save_file

    weights = create(network).weights()
    turned = {f"{name.replace('/', '.')}.weight": torch_layout(weight) for name, weight in weights.items()}
    save_file({name: np.asarray(weight, np.float32) for name, weight in turned.items()}, file)


def agreement(rows: dict[str, dict[str, str]], others: dict[str, dict[str, str]]) -> Result:
    """The largest relative difference over the layers for each column, and the numbers of some layers side by side.

    Raises:
      ValueError: one of the two lacks a layer of the other.
    """
    if set(rows) != set(others):
        raise ValueError(f"only one of the two reports has {', '.join(sorted(set(rows) ^ set(others))[:5])}.")
    numbers = {
        layer: {own: (float(rows[layer][own]), float(others[layer][other])) for own, other in COLUMNS.items()}
        for layer in rows
    }
    differ = {own: max(abs(both[own][0] / both[own][1] - 1) for both in numbers.values()) for own in COLUMNS}
    return {"layers": len(rows), "differ": differ, "side_by_side": dict(list(numbers.items())[:: max(1, len(rows) // 5)])}


def _timed(command: Sequence[str], cache: Path) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command."""
    with tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise failure(process.returncode, errors)
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="") as lines:
        return {row["layer"]: row for row in csv.DictReader(lines)}


def section(cases: Sequence[Result]) -> list[str]:
    """The paragraphs of the report."""
    times = [
        (case["network"], name, *_cells(result), f"x{case['ratio']:.2f}" if "ratio" in case and place else "")
        for case in cases
        for place, (name, result) in enumerate(case["commands"].items())
    ]
    compared = [case for case in cases if "differ" in case]
    differ = [
        (case["network"], str(case["layers"]), *(f"{value:.1e}" for value in case["differ"].values())) for case in compared
    ]
    rows = [
        (f"{case['network']}, {layer}", *(f"{ours:.6g} / {theirs:.6g}" for ours, theirs in numbers.values()))
        for case in compared
        for layer, numbers in case["side_by_side"].items()
    ]
    columns = list(compared[0]["differ"]) if compared else []
    return [
        "## A report of a checkpoint",
        "Whole commands on the same safetensors file, from start to end, in seconds: medians, and the first time, when "
        "nothing had been compiled; and the peak of memory.",
        table(("network", "command", "seconds", "first", "memory", "ratio"), times),
        "The largest relative difference between the two over all layers.",
        table(("network", "layers", *columns), differ),
        "Some layers: ours / WeightWatcher's.",
        table(("layer", *columns), rows),
    ]


def _cells(result: Result) -> tuple[str, str, str]:
    if "error" in result:
        return result["error"], "", ""
    return f"{result['median']:.1f}", f"{result['first_seconds']:.1f}", f"{result['peak_memory'] / 2**20:,.0f} MiB"


if __name__ == "__main__":
    part.main(Settings, run, section)
