"""A refresh beside an epoch, by the network's depth and width (the paper's Figure 23): `python -m benchmarks.figure23`.

The epoch is one of 50,000 images of 32x32, computed from the time of a few steps without TempBalance. All refreshes are
timed before the first epoch, so that a run that is cut short has them.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from benchmarks import part
from benchmarks.tables import or_error, table
from benchmarks.timing import Contender, Deadline, Result

DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101")
# The channels of ResNet-18's last stage, 512 in the network as published.
WIDTHS = ("resnet18-768", "resnet18-1024", "resnet18-2048")
_IMAGES = 50_000


@dataclasses.dataclass(frozen=True)
class Settings(part.Timed):
    """Times a refresh, then an epoch, of each network of the paper's Figure 23."""

    networks: tuple[str, ...] = (*DEPTHS, *WIDTHS)
    """ResNets. A number after a dash is the number of channels of the last stage."""
    rounds: int = 3
    """How often each refresh and each epoch is timed."""
    batch_size: int | None = None
    """Images in each step; by default the paper's 128 on a GPU and 16 on CPU."""
    steps: int | None = None
    """Steps that are timed together; by default 20 on a GPU and 1 on CPU."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the model's computation; by default bfloat16 on a GPU and float32 on CPU."""


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    settings = settings.for_device(batch_size=(16, 128), steps=(1, 20), dtype=("float32", "bfloat16"))
    assert settings.batch_size is not None and settings.steps is not None
    epochs = _IMAGES / (settings.batch_size * settings.steps)
    shared = {key: getattr(settings, key) for key in ("batch_size", "steps", "dtype")}
    cases: dict[str, Result] = {}

    def refresh(network: str) -> dict[str, Contender]:
        return {"refresh": Contender("tb_optax", {"network": network, "fit": "median"})}

    def epoch(network: str) -> dict[str, Contender]:
        model, channels = split(network)
        return {"epoch": Contender("training", shared | {"model": model, "width": channels / 512})}

    for contender in (refresh, epoch):
        for network, found in settings.measure(deadline, contender):
            result = found.get("epoch", {})
            if "seconds" in result:
                result["seconds"] = [seconds * epochs for seconds in result["seconds"]]
                result["median"] = statistics.median(result["seconds"])
            cases[network] = cases.get(network, {"network": network}) | found
            settings.write("figure23", list(cases.values()))
    return list(cases.values())


def split(network: str) -> tuple[str, int]:
    """A network's model, and the channels of its last stage (before a bottleneck widens them fourfold)."""
    model, _, channels = network.partition("-")
    return model, int(channels or 512)


def share(case: Mapping[str, Any], interval: int | None = None) -> float | None:
    """The time of a refresh over that of an epoch; with an interval, over that of so many updates and the refresh.

    An update is by 128 images.
    """
    refresh, epoch = (case.get(what, {}).get("median") for what in ("refresh", "epoch"))
    if not refresh or not epoch:
        return None
    return refresh / epoch if interval is None else refresh / (refresh + epoch * interval * 128 / _IMAGES)


def section(cases: Sequence[Result]) -> list[str]:
    """The paragraphs of the report."""
    time = lambda result: f"{result['median']:.3f}" if result["median"] < 10 else f"{result['median']:,.0f}"
    percent = lambda ratio: "" if ratio is None else f"{ratio:.2%}"
    rows = []
    for case in cases:
        model, channels = split(case["network"])
        times = (or_error(case[what], time) if what in case else "" for what in ("refresh", "epoch"))
        rows.append((model, str(channels), *times, *(percent(share(case, interval)) for interval in (None, 50, 1))))
    return [
        "## Figure 23",
        "A refresh and an epoch of 50,000 images, in seconds, by depth and by width: the channels of the last stage. The "
        "epoch is computed from a few steps. In the paper, on a GPU, a refresh takes less than 9% of an epoch. The last "
        "two columns are the share of training in refreshes, with one every 50 updates and one every update by 128 images, "
        "computed from the two times.",
        table(("network", "width", "refresh", "epoch", "refresh / epoch", "every 50 updates", "every update"), rows),
    ]


if __name__ == "__main__":
    part.main(Settings, run, section)
