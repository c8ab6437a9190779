"""What a run is computed on, as flags."""

import dataclasses

from examples.paper.errors import UserError


@dataclasses.dataclass(frozen=True)
class Devices:
    """What a run is computed on, which changes its result by rounding only; a run may be resumed on other devices."""

    mesh: int | None = None
    """How many devices each batch is split over; by default all, of all processes."""
    distributed: bool = False
    """One of several processes that train together, started by SLURM, Open MPI, Kubernetes or on Cloud TPU."""
    coordinator_address: str | None = None
    """HOST:PORT of the first of several processes that were started in another way; any free port."""
    num_processes: int | None = None
    """How many processes there are; with --coordinator-address."""
    process_id: int | None = None
    """Which one this is, from 0; with --coordinator-address."""

    def several_processes(self) -> bool:
        return self.distributed or self.coordinator_address is not None

    def check(self) -> None:
        """Raises UserError where a number is out of range, or one of three that belong together is missing."""
        if self.mesh is not None and self.mesh < 1:
            raise UserError(f"--mesh {self.mesh} must be at least 1.")
        names = ("coordinator_address", "num_processes", "process_id")
        given = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}
        if len(set(value is None for value in given.values())) > 1:
            missing = " and ".join(flag for flag, value in given.items() if value is None)
            there = " ".join(f"{flag} {value}" for flag, value in given.items() if value is not None)
            raise UserError(f"{there} needs {missing} too.")
        if self.coordinator_address is not None and not self.coordinator_address.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator-address {self.coordinator_address} must be HOST:PORT, such as 10.0.0.1:8476.")
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise UserError(f"--num-processes {self.num_processes} must be at least 1.")
            if not 0 <= self.process_id < self.num_processes:
                raise UserError(
                    f"--process-id {self.process_id} must be from 0 to {self.num_processes - 1}, "
                    f"below --num-processes {self.num_processes}."
                )
