"""What the parts of the benchmarks share: settings, a deadline, the file of results."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import tyro

from benchmarks import provenance


class Deadline:
    """The end of a part's time."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """In seconds."""
        return self._end - time.monotonic()

    def admits(self, names: Iterable[str], seconds: float = 0.0) -> Iterator[str]:
        """Yields the names in turn and prints them; after the first, only while at least `seconds` are left."""
        for number, name in enumerate(names):
            if number > 0 and self.left() < seconds:
                print(f"{name}: left out, the time is up", flush=True)
            else:
                print(name, flush=True)
                yield name


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of every part."""

    minutes: float = 10.0
    """Time after which no case and no round begins."""
    out: Path | None = None
    """Folder for the results; by default benchmarks/results/KIND OF DEVICE."""

    def for_device(self, **defaults: tuple[Any, Any]) -> Self:
        """Replaces empty settings by defaults, each a pair: the value on CPU and the value on a GPU."""
        on_gpu = provenance.device()["platform"] != "cpu"
        return dataclasses.replace(
            self, **{name: values[on_gpu] for name, values in defaults.items() if not getattr(self, name)}
        )

    def write(self, part: str, cases: Any) -> None:
        """Writes `PART.json`. Each part calls it after every case: a run that is cut short leaves what it has."""
        arguments = dataclasses.asdict(self) | {"out": None}
        content = {"part": part, "arguments": arguments, "provenance": provenance.provenance(), "cases": cases}
        text = json.dumps(content, indent=1, default=lambda path: path.name)
        # Each list of times on one line.
        text = re.sub(r"\[[^\[\]{}\"]*\]", lambda match: " ".join(match[0].split()), text)
        directory = self.out or provenance.results_directory()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{part}.json").write_text(text + "\n")


S = TypeVar("S", bound=Settings)


def main(settings: type[S], run: Callable[[S], Any], section: Callable[[Any], Iterable[str]]) -> None:
    """Runs a part with the settings of the command line, and prints its section of the report."""
    print("", *section(run(tyro.cli(settings))), sep="\n\n")
