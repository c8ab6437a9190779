"""What is known of an array in the forward pass: where it comes from.

An `Input` is computed from the network's inputs alone, its running statistics among them; a `Weight` (in `axes.py`) from
parameters, and it remembers which axes of which parameter it shows; a `Signal` has been through a layer and remembers whose
output it still is, up to biases and normalization. `Joined` is several of these in one array. A constant is None.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tb_optax._layers.axes import Weight, slice_along
from tb_optax._layers.layer import Path


@dataclasses.dataclass(frozen=True)
class Input:
    """Computed from inputs of the network alone."""

    inputs: frozenset[Any]


@dataclasses.dataclass(frozen=True)
class Signal:
    """Computed by at least one layer or embedding."""

    source: Path | None = None
    """The kernel of the layer whose output it is; None after a nonlinearity or where several meet."""
    statistic: bool = False
    """A reduction of that output, such as its mean."""
    weights: frozenset[Weight] = frozenset()
    """What a statistic has been multiplied with: it normalizes only if the statistic meets the output again."""


Part: TypeAlias = Input | Weight | Signal | None


@dataclasses.dataclass(frozen=True)
class Joined:
    """Several arrays side by side: kernels before a product of all, or their outputs after it."""

    dim: int
    """The dimension along which they are joined."""
    sizes: tuple[int, ...]
    """How much of it each part takes."""
    parts: tuple[Part, ...]
    """Each as if it filled the whole array."""

    def each(self, function: Callable[[Part], "Value"]) -> "Value":
        """What `function` makes of the parts, joined where they were."""
        return join(self.dim, self.sizes, [function(part) for part in self.parts])


Value: TypeAlias = Part | Joined


def join(dim: int, sizes: Sequence[int], values: Sequence[Value]) -> Value:
    """Values side by side: one value if all are alike; what is itself joined along that dimension gives its parts."""
    pieces: list[tuple[int, Part]] = []
    for size, value in zip(sizes, values, strict=True):
        if isinstance(value, Joined) and value.dim == dim:
            pieces.extend(zip(value.sizes, value.parts, strict=True))
        else:
            pieces.append((size, whole(value)))
    parts = tuple(part for _, part in pieces)
    if len(set(parts)) < 2:
        return parts[0] if parts else None
    return Joined(dim, tuple(size for size, _ in pieces), parts)


def whole(value: Value) -> Part:
    """A value in which no parts are told apart any more."""
    if not isinstance(value, Joined):
        return value
    if any(isinstance(part, Signal) for part in value.parts):
        return Signal()
    return together(value.parts)


def together(values: Sequence[Value]) -> Weight:
    """Something computed from all of these, in which no single parameter can be seen."""
    parts = [part for value in values for part in parts_of(value)]
    paths = frozenset[Path]().union(*(part.paths for part in parts if isinstance(part, Weight)))
    return Weight(paths, inputs=inputs_of(parts))


def parts_of(value: Value) -> tuple[Part, ...]:
    return value.parts if isinstance(value, Joined) else (value,)


def inputs_of(values: Sequence[Value]) -> frozenset[Any]:
    parts = [part for value in values for part in parts_of(value)]
    return frozenset().union(*(part.inputs for part in parts if isinstance(part, (Input, Weight))))


def one_of(*values: Value) -> Value:
    """The value of an array that may be any of these."""
    different = {value for value in values if value is not None}
    if len(different) <= 1:
        return different.pop() if different else None
    parts = {whole(value) for value in different}
    if any(isinstance(part, Signal) for part in parts):
        return Signal(None, all(isinstance(part, Signal) and part.statistic for part in parts))
    if any(isinstance(part, Weight) for part in parts):
        return together(values)
    return Input(inputs_of(values))


def one_slice(value: Value) -> Value:
    """One slice of an array along its first dimension, as a loop sees it."""
    if isinstance(value, Joined):
        sliced = dataclasses.replace(value, dim=value.dim - 1)
        return sliced.each(one_slice) if value.dim else whole(value)
    return slice_along(value, 0) if isinstance(value, Weight) and value.kernel is not None else value


def all_slices(value: Value) -> Value:
    """An array with a new first dimension, along which a loop has put its results."""
    if isinstance(value, Joined):
        return dataclasses.replace(value, dim=value.dim + 1).each(all_slices)
    return value.shows(((), *value.axes)) if isinstance(value, Weight) and value.kernel is not None else value


def fitting(value: Value, variable: Any) -> Value:
    """A value as a variable has it: whole, if the variable (on one of several devices) holds only some of what is joined."""
    fits = not isinstance(value, Joined) or variable.aval.shape[value.dim : value.dim + 1] == (sum(value.sizes),)
    return value if fits else whole(value)
