"""The processes and the devices of a run: all do the same, each on its share of every batch."""

import dataclasses
import os
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from examples.paper.errors import UserError

Value = TypeVar("Value")

_AXIS = "data"


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

    def check(self) -> None:
        """Raises UserError where a number is out of range, or one of three that belong together is missing."""
        if self.mesh is not None and self.mesh < 1:
            raise UserError(f"--mesh {self.mesh} must be at least 1.")
        address, count, own = given = self.coordinator_address, self.num_processes, self.process_id
        if given == (None, None, None):
            return
        port = (address or "").rpartition(":")[2]
        if not port.isdecimal() or count is None or own is None or not 0 <= own < count:
            raise UserError(
                f"--coordinator-address {address}, --num-processes {count} and --process-id {own} must be given together: "
                "HOST:PORT, such as 10.0.0.1:8476, a number, and one from 0 on that is below it."
            )


def join_processes(devices: Devices) -> None:
    """Makes this process one of the several that train together, where the flags say that there are.

    Raises:
      UserError: the other processes could not be found.
    """
    if not devices.distributed and devices.coordinator_address is None:
        return
    try:
        jax.distributed.initialize(devices.coordinator_address, devices.num_processes, devices.process_id)
    except ValueError as error:
        raise UserError(
            "--distributed: neither SLURM, Open MPI, Kubernetes nor Cloud TPU says what processes there are; "
            "give --coordinator-address, --num-processes and --process-id."
        ) from error
    except RuntimeError as error:
        flag = f"--coordinator-address {devices.coordinator_address}" if devices.coordinator_address else "--distributed"
        raise UserError(
            f"{flag}: this process could not meet the others ({str(error).splitlines()[0]}); "
            "check that every process was started, and that nothing else uses the port."
        ) from error


def create_mesh(count: int | None, batch_size: int) -> Mesh:
    """The devices that every batch is split over: `count` of them, as many from each process, or all.

    Raises:
      UserError: there are not so many, or they cannot have equal shares.
    """
    processes, there = jax.process_count(), jax.device_count()
    count = there if count is None else count
    if count > there:
        raise UserError(f"--mesh {count} is more than the {there} devices that JAX sees; give at most that.")
    if count % processes:
        raise UserError(f"--mesh {count} leaves the {processes} processes unequal shares; give a multiple of {processes}.")
    if batch_size % count:
        raise UserError(
            f"--batch-size {batch_size} does not split evenly over {count} devices; "
            f"give a multiple of {count}, or a --mesh that divides it."
        )
    of_process = lambda index: jax.local_devices(process_index=index)[: count // processes]
    chosen = [device for index in range(processes) for device in of_process(index)]
    return jax.make_mesh((count,), (_AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def split(batch: jax.Array) -> jax.Array:
    """Splits a batch over the mesh in force, along its first axis."""
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(_AXIS))


def batches(count: int, batch_size: int) -> Int[Array, "batches batch"]:
    """The numbers of so many examples, a row a batch; the last one is filled up with numbers from `count` on."""
    rows = -(-count // batch_size)
    return jnp.arange(rows * batch_size).reshape(rows, batch_size)


def replicate(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts an array that every process has onto every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_process_local_data(sharding, array, array.shape)  # device_put would send it to all others


def is_first_process() -> bool:
    """Whether this process tells of the run, on the terminal and in files: one does."""
    return jax.process_index() == 0


def first_process_first(action: Callable[[], Value]) -> Value:
    """What every process does once the first has: it may download, or write what the others then find.

    Raises:
      Exception: the one that `action` raised.
      UserError: it raised one in another process: none waits for one that has given up.
    """
    result = None
    for turn in (True, False):
        problem = None
        if is_first_process() == turn:
            try:
                result = action()
            except Exception as error:
                problem = error
        failed = multihost_utils.process_allgather(np.asarray(problem is not None))
        if problem is not None:
            raise problem
        if failed.any():
            raise UserError(f"process {failed.argmax()} of {len(failed)} gave up; it says why.")
    return result  # pyright: ignore[reportReturnType]


def check_same(what: str, value: bytes) -> None:
    """Raises UserError in every process where `value` is not the same in all of them."""
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(value)))
    if (sums != sums[0]).any():
        other = (sums != sums[0]).argmax()
        raise UserError(f"process {other} has other {what} than process 0; start all with the same flags and data.")


_interrupted = threading.Event()


def _remember_interrupt(*_: Any) -> None:
    """Raises KeyboardInterrupt, and remembers it: JAX's callbacks of the garbage collector swallow what they raise."""
    _interrupted.set()
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt again if Ctrl-C was pressed and what it raised got lost."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def run_command(main: Callable[[], None]) -> NoReturn:
    """Runs a command as all of a process: it ends when `main` does, or there and then at an error.

    In the usual way it would wait at its exit for threads that wait for others, and one of several processes for the other
    ones, minutes long, and they for its part of the work.
    """
    code = 0
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember_interrupt)
    try:
        main()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else error.code is not None
    except BaseException:
        traceback.print_exc()
        code = 1
    if code == 0:
        sys.exit()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
