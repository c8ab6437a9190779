"""A refresh on several devices, which hold the parameters as data-parallel training does: `python -m benchmarks.devices`.

On CPU the devices are simulated and share the cores: what to see is that the time does not grow with their number.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import provenance
from benchmarks.timing import Contender, Deadline, Result, measure, ratio


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times a refresh under `jax.set_mesh` with the parameters on every device, the numbers of devices in turn."""

    networks: tuple[str, ...] = ("resnet18", "gpt2")
    """As in benchmarks.refresh."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """How many. Numbers above those of the GPUs that are there are left out."""
    rounds: int = 7
    """How often each is timed."""
    seconds_each: float = 20.0
    """No number of devices gets another round of a network once it has taken this long."""
    minutes: float = 5.0
    """No network is begun, and no round, after this."""
    out: Path | None = None
    """Where to write devices.json; by default benchmarks/results/KIND OF DEVICE."""


def main() -> None:
    run(tyro.cli(Annotated[Settings, tyro.conf.arg(name="")]))


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    device = provenance.device()
    counts = [count for count in settings.devices if device["platform"] == "cpu" or count <= device["devices"]]
    cases: list[Result] = []
    for network in settings.networks:
        if cases and deadline.left() < settings.seconds_each:
            print(f"{network}: left out, the time is up")
            continue
        contenders = {
            str(count): Contender(
                "tb_optax",
                {"network": network, "fit": "median", "devices": count},
                {"JAX_NUM_CPU_DEVICES": str(count)} if device["platform"] == "cpu" else {},
            )
            for count in counts
        }
        results = measure(contenders, rounds=settings.rounds, seconds_each=settings.seconds_each, deadline=deadline)
        for count, result in results.items():
            result.pop("alphas", None)
            result["ratio"] = ratio(results, count, str(counts[0]))
            time = result.get("error") or f"{1e3 * result['median']:9.1f} ms  x{result['ratio']:.2f}"
            print(f"{network:10} {count} devices  {time}")
        cases.append({"network": network, "devices": results})
        arguments = dataclasses.asdict(settings) | {"out": None}
        provenance.write(settings.out or provenance.results_directory(), "devices", arguments, cases)
    return cases


if __name__ == "__main__":
    main()
