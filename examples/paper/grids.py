"""Grids: the runs of a table or a figure, as a file that lists their settings.

A grid is a TOML file with a `title`, the `seeds` (by default the paper's five) and a list of `runs`; in each of those a
setting has a value, or a list of values to take in turn:

```toml
title = "A range of learning rates"
runs = [{ method = ["cal", "tb"], model = "resnet18", dataset = "cifar100", learning_rate = [0.05, 0.1, 0.15] }]
```

Those in a domain's folder `grids` are ready: they are the paper's, and some of our own.
"""

import dataclasses
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from examples.paper.domain import Domain
from examples.paper.errors import UserError
from examples.paper.settings import RunSettings, check_seed

PAPER_SEEDS = (43, 37, 13, 51, 71)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The runs of a table or a figure: each of `settings` (whose own seed does not count) with each of `seeds`."""

    name: str
    title: str
    settings: tuple[Any, ...]
    seeds: tuple[int, ...]

    def runs(self) -> list[Any]:
        return [dataclasses.replace(settings, seed=seed) for settings in self.settings for seed in self.seeds]


def ready_grids(domain: Domain) -> list[str]:
    """The names of a domain's grids, tables before figures."""
    names = (path.stem for path in (domain.folder / "grids").glob("*.toml"))
    return sorted(names, key=lambda name: (name.rstrip("0123456789") != "table", name.rstrip("0123456789"), len(name), name))


def load_grid(domain: Domain, name: str, changes: Mapping[str, Any] | None = None, seeds: Sequence[int] = ()) -> Grid:
    """A ready grid by its name, or that of a TOML file.

    Args:
      domain: that it is of.
      name: of a ready grid, or the path of a file.
      changes: settings that replace those of every run, for example `{"epochs": 2}`.
      seeds: instead of the grid's.

    Raises:
      UserError: there is no such grid, or something in it is not a setting.
    """
    path = domain.folder / "grids" / f"{name}.toml"
    if not path.exists():
        path = Path(name)
    if not path.is_file():
        raise UserError(f"{name} is no file, and none of the ready grids: {', '.join(ready_grids(domain))}.")
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a grid in TOML: {error}.") from error
    unknown = set(content) - {"title", "seeds", "runs"}
    if unknown or not content.get("runs"):
        raise UserError(f"{path} needs a list of runs, and may have a title and seeds{_but(unknown)}.")
    settings = [_settings(domain, f"{path}: runs", dict(run) | dict(changes or {})) for run in _products(content["runs"])]
    unique = tuple(dict.fromkeys(settings))
    seeds = tuple(seeds or content.get("seeds", PAPER_SEEDS))
    for seed in seeds:
        check_seed(seed)
    return Grid(path.stem, content.get("title", path.stem), unique, seeds)


def parse_changes(domain: Domain, changes: Sequence[str]) -> dict[str, Any]:
    """`["epochs=2", "model=vgg16"]` as settings.

    Raises:
      UserError: one is not of this form.
    """
    parsed = {}
    for name, value in named_values("--set", changes, "NAME=VALUE, such as epochs=2").items():
        try:
            parsed[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[name] = value
    _settings(domain, "--set", parsed)
    return parsed


def named_values(flag: str, items: Sequence[str], form: str) -> dict[str, str]:
    """`["epochs=2"]` by name. Raises UserError where one is not of this form."""
    for item in items:
        if "=" not in item:
            raise UserError(f"{flag} {item} must be {form}.")
    return dict(item.split("=", 1) for item in items)


def _products(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for run in runs:
        values = [value if isinstance(value, list) else [value] for value in run.values()]
        found += [dict(zip(run, chosen, strict=True)) for chosen in itertools.product(*values)]
    return found


def _settings(domain: Domain, where: str, values: Mapping[str, Any]) -> RunSettings:
    types = get_type_hints(domain.settings)
    unknown = set(values) - set(types) | (set(values) & {"seed"})
    if unknown:
        instead = "seeds stand by themselves" if "seed" in unknown else f"settings are {', '.join(types)}"
        raise UserError(f"{where}: {sorted(unknown)[0]} is not a setting of a grid; {instead}.")
    checked = {name: _checked(where, name, types[name], value) for name, value in values.items()}
    settings = domain.settings(**checked).resolved()
    settings.check()
    return settings


def _checked(where: str, name: str, hint: Any, value: Any) -> Any:
    """A value of the type that the setting has."""
    allowed = get_args(hint) or (hint,)
    if float in allowed and type(value) is int:
        return float(value)
    if Path in allowed and isinstance(value, str):
        return Path(value)
    if not (value in allowed or any(isinstance(kind, type) and type(value) is kind for kind in allowed)):
        choices = " or ".join(kind.__name__ if isinstance(kind, type) else repr(kind) for kind in allowed)
        raise UserError(f"{where}: {name} = {value!r} must be {choices}.")
    return value


def _but(unknown: set[str]) -> str:
    return f"; {', '.join(sorted(unknown))} is neither" if unknown else ""
