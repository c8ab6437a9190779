"""What a refresh outside the step saves: `python -m benchmarks.outside` writes a table of `docs/performance.md`.

The step is AdamW's update of all parameters: alone, with `tempbalance(None)` behind it, or with `tempbalance(N)`. The
refresh is the program that `refresh` compiles. ResNet-18 is run on this device. The decoder with 0.85 billion parameters is
compiled for eight simulated CPU devices that share the weights (FSDP), and not run.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import tb_optax
from benchmarks.networks import create
from benchmarks.scale import DEVICES, NETWORKS, sharded_shapes

_MIB = 2**20
_NEVER = 10**6
_DECODER = "Llama-like, 0.85B"


@dataclasses.dataclass(frozen=True)
class Row:
    """A program: seconds to trace, lower and compile it; memory beside its arguments; milliseconds of a run, if any."""

    program: str
    compile_seconds: float
    temporary_mib: float
    milliseconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of parameters, the optimizer's state and gradients; a step's results take the place of the first two."""

    tx: optax.GradientTransformation
    function: Callable[..., Any]
    is_step: bool = True

    def compile(self, *arguments: Any, rounds: int) -> tuple[Any, float]:
        """The compiled program, and the median of the seconds that this takes."""
        found, seconds = None, []
        for _ in range(rounds):
            jax.clear_caches()
            start = time.perf_counter()
            jitted = jax.jit(self.function, donate_argnums=(0, 1) if self.is_step else ())
            found = jitted.lower(*arguments).compile()
            seconds.append(time.perf_counter() - start)
        return found, statistics.median(seconds)


def programs(layers: tb_optax.Layers) -> dict[str, Program]:
    """The program of each row."""
    alone = optax.adamw(1e-3)
    outside, inside = (tb_optax.tempbalance(interval, layers=layers) for interval in (None, _NEVER))

    def step(tx: optax.GradientTransformation, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    chains = {
        "step: AdamW alone": alone,
        "step: `update_interval=None`": optax.chain(alone, outside),
        "step: `update_interval=N`, no refresh due": optax.chain(alone, inside),
    }
    found = {name: Program(tx, functools.partial(step, tx)) for name, tx in chains.items()}
    refresh = lambda params, state, grads: outside.refresh(state, params)
    return found | {"`refresh`, a program of its own": Program(optax.chain(alone, outside), refresh, is_step=False)}


def resnet18(rounds: int, runs: int) -> list[Row]:
    """The programs for ResNet-18, run in turn."""
    network = create("resnet18")
    layers = tb_optax.find_layers(network.params, exclude=network.exclude)
    params = jax.device_put(network.params)
    grads = jax.tree.map(lambda leaf: 1e-3 * leaf, params)
    rows, run = {}, {}
    for name, program in programs(layers).items():
        state = program.tx.init(params)
        found, compile_seconds = program.compile(params, state, grads, rounds=rounds)
        rows[name] = Row(name, compile_seconds, _temporary_mib(found))
        run[name] = _timed(found, [jax.tree.map(jnp.copy, params), state], grads, program.is_step)
        run[name]()  # The first update of an interval refreshes; none after it does.
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for number in range(runs):
        for name in list(run)[:: 1 if number % 2 else -1]:
            seconds[name].append(run[name]())
    return [dataclasses.replace(row, milliseconds=1e3 * statistics.median(seconds[name])) for name, row in rows.items()]


def _timed(compiled: Any, carry: list[Any], grads: Any, is_step: bool) -> Callable[[], float]:
    """A function that runs a program and returns the seconds that this takes."""

    def run() -> float:
        jax.block_until_ready(carry)
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*carry, grads))
        seconds = time.perf_counter() - start
        if is_step:
            carry[:] = result
        return seconds

    return run


def decoder(rounds: int) -> list[Row]:
    """The programs for a sharded decoder, compiled only."""
    mesh, weights, layers = sharded_shapes(NETWORKS[_DECODER], "FSDP")
    sharding_of = {weight.shape: weight.sharding for weight in weights.values()}

    def sharded(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = sharding_of.get(leaf.shape, NamedSharding(mesh, PartitionSpec()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rows = []
    for name, program in programs(layers).items():
        state = jax.tree.map(sharded, jax.eval_shape(program.tx.init, weights))
        found, compile_seconds = program.compile(weights, state, weights, rounds=rounds)
        rows.append(Row(name, compile_seconds, _temporary_mib(found)))
    return rows


def _temporary_mib(compiled: Any) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / _MIB


def table(parts: dict[str, list[Row]]) -> str:
    """In Markdown, a row for each program of each network."""
    lines = ["| network | program | compile | memory beside arguments | time |", "| --- | --- | ---: | ---: | ---: |"]
    for network, rows in parts.items():
        for row in rows:
            taken = "" if row.milliseconds is None else f"{row.milliseconds:.1f} ms"
            lines.append(
                f"| {network} | {row.program} | {row.compile_seconds:.2f} s | {row.temporary_mib:,.1f} MiB | {taken} |"
            )
    return "\n".join(lines)


def main(out: Path | None = None, rounds: int = 3, runs: int = 60) -> None:
    """Prints the table.

    Args:
      out: a file to write it to as well.
      rounds: how often each program is compiled; the median is told.
      runs: how often each step is run; the median is told.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    parts = {"ResNet-18": resnet18(rounds, runs)}
    if jax.device_count() >= DEVICES:
        parts[_DECODER + ", 8 devices"] = decoder(rounds)
    text = table(parts)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    tyro.cli(main)
