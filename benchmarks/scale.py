"""The memory and work of a refresh of a large, sharded network on each of eight devices: compiled, not run.

`python -m benchmarks.scale` writes the table of `docs/scale.md`. XLA reports how much memory a device needs beside the
weights and the state. The compiled program shows which arrays are gathered whole from all devices, and how many
eigenproblems of which size a device solves. The devices are simulated, and the program is compiled for CPU.
"""

import dataclasses
import functools
import itertools
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import tb_optax
from benchmarks.tables import show, table

DEVICES = 8
_MIB = 2**20
_DTYPES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Scanned blocks of a decoder: each kernel is a stack, and each slice of it a layer."""

    blocks: int
    width: int
    hidden: int
    key_width: int
    gated: bool = True

    def kernels(self) -> dict[str, tuple[int, int]]:
        """Sizes; those that end with `o` or `down` lead back to the residual stream."""
        width, keys = self.width, self.key_width
        sizes = {"q": (width, width), "k": (width, keys), "v": (width, keys), "o": (width, width)}
        sizes |= {"up": (width, self.hidden), "down": (self.hidden, width)}
        return sizes | ({"gate": (width, self.hidden)} if self.gated else {})


NETWORKS = {
    "GPT-2 small": Decoder(12, 768, 3072, 768, gated=False),
    "Llama-like, 0.85B": Decoder(16, 2048, 5632, 2048),
    "Llama-like, 8B": Decoder(32, 4096, 14336, 1024),
}
_INTO_RESIDUAL = ("o", "down")


def _spec(sharding: str, name: str) -> P:
    """FSDP divides the first axis of each matrix; tensor parallelism the inner width; both, over two axes of devices."""
    inputs_are_inner = name in _INTO_RESIDUAL
    return {
        "FSDP": P(None, "x"),
        "tensor": P(None, "x") if inputs_are_inner else P(None, None, "x"),
        "FSDP x tensor": P(None, "t", "f") if inputs_are_inner else P(None, "f", "t"),
    }[sharding]


SHARDINGS = {"FSDP": ((DEVICES,), ("x",)), "tensor": ((DEVICES,), ("x",)), "FSDP x tensor": ((4, 2), ("f", "t"))}


class Found(NamedTuple):
    """What the compiled refresh of one device holds."""

    share_mib: float
    """The device's share of the weights."""
    temporary_mib: float
    """The memory that XLA reserves beside weights and state."""
    gathered_mib: float
    """The largest array that is gathered from all devices."""
    solved: Counter[int]
    """The number of eigenproblems by size."""


def compiled_refresh(decoder: Decoder, sharding: str, **options: Any) -> Found:
    """Compiles the refresh of TempBalance, with these options, for float32 weights sharded over `DEVICES` devices."""
    mesh, weights, layers = sharded_shapes(decoder, sharding)
    tx = tb_optax.tempbalance(1, layers=layers, **options)
    with jax.set_mesh(mesh):
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P())),
            jax.eval_shape(tx.init, weights),
        )
        refresh = lambda params, state: tx.update(params, state, params)[1]
        compiled = jax.jit(refresh).lower(weights, state).compile()
    text = compiled.as_text() or ""
    total = sum(math.prod(weight.shape) * weight.dtype.itemsize for weight in weights.values())
    analysis = compiled.memory_analysis()
    temporary = 0 if analysis is None else analysis.temp_size_in_bytes
    return Found(total / DEVICES / _MIB, temporary / _MIB, max(gathered(text), default=0) / _MIB, solved(text))


def sharded_shapes(decoder: Decoder, sharding: str) -> tuple[Mesh, dict[str, jax.ShapeDtypeStruct], tb_optax.Layers]:
    """A mesh of `DEVICES` devices, the weights of a decoder sharded over it, and their layers."""
    shape, names = SHARDINGS[sharding]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=jax.devices()[:DEVICES])
    weights = {
        name: jax.ShapeDtypeStruct((decoder.blocks, *size), jnp.float32, sharding=NamedSharding(mesh, _spec(sharding, name)))
        for name, size in decoder.kernels().items()
    }
    return mesh, weights, tb_optax.Layers(tb_optax.Layer(name, name, layer_axes=(0,)) for name in weights)


def gathered(text: str) -> list[int]:
    """The bytes of each array that a program gathers from all devices."""
    found = []
    for results in re.findall(r"= (.*?) all-gather(?:-start)?\(", text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            found.append(_DTYPES[dtype] * math.prod(map(int, filter(None, shape.split(",")))))
    return found


def solved(text: str) -> Counter[int]:
    """The number of symmetric eigenproblems that a program solves, by size. A loop counts as often as it runs, and a
    conditional by its most expensive branch.
    """
    computations = re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL)
    bodies = {name: body.splitlines() for name, body in computations}
    (entry,) = re.findall(r"^ENTRY %?([\w.\-]+)", text, flags=re.MULTILINE)
    cost = lambda found: sum(count * size**3 for size, count in found.items())

    @functools.cache
    def of(name: str) -> Counter[int]:
        found: Counter[int] = Counter()
        for line in bodies[name]:
            if "lapack_ssyevd_ffi" in line:
                found[int(re.findall(r"f32\[(\d+),", line)[0])] += 1
            times = int((re.findall(r'"known_trip_count":\{"n":"(\d+)"', line) or ["1"])[0])
            branches = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            for listed in re.findall(r"branch_computations=\{(.*?)\}", line):
                branches += [branch.strip(" %") for branch in listed.split(",")]
            called = [of(name) for name in re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line)]
            called += [max(map(of, branches), key=cost)] if branches else []
            for each in called:
                found.update({size: times * count for size, count in each.items()})
        return found

    return of(entry)


SPECTRA = {
    "exact": {},
    "approximate": {"solver": tb_optax.Lanczos(min_size=512)},
    "windows": {"windows": tb_optax.Windows()},
}
COLUMNS = "network, sharded by, spectra, weights on a device, memory of a refresh, largest gathered, solved"


def main(out: Path | None = None) -> None:
    """Prints the table: a row for each network, sharding and solver.

    Args:
      out: a file to write the table to as well.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows = []
    for (network, decoder), sharding, (spectra, options) in itertools.product(NETWORKS.items(), SHARDINGS, SPECTRA.items()):
        print(f"{network}, {sharding}, {spectra} ...", file=sys.stderr, flush=True)
        found = compiled_refresh(decoder, sharding, **options)
        sizes = ", ".join(f"{count:,} of {size}" for size, count in sorted(found.solved.items())) or "—"
        numbers = (f"{number:,.1f} MiB" for number in (found.share_mib, found.temporary_mib, found.gathered_mib))
        rows.append((network, sharding, spectra, *numbers, sizes))
    show(table(COLUMNS.split(", "), rows, right=range(3, 6)), out)


if __name__ == "__main__":
    tyro.cli(main)
