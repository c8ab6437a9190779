"""A refresh on several devices, with the parameters on each as in data-parallel training: `python -m benchmarks.devices`.

On CPU the devices are simulated and share the cores, so the time should not grow with their number.
"""

import dataclasses
from collections.abc import Sequence

from benchmarks import part, provenance
from benchmarks.tables import milliseconds, or_error, ratio, table
from benchmarks.timing import Contender, Deadline, Result


@dataclasses.dataclass(frozen=True)
class Settings(part.Timed):
    """Times a refresh under `jax.set_mesh` with the parameters on every device, for several numbers of devices in turn."""

    networks: tuple[str, ...] = ("resnet18", "gpt2")
    """Networks of benchmarks/networks.py."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices. Numbers above that of this machine's GPUs are left out."""


def run(settings: Settings) -> list[Result]:
    device = provenance.provenance()
    on_cpu = device["platform"] == "cpu"
    counts = [count for count in settings.devices if on_cpu or count <= device["devices"]]
    cases: list[Result] = []

    def contender(network: str, count: int) -> Contender:
        environment = {"JAX_NUM_CPU_DEVICES": str(count)} if on_cpu else {}
        case = {"network": network, "fit": "median", "devices": count}
        return Contender("tb_optax", case, environment=environment, base=str(counts[0]))

    contenders = lambda network: {str(count): contender(network, count) for count in counts}
    for network, found in settings.measure(Deadline(settings.minutes), contenders):
        cases.append({"network": network, "devices": found})
        settings.write("devices", cases)
    return cases


def section(cases: Sequence[Result]) -> list[str]:
    """The paragraphs of the report."""
    rows = [
        (case["network"], count, or_error(result, lambda result: milliseconds(result, 1)), or_error(result, ratio))
        for case in cases
        for count, result in case["devices"].items()
    ]
    return ["## On several devices", table(("network", "devices", "milliseconds", "ratio"), rows)]


if __name__ == "__main__":
    part.main(Settings, run, section)
