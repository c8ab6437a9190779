"""A refresh beside an epoch, by the network's depth and width (the paper's Figure 23): `python -m benchmarks.figure23`.

The epoch is one of 50,000 images of 32x32, computed from the time of a few steps. All refreshes are timed before the first
epoch, so that a run that is cut short has them.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import provenance
from benchmarks.timing import Contender, Deadline, Result, measure

DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101")
# The channels of ResNet-18's last stage, 512 in the network as published.
WIDTHS = ("resnet18-768", "resnet18-1024", "resnet18-2048")
_IMAGES = 50_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times a refresh, then an epoch, of each network of the paper's Figure 23."""

    networks: tuple[str, ...] = (*DEPTHS, *WIDTHS)
    """ResNets, each also with the channels of its last stage after a dash."""
    rounds: int = 3
    """How often each is timed."""
    seconds_each: float = 20.0
    """No network gets another round once its refreshes, or its steps, have taken this long."""
    batch_size: int | None = None
    """Images a step; by default the paper's 128 on a GPU and 16 on CPU."""
    steps: int | None = None
    """Steps that are timed at once; by default 20 on a GPU and 1 on CPU."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the model computes in; by default bfloat16 on a GPU and float32 on CPU."""
    minutes: float = 10.0
    """No network is begun, and no round, after this. On CPU the refreshes need 2, and the epochs 4 more."""
    out: Path | None = None
    """Where to write figure23.json; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    on_cpu = provenance.device()["platform"] == "cpu"
    settings = dataclasses.replace(
        settings,
        batch_size=settings.batch_size or (16 if on_cpu else 128),
        steps=settings.steps or (1 if on_cpu else 20),
        dtype=settings.dtype or ("float32" if on_cpu else "bfloat16"),
    )
    cases: dict[str, Result] = {}
    for time in (_refresh, _epoch):
        for network in settings.networks:
            if cases and deadline.left() < settings.seconds_each:
                print(f"{network}, {time.__name__[1:]}: left out, the time is up")
                continue
            cases.setdefault(network, {"network": network}).update(time(network, settings, deadline))
            _show(cases[network])
            arguments = dataclasses.asdict(settings) | {"out": None}
            directory = settings.out or provenance.results_directory()
            provenance.write(directory, "figure23", arguments, list(cases.values()))
    return list(cases.values())


def _refresh(network: str, settings: Settings, deadline: Deadline) -> Result:
    return {"refresh": _measured(Contender("tb_optax", {"network": network, "fit": "median"}), settings, deadline)}


def _epoch(network: str, settings: Settings, deadline: Deadline) -> Result:
    """The epoch as if all its images were trained as fast as these few; without TempBalance."""
    assert settings.batch_size is not None and settings.steps is not None
    model, channels = split(network)
    case = {"model": model, "width": channels / 512, "method": "cal"}
    case |= {"dtype": settings.dtype, "batch_size": settings.batch_size, "steps": settings.steps}
    result = _measured(Contender("training", case), settings, deadline)
    if "seconds" in result:
        epochs = _IMAGES / (settings.batch_size * settings.steps)
        result["seconds"] = [seconds * epochs for seconds in result["seconds"]]
        result["median"] = statistics.median(result["seconds"])
    return {"epoch": result}


def split(network: str) -> tuple[str, int]:
    """A network's model, and the channels of its last stage: a bottleneck's before it widens them fourfold."""
    model, _, channels = network.partition("-")
    return model, int(channels or 512)


def _measured(contender: Contender, settings: Settings, deadline: Deadline) -> Result:
    results = measure({"": contender}, rounds=settings.rounds, seconds_each=settings.seconds_each, deadline=deadline)
    return {key: value for key, value in results[""].items() if key != "alphas"}


def _show(case: Result) -> None:
    of = {what: case[what].get("error") or f"{case[what]['median']:.3f} s" for what in ("refresh", "epoch") if what in case}
    ratio = share(case)
    print(
        f"{case['network']:14}",
        *(f"{what} {time}" for what, time in of.items()),
        *([] if ratio is None else [f"ratio {ratio:.2%}"]),
        sep="  ",
        flush=True,
    )


def share(case: Mapping[str, Any]) -> float | None:
    """A refresh in epochs: what one refresh an epoch adds to the training time."""
    refresh, epoch = (case.get(what, {}).get("median") for what in ("refresh", "epoch"))
    return refresh / epoch if refresh and epoch else None


if __name__ == "__main__":
    main()
