"""Follows kernels that are joined into one array, through their product and the split of its result.

An LSTM cell may join its four kernels, multiply once, and split the result. Each kernel is still a layer, and its output is
a part of the result. The parts stay separate as long as it is known where each begins and ends. An operation that mixes the
parts makes them one array, in which no kernel can be seen.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from tb_optax._compat import parameter_of
from tb_optax._layers.axes import Weight
from tb_optax._layers.values import Joined, Part, Signal, Value, inputs_of, join, parts_of, whole


def joined_weights(equation: Any, values: Sequence[Value]) -> Value:
    """The array that `concatenate` or `stack` makes of weights; None unless all operands are weights or constants."""
    parts = [part for value in values for part in parts_of(value)]
    if any(isinstance(part, Signal) for part in parts) or inputs_of(values):
        return None
    if not any(isinstance(part, Weight) and part.kernel is not None for part in parts):
        return None
    if equation.primitive.name == "concatenate":
        dim = parameter_of(equation, "dimension")
        return join(dim, [var.aval.shape[dim] for var in equation.invars], values)
    dim = parameter_of(equation, "axis")
    return join(dim, [1] * len(values), [_with_dimension(whole(value), dim) for value in values])


def _with_dimension(value: Part, dim: int) -> Part:
    if not isinstance(value, Weight) or value.kernel is None:
        return value
    return value.shows((*value.axes[:dim], (), *value.axes[dim:]))


def part_by_part(values: Sequence[Value]) -> tuple[Joined, list[list[Value]]] | None:
    """For each part, the values that meet elementwise in that part; None if the values are not joined at the same places."""
    joins = [value for value in values if isinstance(value, Joined)]
    first = joins[0]
    if any((other.dim, other.sizes) != (first.dim, first.sizes) for other in joins):
        return None
    return first, [
        [value.parts[place] if isinstance(value, Joined) else value for value in values] for place in range(len(first.parts))
    ]


def views(equation: Any, joined: Joined) -> list[Joined] | None:
    """The places of the parts in each output of a primitive that only moves numbers; None if the parts are mixed.

    The parts themselves are still those of the operand.
    """
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    name, dim = equation.primitive.name, joined.dim
    match name:
        case "transpose":
            return [dataclasses.replace(joined, dim=tuple(parameter_of(equation, "permutation")).index(dim))]
        case "broadcast_in_dim":
            return [dataclasses.replace(joined, dim=int(parameter_of(equation, "broadcast_dimensions")[dim]))]
        case "reshape" | "squeeze":
            return _reshaped(equation, joined, before, after)
        case "slice":
            strides = parameter_of(equation, "strides")
            if strides is not None and strides[dim] != 1:
                return None
            return [
                _between(joined, parameter_of(equation, "start_indices")[dim], parameter_of(equation, "limit_indices")[dim])
            ]
        case "split" if parameter_of(equation, "axis") == dim:
            ends = list(itertools.accumulate(map(int, parameter_of(equation, "sizes"))))
            return [_between(joined, start, end) for start, end in zip([0, *ends], ends, strict=False)]
        case "split":
            return [joined] * len(equation.outvars)
        case "unstack" if parameter_of(equation, "axis") == dim:
            return [_between(joined, place, place + 1) for place in range(before[dim])]
        case "unstack":
            moved = dataclasses.replace(joined, dim=dim - (parameter_of(equation, "axis") < dim))
            return [moved] * len(equation.outvars)
        case _ if name != "rev" and before == after and len(equation.outvars) == 1:
            return [joined]
    return None


def _between(joined: Joined, start: int, end: int) -> Joined:
    """The parts from index `start` to `end` of the joined dimension."""
    ends = list(itertools.accumulate(joined.sizes))
    pieces = [
        (min(end, last) - max(start, last - size), part)
        for last, size, part in zip(ends, joined.sizes, joined.parts, strict=True)
        if max(start, last - size) < min(end, last)
    ]
    sizes, parts = zip(*pieces, strict=True) if pieces else ((), ())
    return Joined(joined.dim, sizes, parts)


def _reshaped(equation: Any, joined: Joined, before: Sequence[int], after: Sequence[int]) -> list[Joined] | None:
    """Finds the joined dimension after a reshape: the one with the same product of sizes before it.

    None if there is no such dimension, or if a part does not end at one of its indices.
    """
    dim = joined.dim
    if equation.primitive.name == "reshape" and (order := parameter_of(equation, "dimensions", None)) is not None:
        before, dim = [before[old] for old in order], tuple(order).index(dim)
    for new, size in enumerate(after if 0 not in before else ()):
        if size > 1 and math.prod(after[:new]) == math.prod(before[:dim]):
            numbers = [part * math.prod(before[dim + 1 :]) for part in joined.sizes]
            within = math.prod(after[new + 1 :])
            if all(count % within == 0 for count in numbers):
                return [Joined(new, tuple(count // within for count in numbers), joined.parts)]
    return None
