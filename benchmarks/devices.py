"""A refresh on several devices, with the parameters on each as in data-parallel training: `python -m benchmarks.devices`.

On CPU the devices are simulated and share the cores, so the time should not grow with their number.
"""

import dataclasses
from collections.abc import Sequence

from benchmarks import part, provenance
from benchmarks.part import Deadline
from benchmarks.tables import or_error, ratio, table
from benchmarks.timing import Contender, Result, measure


@dataclasses.dataclass(frozen=True)
class Settings(part.Settings):
    """Times a refresh under `jax.set_mesh` with the parameters on every device, for several numbers of devices in turn."""

    networks: tuple[str, ...] = ("resnet18", "gpt2")
    """Networks of benchmarks/networks.py."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices. Numbers above that of this machine's GPUs are left out."""
    rounds: int = 7
    """How often each refresh is timed."""
    seconds_each: float = 20.0
    """Time in seconds after which a number of devices gets no further round of a network."""


def run(settings: Settings) -> list[Result]:
    deadline = Deadline(settings.minutes)
    device = provenance.device()
    on_cpu = device["platform"] == "cpu"
    counts = [count for count in settings.devices if on_cpu or count <= device["devices"]]
    cases: list[Result] = []
    for network in deadline.admits(settings.networks, settings.seconds_each):
        contenders = {
            str(count): Contender(
                "tb_optax",
                {"network": network, "fit": "median", "devices": count},
                environment={"JAX_NUM_CPU_DEVICES": str(count)} if on_cpu else {},
                base=str(counts[0]),
            )
            for count in counts
        }
        results = measure(contenders, rounds=settings.rounds, seconds_each=settings.seconds_each, deadline=deadline)
        cases.append({"network": network, "devices": results})
        settings.write("devices", cases)
    return cases


def section(cases: Sequence[Result]) -> list[str]:
    """The paragraphs of the report."""
    rows = [
        (case["network"], count, or_error(result, lambda result: f"{1e3 * result['median']:.1f}"), or_error(result, ratio))
        for case in cases
        for count, result in case["devices"].items()
    ]
    return ["## On several devices", table(("network", "devices", "milliseconds", "ratio"), rows)]


if __name__ == "__main__":
    part.main(Settings, run, section)
