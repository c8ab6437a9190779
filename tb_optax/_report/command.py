"""`tb-optax report`: measures the weights of checkpoints; shows a table, writes JSON, CSV and a page."""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Annotated, Literal, NoReturn

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tb_optax._balance import fits
from tb_optax._layers.find import find_layers
from tb_optax._layers.layer import Layers, PyTree
from tb_optax._report import formats, outputs, table
from tb_optax._report.changes import LayerChange, changes, shared_layers
from tb_optax._report.comparison import check_shared, in_turn, side_by_side
from tb_optax._report.compilation import keep_compiled_programs
from tb_optax._report.measuring import Measuring
from tb_optax._report.page import page
from tb_optax._report.report import Report
from tb_optax._report.source import CheckpointError, Source, one_line, printable
from tb_optax._spectra.options import DEFAULT_SOLVER, Lanczos
from tb_optax._spectra.windows import Windows

_FITS = {"median": fits.median, "goodness_of_fit": fits.goodness_of_fit, "fix_finger": fits.fix_finger}
_SORTS = Literal[
    "alpha",
    "ks_distance",
    "xmin",
    "tail",
    "noise_deviations",
    "beyond_noise",
    "alpha_weighted",
    "lambda_max",
    "stable_rank",
    "rank",
    "scale",
    "eigenvalues",
    "matrices",
    "change",
    "relative_change",
]
_OF_TWO = ("change", "relative_change")
_UNREADABLE, _USAGE, _INTERRUPTED = 1, 2, 130


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure, and how to show it."""

    checkpoints: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT...", help_behavior_hint="")
    ] = ()
    """Files or directories, before the options. Several are compared in this order; steps of a run are sorted by number. A
    LoRA adapter is added to the first checkpoint."""
    fit: tuple[Literal["median", "goodness_of_fit", "fix_finger"], ...] = ("median",)
    """How to fit tails; the first fit decides the scales. median is TempBalance's, goodness_of_fit is WeightWatcher's."""
    params: Annotated[str | None, tyro.conf.arg(metavar="KEYS")] = None
    """The keys above the parameters, such as model/params. By default, the report finds them."""
    exclude: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN...", help_behavior_hint="")] = ()
    """Layers to leave out, by shell-style patterns of their names. A layer of a stack has its name without the index."""
    min_eigenvalues: int = 50
    """Leave out layers with fewer eigenvalues."""
    layout: Literal["torch", "jax"] | None = None
    """Whether convolutions have their outputs first (torch) or their window first (jax), where sizes allow both. By default,
    the file or the name decides."""
    min_scale: float = 0.5
    """The scale of the layer with the smallest alpha."""
    max_scale: float = 1.5
    """The scale of the layer with the largest alpha."""
    lanczos: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Approximate the spectra of matrices whose smaller side is at least this, by Lanczos's method. Try 2048 for models of
    billions of parameters."""
    windows: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take spectra of square windows of this size, not of whole weights (FARMS): they do not depend on the aspect ratio."""
    sort: _SORTS | None = None
    """Sort the table by a column; by default, by name. Of several checkpoints, the last one counts. change is alpha's, from
    the first to the last; relative_change is |ΔW| / |W| of two checkpoints. Files are always in the order of names."""
    reverse: tyro.conf.FlagCreatePairsOff[bool] = False
    """Reverse the order."""
    filter: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "*"
    """Show only layers with this name, or whose names match this shell-style pattern. Files always hold all layers."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write all numbers to this file; - writes them to standard output instead of the table."""
    csv: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the layers' numbers to this file; - writes them to standard output instead of the table."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write an HTML page to this file; it needs no network."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that a second run on the same shapes starts faster."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line. Exits with 0, with 1 if a checkpoint cannot be read, and with 2 for wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    app = tyro.extras.SubcommandApp()
    report.__doc__ = _HELP
    app.command(name="report")(report)
    try:
        app.cli(
            prog="tb-optax", args=given, description="Measures the weights of checkpoints. --version prints the version."
        )
        sys.stdout.flush()
    except BrokenPipeError:  # Nobody reads on, as behind `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_EXAMPLES = (
    "tb-optax report model.safetensors",
    "tb-optax report runs/checkpoints --fit median goodness_of_fit --sort alpha --reverse --html report.html",
    "tb-optax report before.safetensors after.safetensors --sort relative_change --reverse",
    "tb-optax report base.safetensors adapter/",
    "tb-optax report checkpoints/step_* --csv layers.csv",
    "tb-optax report model.safetensors --filter 'layers/attention/*' --exclude embedding head",
)
# A paragraph called "Examples:" would be taken for a section of a docstring and left out.
_HELP = "\n\n".join(
    (
        "Measures every layer of a checkpoint: its spectrum, the power law of its tail, how far it is from noise, and the "
        "scale that TempBalance would give it. With two checkpoints, the table has the change of each weight; with more, "
        "alpha over the checkpoints.",
        f"Reads {formats.READABLE}; of an Orbax run, the newest step. It runs no code of the model or of the file.",
        "Does not read TensorFlow's SavedModel, TensorFlow Lite, GGUF, Core ML and Equinox files: save the weights as "
        "safetensors or .npz.",
        "For example,",
        *_EXAMPLES,
    )
)


def report(settings: tyro.conf.OmitArgPrefixes[Annotated[Settings, tyro.conf.arg(name="")]]) -> None:
    try:
        reports, changed, interrupted = _measure_all(settings)
        _write(settings, reports, changed)
        _print(settings, reports, changed)
    except CheckpointError as error:
        _end(_UNREADABLE, str(error))
    except ValueError as error:
        _end(_USAGE, str(error))
    if interrupted:
        # Other threads may be in a solver that knows no interrupt, and Python would wait for them.
        print("tb-optax: interrupted; showing the layers measured so far.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(_INTERRUPTED)
    broken = [printable(record.layer) for each in reports for record in each.records if not record.is_finite]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        _end(
            _UNREADABLE,
            f"{', '.join(broken[:3])}{more}: the weights hold NaN or infinity; look for where training diverged.",
        )


def _measure_all(settings: Settings) -> tuple[list[Report], list[LayerChange], bool]:
    """The reports of all checkpoints; the changes from the first of two; and whether an interrupt ended them."""
    if not settings.checkpoints:
        raise ValueError("no checkpoint is given; try: tb-optax report PATH.")
    _check_outputs(settings)
    if settings.lanczos is not None and set(settings.fit) != {"median"}:
        raise ValueError(f"fit={settings.fit} needs exact spectra; leave out --lanczos, or give --fit median")
    if settings.compilation_cache:
        keep_compiled_programs(0.02)  # Many small programs.
    # All are opened first, so that an error in the last one is reported before anything is computed.
    sources = in_turn([formats.open_checkpoint(path) for path in in_order(settings.checkpoints)])
    measurings = [_measuring(settings, source) for source in sources]
    names = [name for measuring in measurings for name in measuring.names]
    if not any(table.matches(name, settings.filter) for name in names):
        known = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        within = any(settings.filter in name for name in names)
        wider = f" (--filter '*{settings.filter}*' matches names that contain it)" if within else ""
        raise ValueError(f"filter={settings.filter!r} matches no layer{wider}; the layers are: {known}")
    if settings.sort in _OF_TWO and len(measurings) == 1:
        raise ValueError(f"sort={settings.sort!r} needs two checkpoints; give another one")
    if settings.sort == "relative_change" and len(measurings) > 2:
        raise ValueError(f"sort='relative_change' is of two checkpoints, and {len(measurings)} are given")
    interrupted = False
    two = len(measurings) == 2
    if two:
        check_shared(*measurings)
    layers = sum(len(measuring.layers) for measuring in measurings) + (len(shared_layers(*measurings)) if two else 0)
    with _progress(layers) as advance:
        done, changed = [], []
        try:
            for measuring in measurings:
                done.append(measuring)
                with contextlib.closing(measuring.steps()) as steps:
                    for layer in steps:
                        advance(layer.name)
            if two:
                with contextlib.closing(changes(*measurings)) as found:
                    for of_layer in found:
                        changed += of_layer
                        advance(of_layer[0].layer)
        except KeyboardInterrupt:
            interrupted = True
    return [measuring.report() for measuring in done], changed, interrupted


def _measuring(settings: Settings, source: Source) -> Measuring:
    layout = settings.layout or source.layout

    def layers(params: PyTree) -> Layers:
        return find_layers(params, exclude=settings.exclude, min_eigenvalues=settings.min_eigenvalues, layout=layout)

    return Measuring(
        source,
        settings.params,
        layers,
        tuple(_FITS[name] for name in settings.fit),
        settings.min_scale,
        settings.max_scale,
        DEFAULT_SOLVER if settings.lanczos is None else Lanczos(settings.lanczos),
        None if settings.windows is None else Windows(settings.windows),
    )


def in_order(paths: Sequence[str]) -> list[str]:
    """The paths as given, but steps of one run by number: a shell puts step_1000 before step_200."""
    without = [re.sub(r"\d+", "", path.rstrip("/")) for path in paths]
    if len(paths) > 2 and len(set(without)) == 1:
        return sorted(paths, key=lambda path: [int(digits) for digits in re.findall(r"\d+", path)])
    return list(paths)


def _check_outputs(settings: Settings) -> None:
    """Checks before anything is computed that outputs can be written, and that none is a checkpoint that is read."""
    wanted = {name: path for name in ("json", "csv", "html") if (path := getattr(settings, name)) is not None}
    for name, path in wanted.items():
        if list(wanted.values()).count(path) > 1:
            raise ValueError(f"{name}={path!r}: two outputs would go there; give each its own.")
        if path == "-" and name != "html":
            continue
        where = FilePath(path)
        if where.is_dir() or not where.absolute().parent.is_dir():
            raise ValueError(f"{name}={path!r} cannot be written; give a file in a directory that exists.")
        if any(FilePath(each).exists() and where.exists() and where.samefile(each) for each in settings.checkpoints):
            raise ValueError(f"{name}={path!r} is a checkpoint; give another file.")


def _write(settings: Settings, reports: Sequence[Report], changed: Sequence[LayerChange]) -> None:
    make = {
        "json": outputs.as_json,
        "csv": outputs.as_csv,
        "html": page,
    }
    for name, function in make.items():
        path = getattr(settings, name)
        if path is None:
            continue
        text = function(reports, changed)
        if path == "-":
            sys.stdout.write(text)
            continue
        try:
            FilePath(path).write_text(text, "utf-8")
        except OSError as error:
            raise ValueError(f"{name}={path!r} cannot be written: {error.strerror}.") from error


def _print(settings: Settings, reports: Sequence[Report], changed: Sequence[LayerChange]) -> None:
    shown = [report for report in reports if report.records]
    if "-" in (settings.json, settings.csv) or not shown:
        return
    if len(shown) == 1:
        table.print_report(table.console(), shown[0], settings.sort, settings.reverse, settings.filter)
    else:
        table.print_comparison(
            table.console(), side_by_side(shown, changed), settings.sort, settings.reverse, settings.filter
        )


@contextlib.contextmanager
def _progress(layers: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, which goes when it is full."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=layers)
        yield lambda name: progress.update(task, advance=1, description=printable(name))


def _end(code: int, message: str) -> NoReturn:
    print(f"tb-optax: {one_line(message, 2000)}.", file=sys.stderr)
    sys.exit(code)
