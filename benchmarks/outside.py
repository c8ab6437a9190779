"""What a refresh outside the step saves: `python -m benchmarks.outside` writes a table of `docs/performance.md`.

The step is AdamW's update of all parameters: alone, with `tempbalance(None)` behind it, or with `tempbalance(N)`. The
refresh is the program that `refresh` compiles. ResNet-18 is run on this device, the programs in turn. A decoder with 0.85
billion parameters is compiled for eight simulated CPU devices that share the weights (FSDP), and not run.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import tb_optax
from benchmarks.networks import create
from benchmarks.scale import DEVICES, NETWORKS, sharded_shapes
from benchmarks.tables import show, table

_DECODER = "Llama-like, 0.85B"
_INTERVAL = 100


class Program(NamedTuple):
    """A function of the optimizer's state and the parameters, and of gradients if it is a step.

    A step's results take the place of its first two arguments.
    """

    name: str
    tx: optax.GradientTransformation
    function: Callable[..., Any]
    is_step: bool = True


def programs(layers: tb_optax.Layers) -> list[Program]:
    """The program of each row."""
    alone, balance = optax.adamw(1e-3), tb_optax.tempbalance(None, layers=layers)
    outside, inside = (optax.chain(alone, tx) for tx in (balance, tb_optax.tempbalance(_INTERVAL, layers=layers)))

    def step(tx: optax.GradientTransformation) -> Callable[..., Any]:
        def run(state: Any, params: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return state, optax.apply_updates(params, updates)

        return run

    return [
        Program("step: AdamW alone", alone, step(alone)),
        Program("step: `update_interval=None`", outside, step(outside)),
        Program("step: `update_interval=N`", inside, step(inside)),
        Program("`refresh`, a program of its own", outside, balance.refresh, is_step=False),
    ]


def compiled(program: Program, params: Any, shapes_of: Callable[[Any], Any], rounds: int) -> tuple[Any, float]:
    """The compiled program, and the median of the seconds that tracing and compiling it take.

    Args:
      program: what is compiled.
      params: parameters, or their shapes.
      shapes_of: from shapes of a state to shapes on the devices that hold it.
      rounds: how often it is compiled.
    """
    arguments = [shapes_of(jax.eval_shape(program.tx.init, params)), params, params]
    found, seconds = None, []
    for _ in range(rounds):
        jax.clear_caches()
        start = time.perf_counter()
        jitted = jax.jit(program.function, donate_argnums=(0, 1) if program.is_step else ())
        found = jitted.lower(*arguments[: 3 if program.is_step else 2]).compile()
        seconds.append(time.perf_counter() - start)
    return found, statistics.median(seconds)


def run_seconds(found: Sequence[tuple[Program, Any]], params: Any, runs: int) -> list[float]:
    """The median of the seconds of each compiled program, run in turn, forwards and backwards; no step is due to refresh."""
    grads = jax.tree.map(lambda leaf: 1e-3 * leaf, params)
    arguments = [[program.tx.init(params), jax.tree.map(jnp.copy, params)] for program, _ in found]

    def seconds(number: int) -> float:
        program, execute = found[number]
        start = time.perf_counter()
        results = jax.block_until_ready(execute(*arguments[number], *([grads] if program.is_step else [])))
        taken = time.perf_counter() - start
        if program.is_step:
            arguments[number] = list(results)
        return taken

    order = list(range(len(found)))
    for number in order:
        seconds(number)  # The first update of an interval refreshes.
    taken = [{number: seconds(number) for number in order[:: 1 if round_ % 2 else -1]} for round_ in range(runs)]
    return [statistics.median(each[number] for each in taken) for number in order]


def row(network: str, program: Program, execute: Any, compile_seconds: float, seconds: float | None) -> Sequence[str]:
    memory = execute.memory_analysis().temp_size_in_bytes / 2**20
    taken = "" if seconds is None else f"{1e3 * seconds:.1f} ms"
    return network, program.name, f"{compile_seconds:.2f} s", f"{memory:,.1f} MiB", taken


def main(out: Path | None = None, rounds: int = 3, runs: int = 60) -> None:
    """Prints a table of what a refresh outside the step saves.

    Args:
      out: a file to write the table to as well.
      rounds: how often each program is compiled; the table has the median.
      runs: how often each program is run; the table has the median. Fewer than the interval of 100.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    resnet = create("resnet18")
    params = jax.device_put(resnet.params, jax.devices()[0])
    found = programs(tb_optax.find_layers(params, exclude=resnet.exclude))
    ready = [compiled(program, params, lambda state: state, rounds) for program in found]
    seconds = run_seconds([(program, execute) for program, (execute, _) in zip(found, ready, strict=True)], params, runs)
    cells = [row("ResNet-18", *each) for each in zip(found, *zip(*ready, strict=True), seconds, strict=True)]
    if jax.device_count() >= DEVICES:
        mesh, weights, layers = sharded_shapes(NETWORKS[_DECODER], "FSDP")
        sharding_of = {weight.shape: weight.sharding for weight in weights.values()}

        def sharded(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = sharding_of.get(leaf.shape, NamedSharding(mesh, PartitionSpec()))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        place = lambda state: jax.tree.map(sharded, state)
        for program in programs(layers):
            cells.append(row(f"{_DECODER}, {DEVICES} devices", program, *compiled(program, weights, place, rounds), None))
    headings = ("network", "program", "compile", "memory beside arguments", "time, no refresh due")
    show(table(headings, cells, right=(2, 3, 4)), out)


if __name__ == "__main__":
    tyro.cli(main)
