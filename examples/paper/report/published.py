"""Figures that others have published for a setting, from a domain's `published.jsonl`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from examples.paper.domain import Domain
from examples.paper.errors import UserError


class Published(NamedTuple):
    """The domain's measure: mean and sample standard deviation over seeds."""

    source: str
    settings: Mapping[str, Any]
    """What a setting must have to be the one that this is the figure of."""
    mean: float
    deviation: float | None
    seeds: int
    alphas: Mapping[str, float] = {}
    """The final alphas by layer, as our networks name the layers: means over the seeds."""

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        wanted = {"control": "none", **self.settings}  # nobody else has published one
        return all(settings[name] == value for name, value in wanted.items())


def read_published(domain: Domain, path: Path | None = None) -> list[Published]:
    """The lines of a file, by default the domain's; none where it has none.

    Raises:
      UserError: a line is not a figure of a setting.
    """
    path = path or domain.folder / "published.jsonl"
    names = set(domain.settings.names()) - {"seed"} - domain.settings.places()
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            found.append(Published(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            fields = ", ".join(Published._fields)
            raise UserError(f"{path}, line {number}, must be a JSON object of {fields}; alphas may be missing.") from error
        unknown = sorted(set(found[-1].settings) - names)
        if unknown or not found[-1].settings:
            but = f"; {', '.join(unknown)} is none" if unknown else ""
            raise UserError(f"{path}, line {number}: settings must be some of {', '.join(sorted(names))}{but}.")
    return found
