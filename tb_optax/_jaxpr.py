"""Interprets a jaxpr to learn what a network does with its parameters.

The interpretation runs on abstract values that say where an array comes from. An `Input` is computed from the network's
inputs alone, its running statistics among them; a `Weight` from parameters, and it remembers which axes of which parameter
it shows; a `Signal` has been through a layer and remembers whose output it still is, up to biases and normalization. A
constant is None. A matrix product or convolution of a weight with anything but a weight is a layer; a parameter added to
or multiplied with a layer's output follows that layer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

from jax.extend import core

from tb_optax._axes import PRODUCTS, VIEWS, Axes, Weight, kernel_axes, slice_along, view
from tb_optax._compat import called_jaxpr, cond_branches, parameter_of, scan_parts, while_parts
from tb_optax._layers import Path

# What biases and normalizations are made of. A sum over devices is a layer's output still, in parts until then.
_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "add_any"})
_WITHIN_NORMALIZATION = frozenset({"neg", "square", "integer_pow", "abs", "psum", "psum_invariant", "reduce_scatter"})
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min"})


@dataclasses.dataclass(frozen=True)
class Input:
    """Computed from inputs of the network alone."""

    inputs: frozenset[Any]


@dataclasses.dataclass(frozen=True)
class Signal:
    """Computed by at least one layer or embedding."""

    source: Path | None = None
    """The kernel of the layer whose output it is; None behind a nonlinearity or where several meet."""
    statistic: bool = False
    """A reduction of that output, such as its mean."""
    weights: frozenset[Weight] = frozenset()
    """What a statistic has been multiplied with: it normalizes only if the statistic meets the output again."""


Value: TypeAlias = Input | Weight | Signal | None


class JaxprReader:
    """Runs a jaxpr on `Value`s and takes down which parameters are kernels, when they are used and what follows them.

    Attributes:
      axes: reduction, output and layer axes of each kernel.
      uses: kernels and embeddings in the order of their use; None for a product whose kernel is unclear.
      embeddings: parameters of which rows are looked up.
      unclear: why a parameter in a matrix product is no kernel.
    """

    def __init__(self, jaxpr: Any, weights: Sequence[Weight], shapes: dict[Path, tuple[int, ...]]):
        self.axes: dict[Path, tuple[Axes, Axes, Axes]] = {}
        self.uses: list[Path | None] = []
        self.embeddings: set[Path] = set()
        self.unclear: dict[Path, str] = {}
        self._shapes = shapes
        self._followed: dict[Path, dict[Path, frozenset[int]]] = {}
        """For each parameter, the kernels it follows, and the axes of which it is a slice there."""
        self._batched: dict[Path, frozenset[int]] = {}
        """The layer axes of each kernel that are batch dimensions of its product, not sliced before."""
        self._data: set[Any] = set()
        """The inputs that layers read, unlike running statistics and random keys."""
        inputs = [Input(frozenset({var})) for var in jaxpr.invars[len(weights) :]]
        # Whether an input is data shows where a layer reads it, which may be after it has met a signal.
        for self._recording in (False, True):
            self._run(jaxpr, [*weights, *inputs])

    def followers(self, kernel: Path) -> tuple[Path, ...]:
        """The parameters that follow this kernel and no other, and are stacked along the same axes."""
        _, output_axes, layer_axes = self.axes[kernel]
        batched = self._batched[kernel]
        sliced = frozenset(layer_axes) - batched

        def follows(path: Path) -> bool:
            shape, kernel_shape = self._shapes[path], self._shapes[kernel]
            own = [size for axis, size in enumerate(shape) if axis not in layer_axes]
            stacked = all(axis < len(shape) and shape[axis] == kernel_shape[axis] and own for axis in batched)
            return path not in self.axes and stacked and sum(size > 1 for size in own) <= max(1, len(output_axes))

        return tuple(path for path, sources in self._followed.items() if sources == {kernel: sliced} and follows(path))

    def _run(self, jaxpr: Any, values: Sequence[Value]) -> list[Value]:
        """The values of a jaxpr's outputs, given those of its inputs."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, values, strict=True))
        known |= {var: Input(frozenset({var})) for var in jaxpr.constvars if var.aval.shape}
        read = lambda var: None if isinstance(var, core.Literal) else known.get(var)
        for equation in jaxpr.eqns:
            outputs = self._equation(equation, [read(var) for var in equation.invars])
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Value]) -> list[Value]:
        name = equation.primitive.name
        outputs = len(equation.outvars)
        if all(value is None for value in values):
            return [None] * outputs
        if name == "scan":
            return self._scan(equation, values)
        if name == "while":
            return self._while(equation, values)
        if name == "cond":
            branches = [self._run(branch, values[1:]) for branch in cond_branches(equation)]
            return [_join(*alternatives) for alternatives in zip(*branches, strict=True)]
        called = called_jaxpr(equation)
        if called is not None:
            return self._run(called, values)
        if name in PRODUCTS:
            return [self._product(equation, values)]
        if name in ("gather", "dynamic_slice") and isinstance(values[0], Weight) and values[0].kernel is not None:
            return [self._pick(equation, values[0], _join(*values[1:]))]
        if any(isinstance(value, Signal) for value in values):
            return [self._of_signals(name, values)] * outputs
        if any(isinstance(value, Weight) for value in values):
            return [self._of_weights(equation, values)] * outputs
        return [_join(*values)] * outputs

    # Loops: a carry is what it is at the start joined with what an iteration makes of it.

    def _scan(self, equation: Any, values: list[Value]) -> list[Value]:
        body, consts, carry = scan_parts(equation)
        slices = [
            slice_along(value, 0) if isinstance(value, Weight) and value.kernel is not None else value
            for value in values[consts + carry :]
        ]
        return self._loop(body, values[:consts], values[consts : consts + carry], slices)

    def _while(self, equation: Any, values: list[Value]) -> list[Value]:
        body, start, end = while_parts(equation)
        return self._loop(body, values[start:end], values[end:], [])

    def _loop(self, body: Any, consts: list[Value], carry: list[Value], slices: list[Value]) -> list[Value]:
        recording, self._recording = self._recording, False
        while True:
            outputs = self._run(body, [*consts, *carry, *slices])
            joined = [_join(before, after) for before, after in zip(carry, outputs[: len(carry)], strict=True)]
            if joined == carry:
                break
            carry = joined
        self._recording = recording
        outputs = self._run(body, [*consts, *carry, *slices])
        return [*carry, *outputs[len(carry) :]]

    # Layers

    def _product(self, equation: Any, values: list[Value]) -> Value:
        weights = [value for value in values[:2] if isinstance(value, Weight)]
        if not weights:
            return (
                self._of_signals("product", values) if any(isinstance(value, Signal) for value in values) else _join(*values)
            )
        # Between two weights, the one in which there is data is what the network computes with; else the one of one axis.
        weight = min(weights, key=lambda value: (bool(value.inputs), self._ndim(value) < 2))
        other = values[1] if weight is values[0] else values[0]
        if isinstance(other, Weight) and not other.inputs:
            self._note_unclear(_together(weights), "it is only multiplied with other parameters")
            return _together(weights)
        if isinstance(other, (Input, Weight)):
            self._data |= other.inputs
        if self._ndim(weight) < 2:
            return self._unclear_layer(weight, "only something computed from it is in a matrix product")
        assert weight.kernel is not None
        axes = kernel_axes(equation, 0 if weight is values[0] else 1, weight, self._shapes[weight.kernel])
        if axes is None:
            return self._unclear_layer(weight, "one of its axes is both summed over and kept")
        if self._recording:
            self._batched.setdefault(weight.kernel, frozenset(axes[2]) - weight.layer_axes)
            self.axes.setdefault(weight.kernel, axes)
            self.uses.append(weight.kernel)
            self._follow(weight, weight.kernel)
        return Signal(weight.kernel)

    def _ndim(self, weight: Weight) -> int:
        """Axes of the parameter that it shows; 0 if it shows none."""
        return 0 if weight.kernel is None else len(self._shapes[weight.kernel])

    def _unclear_layer(self, weight: Weight, reason: str) -> Signal:
        self._note_unclear(weight, reason)
        if self._recording:
            self.uses.append(None)
        return Signal()

    def _note_unclear(self, weight: Weight, reason: str) -> None:
        self.unclear |= dict.fromkeys(weight.paths, reason)

    def _of_weights(self, equation: Any, values: list[Value]) -> Value:
        """A value computed without any layer: from weights, inputs and constants."""
        first = values[0]
        if isinstance(first, Weight) and first.kernel is not None and equation.primitive.name in VIEWS:
            return view(equation, first, self._shapes[first.kernel])
        together = _together(values)
        shape = equation.outvars[0].aval.shape
        same = [
            value
            for value, var in zip(values, equation.invars, strict=True)
            if isinstance(value, Weight) and value.kernel is not None and var.aval.shape == shape
        ]
        if len(equation.outvars) > 1 or not same:
            return together
        # Of the weights that meet elementwise, the one of most axes is the kernel: a scale has been broadcast to it.
        kernel = max(same, key=lambda value: sum(map(len, value.axes)))
        return dataclasses.replace(kernel, paths=together.paths, inputs=together.inputs)

    def _pick(self, equation: Any, weight: Weight, index: Value) -> Value:
        """Slices of a stack, or lookups of rows: an embedding."""
        assert weight.kernel is not None
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        picked = {dim for dim, size in enumerate(parameter_of(equation, "slice_sizes")) if size == 1 < before[dim]}
        places = {dim: dim for dim in range(len(before))}
        if equation.primitive.name == "gather":
            dimensions = parameter_of(equation, "dimension_numbers")
            gone = {*dimensions.collapsed_slice_dims, *dimensions.operand_batching_dims}
            picked |= gone
            places = dict(zip(dimensions.offset_dims, (dim for dim in places if dim not in gone), strict=True))
        rows = sum(size > 1 for dim, size in enumerate(before) if dim not in picked) < 2
        several = len(places) < len(after)
        if picked and rows and len(before) >= 2 and (several or index is not None):
            if isinstance(index, (Input, Weight)):
                self._data |= index.inputs
            if self._recording:
                self.embeddings.add(weight.kernel)
                self.uses.append(weight.kernel)
            return Signal()
        axes = tuple(weight.axes[places[dim]] if places.get(dim) not in {None, *picked} else () for dim in range(len(after)))
        return weight.shows(axes, weight.along(picked))

    # What happens to a layer's output

    def _of_signals(self, name: str, values: list[Value]) -> Value:
        signals = [value for value in values if isinstance(value, Signal)]
        others = [value for value in values if isinstance(value, (Input, Weight))]
        sources = {signal.source for signal in signals}
        source = sources.pop() if len(sources) == 1 else None
        statistic = all(signal.statistic for signal in signals)
        if any(other.inputs & self._data for other in others):
            return Signal()  # Two branches meet here.
        if name in _REDUCTIONS:
            return Signal(source, statistic=True)
        weights = frozenset().union(*(signal.weights for signal in signals))
        if name in _ARITHMETIC:
            weights |= {other for other in others if isinstance(other, Weight)}
            if source is not None and not statistic:
                for weight in weights:
                    self._follow(weight, source)
        keeps = name in _ARITHMETIC or name in VIEWS or name in _WITHIN_NORMALIZATION
        # Of a statistic any function is one too: its reciprocal root, its maximum with epsilon.
        return Signal(source if keeps or statistic else None, statistic, weights if statistic else frozenset())

    def _follow(self, weight: Weight, kernel: Path) -> None:
        if self._recording:
            for path in sorted(weight.paths - {kernel}):
                self._followed.setdefault(path, {})[kernel] = weight.layer_axes


def _together(values: Sequence[Value]) -> Weight:
    """Something computed from all of these, in which no single parameter can be seen."""
    paths = frozenset[Path]().union(*(value.paths for value in values if isinstance(value, Weight)))
    return Weight(paths, inputs=_inputs(values))


def _inputs(values: Sequence[Value]) -> frozenset[Any]:
    return frozenset().union(*(value.inputs for value in values if isinstance(value, (Input, Weight))))


def _join(*values: Value) -> Value:
    """The value of an array that may be any of these."""
    different = {value for value in values if value is not None}
    if len(different) <= 1:
        return different.pop() if different else None
    if any(isinstance(value, Signal) for value in different):
        return Signal(None, all(isinstance(value, Signal) and value.statistic for value in different))
    if any(isinstance(value, Weight) for value in different):
        return _together(values)
    return Input(_inputs(values))
