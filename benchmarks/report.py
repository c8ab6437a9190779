"""Tables and plots from the files of a run: `python -m benchmarks.report DIRECTORY`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import figure23
from benchmarks.plots import plot
from benchmarks.targets import targets

PARTS = ("refresh", "steps", "figure23", "busy", "devices", "approximate", "choice", "checkpoint")


def main() -> None:
    print(report(tyro.cli(tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIRECTORY")]], description=__doc__)))


def report(directory: Path) -> str:
    """Writes `report.md` and the plots next to the results, and returns the report's text.

    Raises:
      FileNotFoundError: the directory holds no results.
    """
    files = {part: directory / f"{part}.json" for part in PARTS}
    read = {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}
    if not read:
        raise FileNotFoundError(
            f"{directory} holds none of {', '.join(f'{part}.json' for part in PARTS)}; run the benchmarks."
        )
    parts = {part: content["cases"] for part, content in read.items()}
    platform = next(iter(read.values()))["provenance"]["platform"]
    devices = {part: _device(content["provenance"]) for part, content in read.items()}
    plots = plot(parts, devices, directory)
    sections = [f"# {'; '.join(dict.fromkeys(devices.values()))}", *_provenance(read)]
    sections += _refresh(parts.get("refresh", []))
    sections += _steps(parts.get("steps", {})) + _figure23(parts.get("figure23", []))
    sections += _busy(parts.get("busy", {})) + _devices(parts.get("devices", []))
    sections += _approximate(parts.get("approximate", []))
    sections += _choice(parts.get("choice", {})) + _checkpoint(parts.get("checkpoint", []))
    sections += [f"![{path.stem}]({path.name})" for path in plots]
    reached = _table(("to reach", "measured", "bound", ""), (target.row() for target in targets(parts, platform)))
    text = "\n\n".join([*sections, "## To reach", reached]) + "\n"
    (directory / "report.md").write_text(text)
    return text


def _device(origin: Mapping[str, Any]) -> str:
    return origin["device_kind"] + (f", {origin['cores']} cores" if origin["platform"] == "cpu" else "")


def _provenance(read: dict[str, Any]) -> list[str]:
    """A line for each kind of provenance: the parts may have been measured on different days."""
    lines: dict[str, list[str]] = {}
    for part, content in read.items():
        origin = content["provenance"]
        commit = (origin["commit"] or "unknown")[:10] + (" with changes" if origin["changed"] else "")
        versions = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
        line = f"{origin['date'][:10]}, commit {commit}, {origin['processor']}, {origin['cores']} cores; {versions}"
        lines.setdefault("; ".join([line, *origin["blas"]]), []).append(part)
    return [f"{', '.join(names)}: {line}." for line, names in lines.items()]


def _refresh(cases: Sequence[dict[str, Any]]) -> list[str]:
    if not cases:
        return []
    labels = list(dict.fromkeys(label for case in cases for label in case["contenders"]))
    columns = ["network", *(label.removesuffix(", median") for label in labels if _is_median(label))]
    time = lambda result: (
        f"{1e3 * result['median']:.1f}" + ("" if result["ratio"] in (None, 1) else f" (x{result['ratio']:.2f})")
    )
    median = [[case["network"], *(_cell(case, label, time) for label in labels if _is_median(label))] for case in cases]
    fits = [
        [case["network"], label, _or_error(result, time), _agreement(result)]
        for case in cases
        if any(not _is_median(label) for label in case["contenders"])
        for label, result in case["contenders"].items()
        if ", " in label
    ]
    cost = lambda result: f"{result['first_seconds']:.1f} s, {result['peak_memory'] / 2**20:,.0f} MiB"
    costs = [[case["network"], *(_cell(case, label, cost) for label in labels if _is_median(label))] for case in cases]
    return [
        "## A refresh",
        "Milliseconds, medians over the rounds; in brackets how many times as long as this library.",
        _table(columns, median),
        "The three fits; the last column is the largest relative difference from this library's alphas.",
        _table(("network", "contender and fit", "milliseconds", "alphas differ by"), fits),
        "The first call, compilation included, and the rise of memory to its peak since the weights were loaded.",
        _table(columns, costs),
    ]


def _is_median(label: str) -> bool:
    return ", " not in label or label.endswith(", median")


def _agreement(result: dict[str, Any]) -> str:
    return f"{result['disagreement']:.1e}" if result.get("disagreement") else ""


def _steps(steps: dict[str, Any]) -> list[str]:
    if not steps:
        return []
    updates = [(label, _or_error(result, lambda r: f"{1e3 * r['median']:.2f}")) for label, result in steps["update"].items()]
    sections = [
        "## Training",
        "Programs of 1 and of 20 updates by the optimizer alone, which refresh nothing, in milliseconds.",
        _table(("", "milliseconds"), updates),
    ]
    training = steps.get("training", {})
    if "epochs" not in training:
        return [*sections, training.get("error", "No epoch was trained.")]
    epochs = [
        (f"a refresh every {label}" if label.isdigit() else label, f"{result['median']:.3f}", f"{result['ratio']:.3f}")
        for label, result in training["epochs"].items()
    ]
    shares = [
        (interval, f"{share['share']:.2%}", "" if share["trained"] else "computed from the time of a refresh")
        for interval, share in training["shares"].items()
    ]
    return [
        *sections,
        "An epoch, in seconds, and in epochs without.",
        _table(("", "seconds", "ratio"), epochs),
        "The share of the training time that goes into refreshes (the paper's Figure 24).",
        _table(("updates between refreshes", "share", ""), shares),
    ]


def _figure23(cases: Sequence[dict[str, Any]]) -> list[str]:
    if not cases:
        return []
    time = lambda result: f"{result['median']:.3f}" if result["median"] < 10 else f"{result['median']:,.0f}"
    seconds = lambda case, what: _or_error(case[what], time) if what in case else ""
    rows = []
    for case in cases:
        model, channels = figure23.split(case["network"])
        ratio = figure23.share(case)
        times = seconds(case, "refresh"), seconds(case, "epoch")
        rows.append((model, str(channels), *times, "" if ratio is None else f"{ratio:.2%}"))
    return [
        "## Figure 23",
        "A refresh and an epoch of 50,000 images, in seconds, by depth and by width: the channels of the last stage. The "
        "epoch is computed from a few steps. In the paper, on a GPU, a refresh takes less than 9% of an epoch.",
        _table(("network", "width", "refresh", "epoch", "refresh / epoch"), rows),
    ]


def _busy(busy: dict[str, Any]) -> list[str]:
    if not busy:
        return []
    time = lambda result, key: f"{1e3 * result[key]['median']:.0f}"
    rows = [
        (
            name,
            *(_or_error(result, lambda r, key=key: time(r, key)) for key in ("alone", "beside")),
            _or_error(result, _times),
        )
        for name, result in busy.items()
    ]
    return ["## Beside a program that keeps all cores busy", _table(("", "alone, ms", "beside it, ms", "ratio"), rows)]


def _devices(cases: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (case["network"], count, _or_error(result, lambda r: f"{1e3 * r['median']:.1f}"), _or_error(result, _times))
        for case in cases
        for count, result in case["devices"].items()
    ]
    return ["## On several devices", _table(("network", "devices", "milliseconds", "ratio"), rows)] if rows else []


def _approximate(cases: Sequence[dict[str, Any]]) -> list[str]:
    if not cases:
        return []
    settings = list(dict.fromkeys((each["steps"], each["probes"]) for case in cases for each in case["approximate"]))
    rows = []
    for case in cases:
        tried = {(each["steps"], each["probes"]): each for each in case["approximate"]}
        cell = lambda each, exact=case["seconds"]: (
            f"{each['root_mean_square_error']:.1%} (x{exact / each['seconds']:.1f})" if each else ""
        )
        shape = " x ".join(map(str, case["shape"]))
        exact = (case["weight"], shape, f"{case['alpha']:.2f}", f"{1e3 * case['seconds']:.0f}")
        rows.append([*exact, *(cell(tried.get(setting)) for setting in settings)])
    columns = ("weight", "shape", "alpha", "exact, ms", *(f"{steps} x {probes}" for steps, probes in settings))
    return [
        "## Approximate spectra",
        "Root mean square error of alpha by steps x probes, and in brackets how many times as fast as the exact spectrum.",
        _table(columns, rows),
    ]


def _choice(choice: dict[str, Any]) -> list[str]:
    if not choice:
        return []
    costs, agreement = choice["costs"], choice["agreement"]
    solvers = list(next(iter((*costs.values(), *(found["spearman"] for found in agreement.values())))))
    time = lambda result: f"{1e3 * result['median']:,.0f}" + (f" (x{result['ratio']:.2g})" if result["ratio"] else "")
    close = lambda found, name: (
        f"{found['spearman'][name]:.2f}, {found['alpha_differs'][name]:.1%}, {found['scale_differs'][name]:.2f}"
    )
    rows = [
        (name, *(_or_error(found[name], time) for found in costs.values()), *(close(f, name) for f in agreement.values()))
        for name in solvers
    ]
    return [
        "## Exact spectra, windows, and Lanczos's method",
        "A refresh in milliseconds, and in refreshes with exact spectra; and on trained weights Spearman's correlation of "
        "alphas with the exact ones over the layers, the median difference of alphas, and the mean difference of scales "
        "between 0.5 and 1.5.",
        _table(("", *costs, *(f"{label}, {found['layers']} layers" for label, found in agreement.items())), rows),
    ]


def _checkpoint(cases: Sequence[dict[str, Any]]) -> list[str]:
    if not cases:
        return []
    times = [
        (case["network"], name, *_command(result), f"x{case['ratio']:.2f}" if "ratio" in case and place else "")
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
        _table(("network", "command", "seconds", "first", "memory", "ratio"), times),
        "The largest relative difference between the two over all layers.",
        _table(("network", "layers", *columns), differ),
        "Some layers: ours / WeightWatcher's.",
        _table(("layer", *columns), rows),
    ]


def _command(result: dict[str, Any]) -> tuple[str, str, str]:
    if "error" in result:
        return result["error"], "", ""
    return f"{result['median']:.1f}", f"{result['first_seconds']:.1f}", f"{result['peak_memory'] / 2**20:,.0f} MiB"


def _times(result: dict[str, Any]) -> str:
    return "" if result["ratio"] is None else f"{result['ratio']:.2f}"


def _cell(case: dict[str, Any], label: str, show: Any) -> str:
    return _or_error(case["contenders"][label], show) if label in case["contenders"] else ""


def _or_error(result: dict[str, Any], show: Any) -> str:
    return result["error"] if "error" in result else show(result)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(_rows([list(columns), *map(list, rows)]))


def _rows(cells: list[list[str]]) -> Iterator[str]:
    """Lines of a Markdown table that reads well as text too."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "| " + " | ".join("-" * max(width, 3) for width in widths) + " |"


if __name__ == "__main__":
    main()
