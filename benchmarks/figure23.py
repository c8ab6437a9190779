"""A refresh beside an epoch, by the network's depth and width (the paper's Figure 23): `python -m benchmarks.figure23`.

An epoch has 50,000 images of 32x32; its time is computed from that of a few steps. All refreshes are timed before the first
epoch, so that a run that is cut short has them.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from benchmarks import part
from benchmarks.part import Deadline
from benchmarks.tables import or_error, table
from benchmarks.timing import Contender, Result, measure

DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101")
# The channels of ResNet-18's last stage, 512 in the network as published.
WIDTHS = ("resnet18-768", "resnet18-1024", "resnet18-2048")
_IMAGES = 50_000


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Times a refresh, then an epoch, of each network of the paper's Figure 23."""

    networks: tuple[str, ...] = (*DEPTHS, *WIDTHS)
    """ResNets. A number after a dash is the number of channels of the last stage."""
    rounds: int = 3
    """How often each refresh and each epoch is timed."""
    seconds_each: float = 20.0
    """Time in seconds of its refreshes, or of its steps, after which a network gets no further round."""
    batch_size: int | None = None
    """Images in each step; by default the paper's 128 on a GPU and 16 on CPU."""
    steps: int | None = None
    """Steps that are timed together; by default 20 on a GPU and 1 on CPU."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the model's computation; by default bfloat16 on a GPU and float32 on CPU."""


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    settings = settings.for_device(batch_size=(16, 128), steps=(1, 20), dtype=("float32", "bfloat16"))
    jobs = {f"{network}, {what}": (network, what) for what in _CONTENDERS for network in settings.networks}
    cases: dict[str, Result] = {}
    for job in deadline.admits(jobs, settings.seconds_each):
        network, what = jobs[job]
        contenders = {what: _CONTENDERS[what](network, settings)}
        found = measure(contenders, rounds=settings.rounds, seconds_each=settings.seconds_each, deadline=deadline)
        if what == "epoch" and "seconds" in found[what]:
            _scale_to_an_epoch(found[what], settings)
        cases[network] = cases.get(network, {"network": network}) | found
        settings.write("figure23", list(cases.values()))
    return list(cases.values())


def _refresh(network: str, settings: Settings) -> Contender:
    return Contender("tb_optax", {"network": network, "fit": "median"})


def _epoch(network: str, settings: Settings) -> Contender:
    """A few steps without TempBalance."""
    model, channels = split(network)
    case = {key: getattr(settings, key) for key in ("batch_size", "steps", "dtype")}
    return Contender("training", case | {"model": model, "width": channels / 512, "method": "cal"})


_CONTENDERS = {"refresh": _refresh, "epoch": _epoch}


def _scale_to_an_epoch(result: Result, settings: Settings) -> None:
    """Turns the time of a few images into that of an epoch."""
    assert settings.batch_size is not None and settings.steps is not None
    epochs = _IMAGES / (settings.batch_size * settings.steps)
    result["seconds"] = [seconds * epochs for seconds in result["seconds"]]
    result["median"] = statistics.median(result["seconds"])


def split(network: str) -> tuple[str, int]:
    """A network's model, and the channels of its last stage (before a bottleneck widens them fourfold)."""
    model, _, channels = network.partition("-")
    return model, int(channels or 512)


def share(case: Mapping[str, Any]) -> float | None:
    """The time of a refresh over that of an epoch."""
    refresh, epoch = (case.get(what, {}).get("median") for what in ("refresh", "epoch"))
    return refresh / epoch if refresh and epoch else None


def section(cases: Sequence[Result]) -> list[str]:
    """The paragraphs of the report."""
    time = lambda result: f"{result['median']:.3f}" if result["median"] < 10 else f"{result['median']:,.0f}"
    rows = []
    for case in cases:
        model, channels = split(case["network"])
        ratio = share(case)
        times = (or_error(case[what], time) if what in case else "" for what in ("refresh", "epoch"))
        rows.append((model, str(channels), *times, "" if ratio is None else f"{ratio:.2%}"))
    return [
        "## Figure 23",
        "A refresh and an epoch of 50,000 images, in seconds, by depth and by width: the channels of the last stage. The "
        "epoch is computed from a few steps. In the paper, on a GPU, a refresh takes less than 9% of an epoch.",
        table(("network", "width", "refresh", "epoch", "refresh / epoch"), rows),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
