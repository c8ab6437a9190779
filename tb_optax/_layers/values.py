"""Abstract values, which record where an array of the forward pass comes from.

An `Input` is computed from the network's inputs alone, including its running statistics. A `Weight` (in `axes.py`) is
computed from parameters and records which axes of which parameter it shows. A `Signal` is computed by a layer and records
the layer whose output it still is, up to biases and normalization. `Joined` is several of these in one array. A constant is
None.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tb_optax._layers.axes import Weight, slice_along
from tb_optax._layers.layer import Path


@dataclasses.dataclass(frozen=True)
class Input:
    """An array computed from inputs of the network alone."""

    inputs: frozenset[Any]


@dataclasses.dataclass(frozen=True)
class Signal:
    """An array computed by at least one layer or embedding."""

    source: Path | None = None
    """The kernel of the layer whose output the array is; None after a nonlinearity or where several outputs meet."""
    statistic: bool = False
    """Whether the array is a reduction of that output, such as its mean."""
    weights: frozenset[Weight] = frozenset()
    """Weights that a statistic was multiplied with. They normalize only if the statistic meets the output again."""


Part: TypeAlias = Input | Weight | Signal | None


@dataclasses.dataclass(frozen=True)
class Joined:
    """Several arrays side by side: kernels before their joint product, or their outputs after it."""

    dim: int
    """The dimension along which they are joined."""
    sizes: tuple[int, ...]
    """The size of each part along that dimension."""
    parts: tuple[Part, ...]
    """The value of each part, as if the part filled the whole array."""

    def each(self, function: Callable[[Part], "Value"]) -> "Value":
        """Applies `function` to each part and joins the results at the same places."""
        return join(self.dim, self.sizes, [function(part) for part in self.parts])


Value: TypeAlias = Part | Joined


def join(dim: int, sizes: Sequence[int], values: Sequence[Value]) -> Value:
    """Joins values side by side: one value if all are equal. A value already joined along `dim` contributes its parts."""
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
    """The value of the array as a whole, without distinct parts."""
    if not isinstance(value, Joined):
        return value
    if any(isinstance(part, Signal) for part in value.parts):
        return Signal()
    return together(value.parts)


def together(values: Sequence[Value]) -> Weight:
    """A weight computed from all of these values, in which no single parameter can be seen."""
    parts = [part for value in values for part in parts_of(value)]
    paths = frozenset[Path]().union(*(part.paths for part in parts if isinstance(part, Weight)))
    return Weight(paths, inputs=inputs_of(parts))


def parts_of(value: Value) -> tuple[Part, ...]:
    return value.parts if isinstance(value, Joined) else (value,)


def inputs_of(values: Sequence[Value]) -> frozenset[Any]:
    parts = [part for value in values for part in parts_of(value)]
    return frozenset().union(*(part.inputs for part in parts if isinstance(part, (Input, Weight))))


def one_of(*values: Value) -> Value:
    """The value of an array that may have any of these values."""
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
    """An array with a new first dimension, along which a loop stacks its results."""
    if isinstance(value, Joined):
        return dataclasses.replace(value, dim=value.dim + 1).each(all_slices)
    return value.shows(((), *value.axes)) if isinstance(value, Weight) and value.kernel is not None else value


def fitting(value: Value, variable: Any) -> Value:
    """The value of a variable: whole, if the variable (on one of several devices) holds only some of the joined array."""
    fits = not isinstance(value, Joined) or variable.aval.shape[value.dim : value.dim + 1] == (sum(value.sizes),)
    return value if fits else whole(value)
