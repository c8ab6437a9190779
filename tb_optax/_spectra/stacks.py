"""Many problems as few: those that look alike are solved as one stack, and a stack too large is cut."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

Item = TypeVar("Item")


def alike(items: Iterable[Item], kind: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items of one kind together, in their order."""
    kinds = defaultdict(list)
    for item in items:
        kinds[kind(item)].append(item)
    return list(kinds.values())


def solve_in_chunks(
    counts: Sequence[int],
    make: Callable[[int, int, int], Shaped[Array, "part ..."]],
    solve: Callable[[Shaped[Array, "stack ..."]], Shaped[Array, "stack ..."]],
    at_once: int,
) -> Shaped[Array, "problems ..."]:
    """Solves the problems of several makers, `counts` of each, with at most `at_once` of them in memory.

    `make(maker, start, stop)` makes some of a maker's problems. They are made chunk by chunk, in a loop whose body picks
    its chunk by a switch: the solver is compiled once, and XLA cannot make one chunk before another is done.
    """
    total = sum(counts)
    chunks = -(-total // at_once)
    length = -(-total // chunks)
    stops = np.cumsum(counts)

    def chunk(first: int) -> Array:
        parts = []
        for maker, (stop, count) in enumerate(zip(stops, counts, strict=True)):
            begin = stop - count
            own = slice(max(first, begin) - begin, min(first + length, stop) - begin)
            if own.start < own.stop:
                parts.append(make(maker, int(own.start), int(own.stop)))
        missing = length - sum(map(len, parts))
        return jnp.concatenate([*parts, jnp.zeros((missing, *parts[0].shape[1:]), parts[0].dtype)])

    if chunks == 1:
        return solve(chunk(0))
    branches = [lambda first=first: chunk(first) for first in range(0, total, length)]
    solutions = jax.lax.map(lambda index: solve(jax.lax.switch(index, branches)), jnp.arange(len(branches)))
    return solutions.reshape(-1, *solutions.shape[2:])[:total]
