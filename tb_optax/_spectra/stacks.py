"""Many problems as few: those that look alike are solved as one stack, and a stack too large is cut."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

Item = TypeVar("Item")


def alike(items: Iterable[Item], kind: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items of one kind together, in their order."""
    kinds = defaultdict(list)
    for item in items:
        kinds[kind(item)].append(item)
    return list(kinds.values())


class Section(NamedTuple):
    """Problems `start` to `stop` of one maker. Each device that solves some has `share` of them, the last ones fewer."""

    maker: int
    start: int
    stop: int
    share: int


class Chunk(NamedTuple):
    """Problems that are solved at once. Each device has its share of every section, and is filled up to `length`."""

    sections: tuple[Section, ...]
    length: int

    def places(self) -> Int[np.ndarray, " problems"]:
        """Where in the stack of all devices each of the problems is, in the order of the sections."""
        found, begin = [], 0
        for section in self.sections:
            device, own = np.divmod(np.arange(section.stop - section.start), section.share)
            found.append(device * self.length + begin + own)
            begin += section.share
        return np.concatenate(found)


def cut(counts: Sequence[int], at_once: int, devices: int) -> list[Chunk]:
    """Chunks of one length, of at most `at_once` problems for each device, which take the makers' problems in their order.

    Args:
      counts: how many problems each maker has.
      at_once: how many a device may have in memory.
      devices: that solve them.
    """
    shares = [-(-count // devices) for count in counts]
    chunks = math.ceil(sum(shares) / at_once)
    length = math.ceil(sum(shares) / chunks)
    stops = np.cumsum(shares)
    found = []
    for first in range(0, sum(shares), length):
        sections = []
        for maker, (stop, share, count) in enumerate(zip(stops, shares, counts, strict=True)):
            begin = int(stop) - share
            start, end = max(first, begin) - begin, min(first + length, int(stop)) - begin
            if start < end:
                sections.append(Section(maker, start * devices, min(end * devices, count), end - start))
        found.append(Chunk(tuple(sections), length))
    return found


def solve_in_chunks(
    chunks: Sequence[Chunk],
    make: Callable[[Chunk], Shaped[Array, "stack ..."]],
    solve: Callable[[Shaped[Array, "stack ..."]], Shaped[Array, "stack ..."]],
) -> Shaped[Array, "problems ..."]:
    """Solves all problems, with one chunk of them in memory.

    `make` makes the stack of a chunk, which lies as `Chunk.places` says. The chunks are made in a loop whose body picks its
    own by a switch: the solver is compiled once, and XLA cannot make one chunk before another is done.
    """
    if len(chunks) == 1:
        solutions = solve(make(chunks[0]))
    else:
        branches = [lambda chunk=chunk: make(chunk) for chunk in chunks]
        solved = jax.lax.map(lambda index: solve(jax.lax.switch(index, branches)), jnp.arange(len(branches)))
        solutions = solved.reshape(-1, *solved.shape[2:])
    length = len(solutions) // len(chunks)
    places = np.concatenate([number * length + chunk.places() for number, chunk in enumerate(chunks)])
    in_order = np.array_equal(places, np.arange(len(places)))
    return solutions[: len(places)] if in_order else solutions[places]
