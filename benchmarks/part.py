"""What the parts of the benchmarks share: settings, contenders timed network by network, the file of results."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import tyro

from benchmarks import provenance
from benchmarks.timing import Contender, Deadline, Result, measure


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of every part."""

    minutes: float = 10.0
    """Time after which no case and no round begins."""
    out: Path | None = None
    """Folder for the results; by default benchmarks/results/KIND OF DEVICE."""

    def for_device(self, **defaults: tuple[Any, Any]) -> Self:
        """Replaces empty settings by defaults, each a pair: the value on CPU and the value on a GPU."""
        on_gpu = provenance.provenance()["platform"] != "cpu"
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


@dataclasses.dataclass(frozen=True)
class Timed(Settings):
    """Settings of a part that times contenders on several networks."""

    networks: tuple[str, ...] = ()
    """Networks of benchmarks/networks.py; by default those of the part."""
    rounds: int = 7
    """How often each contender is timed on a network."""
    seconds_each: float = 20.0
    """No contender gets another round of a network once it has taken this long."""

    def measure(
        self, deadline: Deadline, contenders: Callable[[str], Mapping[str, Contender]]
    ) -> Iterator[tuple[str, dict[str, Result]]]:
        """Yields each network and the results of its contenders, until the time is up."""
        for network in deadline.admits(self.networks, self.seconds_each):
            found = measure(contenders(network), rounds=self.rounds, seconds_each=self.seconds_each, deadline=deadline)
            yield network, found


S = TypeVar("S", bound=Settings)


def main(settings: type[S], run: Callable[[S], Any], section: Callable[[Any], Iterable[str]]) -> None:
    """Runs a part with the settings of the command line, and prints its section of the report."""
    print("", *section(run(tyro.cli(settings))), sep="\n\n")
