"""The command that runs a grid of a task."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import rich.box
import rich.console
import rich.table
import tyro

from examples.paper.checkpoints import last_saved
from examples.paper.domain import Domain
from examples.paper.errors import UserError, WriteError, first_line, naming_write_errors, telling_errors
from examples.paper.grids import Grid, load_grid, named_values, parse_changes, ready_grids
from examples.paper.loop import Trainer
from examples.paper.parallel import create_mesh
from examples.paper.results import append_row, read_results, row_of, run_key
from examples.paper.run_directory import RunDirectory
from examples.paper.settings import BALANCE, RunSettings
from tb_optax._report.compilation import keep_compiled_programs

# The fraction of a device's memory that a program may need. The compiler's count leaves some memory out.
_USABLE_MEMORY = 0.9
_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Trains what is missing of a grid, and writes one line of results for each finished run.

    It can be stopped and started again at any point, on any machine. Runs with a line in --results are done, and runs
    with a folder in --runs go on from their last checkpoint. A setting that fails does not stop the others. To merge
    the results of several machines, concatenate their files.
    """

    grid: Annotated[str, tyro.conf.Positional]
    """A ready grid, or a TOML file like those in the task's folder grids; `list` shows all."""
    results: Path = Path("runs/results.jsonl")
    """Where finished runs are written, one line each."""
    runs: Path = Path("runs/sweep")
    """Where each run has its folder: log, checkpoints, events, plots."""
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE ...")] = ()
    """Settings that replace the grid's in every run, such as width=0.25 or batch_size=64."""
    seeds: tuple[int, ...] | None = None
    """Seeds to train instead of the grid's, separated by spaces."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR ...")] = ()
    """Data sets, and the folders or files that hold them, as --data-dir of the command train takes them."""
    together: int | None = None
    """The number of seeds of a setting that train at once. By default as many as fit into memory; one on a CPU, whose
    cores a single run fills."""
    dry_run: bool = False
    """Only list which runs are done, begun and missing."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder: the same networks start sooner later."""


def sweep_command(domain: Domain, arguments: Sequence[str], program: str) -> None:
    """Runs the grid that the command line names."""
    command = tyro.cli(Sweep, prog=program, args=arguments)
    if command.compilation_cache:
        keep_compiled_programs()
    with telling_errors(command.runs):
        sweep(domain, command)


def sweep(domain: Domain, command: Sweep) -> None:
    """Trains what is missing.

    A setting that fails does not stop those after it. Only Ctrl-C and a file that cannot be written do.

    Raises:
      UserError: something in the command or the grid does not fit; or settings failed, when all others are done.
    """
    console = rich.console.Console(highlight=False)
    if command.grid == "list":
        console.print(_list_grids(domain))
        return
    if command.together is not None and command.together < 1:
        raise UserError(f"--together {command.together} must be at least 1.")
    if command.seeds == ():
        raise UserError("--seeds has no seed; give at least one, such as --seeds 43 37.")
    grid = load_grid(domain, command.grid, parse_changes(domain, command.changes), command.seeds or ())
    data = named_values("--data", command.data, "NAME=DIR, such as cifar10=~/tensorflow_datasets/cifar10/3.0.2")
    places = {name: Path(place).expanduser() for name, place in data.items()}
    there = [command.results] if command.results.exists() else []
    finished = {run_key(domain, row) for row in read_results(domain, there)}
    missing = [settings for settings in grid.runs() if settings.key() not in finished]
    console.print(f"{grid.title}: {len(grid.runs()) - len(missing)} of {len(grid.runs())} runs done", soft_wrap=True)
    if command.dry_run:
        for line in _plan(domain, command, grid, missing):
            console.print(line, soft_wrap=True)
        return
    wanted = len({dataclasses.replace(settings, seed=0) for settings in missing})
    failed: dict[str, str] = {}
    for number, (settings, seeds, load) in enumerate(_by_setting(domain, grid, missing, places), 1):
        name = f"{_name(domain, settings)}, seed {', '.join(map(str, seeds))}"
        console.rule(f"{number} of {wanted}")
        console.print(name, soft_wrap=True)
        try:
            _train_setting(domain, command, settings, seeds, load, console)
        except WriteError:
            raise
        except Exception as error:
            failed[name] = str(error)
            if not isinstance(error, UserError):
                console.print_exception()
                failed[name] = f"{type(error).__name__}: {first_line(error)}"
            console.print(f"failed: {failed[name]}", style="bold red", soft_wrap=True, markup=False)
    if failed:
        console.rule("failed")
        for name, problem in failed.items():
            console.print(f"{name}: {problem}", soft_wrap=True, markup=False)
        raise UserError(f"{len(failed)} of {wanted} settings failed, as listed above; the same command tries them again.")


def _plan(domain: Domain, command: Sweep, grid: Grid, missing: Collection[RunSettings]) -> Iterator[str]:
    """For each setting, which of its seeds are done, begun and missing."""
    for settings in grid.settings:
        seeds: dict[str, list[str]] = {}
        for seed in grid.seeds:
            begun = "begun" if _folder(domain, command, settings, seed).exists() else "missing"
            stands = begun if dataclasses.replace(settings, seed=seed) in missing else "done"
            seeds.setdefault(stands, []).append(str(seed))
        yield f"{_name(domain, settings)}: " + "; ".join(f"{stands} {', '.join(each)}" for stands, each in seeds.items())


def _train_setting(
    domain: Domain,
    command: Sweep,
    settings: Any,
    seeds: Sequence[int],
    load: Callable[[], Any],
    console: rich.console.Console,
) -> None:
    """Trains the seeds of a setting, as many at once as fit."""
    directories = {seed: RunDirectory(_folder(domain, command, settings, seed), domain) for seed in seeds}
    trainer = Trainer(domain, settings, load(), create_mesh(1, 1), console)
    any_saved = lambda: any(last_saved(directory.checkpoints) >= 0 for directory in directories.values())
    goes_on = lambda: "; the same command goes on from the last checkpoints" if any_saved() else ""
    with contextlib.ExitStack() as held, naming_write_errors(command.runs, goes_on):
        try:
            together = min(len(seeds), command.together or _how_many(trainer, len(seeds), jax.devices()[0], console))
            for seed, directory in directories.items():
                held.enter_context(directory.held())
                directory.begin(dataclasses.replace(settings, seed=seed), directory.exists(), console)
            for group in _groups(directories, together):
                trainer.train(group)
                for directory in group.values():
                    append_row(command.results, row_of(directory))
        except KeyboardInterrupt:
            console.print(f"stopped{goes_on()}")
            os._exit(130)  # an interval may still be running on the device, and leaving in the usual way would wait for it


def _by_setting(
    domain: Domain, grid: Grid, missing: Collection[RunSettings], places: Mapping[str, Path]
) -> Iterator[tuple[RunSettings, list[int], Callable[[], Any]]]:
    """Each setting with its missing seeds and a function that gives its data.

    Settings of one data set follow each other. A data set is read once, and one at a time is in memory.
    """
    by_data: dict[tuple[Any, ...], list[Any]] = {}
    for settings in grid.settings:
        by_data.setdefault(tuple(getattr(settings, name) for name in domain.data), []).append(settings)
    for of_data in by_data.values():
        place = places.get(of_data[0].dataset)
        load = functools.cache(partial(_load, domain, dataclasses.replace(of_data[0], data_dir=place)))
        for settings in of_data:
            seeds = [seed for seed in grid.seeds if dataclasses.replace(settings, seed=seed) in missing]
            if seeds:
                yield dataclasses.replace(settings, data_dir=place), seeds, load


def _load(domain: Domain, settings: Any) -> Any:
    data = domain.load(settings)
    if data.name != settings.dataset:
        raise UserError(f"--data {settings.dataset}={settings.data_dir} holds {data.name}; name it so in the grid.")
    return data


def _groups(directories: Mapping[int, RunDirectory], together: int) -> Iterator[dict[int, RunDirectory]]:
    """Seeds that train together: at most so many, which stand at the same interval."""
    by_interval: dict[int, list[int]] = {}
    for seed, directory in directories.items():
        by_interval.setdefault(last_saved(directory.checkpoints), []).append(seed)
    for _, seeds in sorted(by_interval.items(), reverse=True):
        for start in range(0, len(seeds), together):
            yield {seed: directories[seed] for seed in seeds[start : start + together]}


def _how_many(trainer: Trainer, most: int, device: Any, console: rich.console.Console) -> int:
    """How many seeds fit into the device's memory together; one where it is not known, as on CPU."""
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit is None:
        return 1
    together = most
    while together > 1 and trainer.program(together).bytes_needed() > _USABLE_MEMORY * limit:
        together = -(-together // 2)
    console.print(f"{together} seeds at once")
    return together


def _folder(domain: Domain, command: Sweep, settings: Any, seed: int) -> Path:
    """The folder of a run, named by its settings and seed.

    File systems allow names of 255 bytes. A longer name is cut, and a digest of the whole name tells it from others.
    """
    name = f"{_name(domain, settings)}-seed_{seed}"
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        ending = f"-{digest}-seed_{seed}"
        name = name[: _LONGEST_NAME - len(ending)] + ending
    return command.runs / name


def _name(domain: Domain, settings: Any) -> str:
    """The name of a setting, such as `digits-resnet18-tb-epochs_2`: data, model, method, and whatever is not the default.

    With the seed it is the name of the run's folder. Other characters than letters, digits, `.`, `+` and `_` are written as
    in addresses: `train_split_train%5B%3A10000%5D`.
    """
    defaults = domain.settings(**{"method": settings.method}).resolved()
    named = {"dataset", "model", "method", "seed"} | domain.settings.places()
    others = sorted((name for name in domain.settings.names() if name not in named), key=lambda name: name in BALANCE)
    changed = {name: getattr(settings, name) for name in others if getattr(settings, name) != getattr(defaults, name)}
    quoted = lambda value: urllib.parse.quote(str(value), safe="+").replace("-", "%2D" if isinstance(value, str) else "-")
    parts = [quoted(settings.dataset), settings.model, settings.method]
    return "-".join([*parts, *(f"{name}_{quoted(value)}" for name, value in changed.items())])


def _list_grids(domain: Domain) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in ("grid", "what", "settings", "runs"):
        table.add_column(column, justify="right" if column in ("settings", "runs") else "left")
    for name in ready_grids(domain):
        grid = load_grid(domain, name)
        table.add_row(name, grid.title, str(len(grid.settings)), str(len(grid.runs())))
    return table
