"""Interprets a jaxpr to learn what a network does with its parameters.

The interpretation runs on the abstract values of `values.py`, which record where an array comes from. A matrix product
or convolution of a weight with anything except a weight is a layer. A parameter added to or multiplied with a layer's
output follows that layer. If a matrix parameter multiplies a vector parameter, the matrix is the layer.

Example:
  >>> import jax, jax.numpy as jnp
  >>> from tb_optax._layers.axes import parameter
  >>> def apply(params, x):                          # x is an Input, each parameter a Weight
  ...   x = jax.lax.dot(x, params["w"])              # Signal("w"): so w is a layer
  ...   x = x + params["b"]                          # Signal("w") still: so b follows w
  ...   return jnp.tanh(x) * params["scale"]         # Signal(None): so scale follows nothing
  >>> shapes = {"b": (64,), "scale": (64,), "w": (32, 64)}
  >>> params = {path: jnp.ones(shape) for path, shape in shapes.items()}
  >>> weights = [parameter(path, shape) for path, shape in shapes.items()]
  >>> found = JaxprReader(jax.make_jaxpr(apply)(params, jnp.ones((1, 32))).jaxpr, weights, shapes).found
  >>> found.axes
  {'w': KernelAxes(reduction=(0,), output=(1,), layer=())}
  >>> found.followers("w")
  ('b',)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from tb_optax._compat import called_jaxpr, cond_branches, parameter_of, scan_parts, while_parts
from tb_optax._layers.axes import PRODUCTS, VIEWS, Weight, is_matrix, output_dim, product_axes, view
from tb_optax._layers.findings import Findings
from tb_optax._layers.joined import joined_weights, part_by_part, views
from tb_optax._layers.layer import Path
from tb_optax._layers.values import (
    Input,
    Joined,
    Part,
    Signal,
    Value,
    all_slices,
    fitting,
    inputs_of,
    join,
    one_of,
    one_slice,
    parts_of,
    together,
    whole,
)

# Operations of biases and normalizations, and sums over devices: their result still counts as the layer's output.
_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "add_any"})
_WITHIN_NORMALIZATION = frozenset({"neg", "square", "integer_pow", "abs", "psum", "psum_invariant", "reduce_scatter"})
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min"})
_JOINS = frozenset({"concatenate", "stack"})
# Code that is not in the jaxpr, such as Pallas kernels.
_UNREADABLE = frozenset({"pallas_call", "ffi_call", "pure_callback", "io_callback"})


class JaxprReader:
    """Runs a jaxpr on `Value`s and records in `found` what it does with its parameters."""

    def __init__(self, jaxpr: Any, weights: Sequence[Weight], shapes: dict[Path, tuple[int, ...]]):
        self.found = Findings(shapes)
        self._shapes = shapes
        values = [*weights, *(Input(frozenset({var})) for var in jaxpr.invars[len(weights) :])]
        # The first run gathers what the second one, which records, must know from the start: which inputs are data, because
        # a layer reads them anywhere; and which matrices are multiplied with one learned vector and nothing else.
        self._run(jaxpr, values)
        self.found.start_recording()
        self._run(jaxpr, values)

    def _run(self, jaxpr: Any, values: Sequence[Value]) -> list[Value]:
        """The values of a jaxpr's outputs, given the values of its inputs."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, map(fitting, values, jaxpr.invars), strict=True))
        known |= {var: Input(frozenset({var})) for var in jaxpr.constvars if var.aval.shape}
        read = lambda var: None if isinstance(var, core.Literal) else known.get(var)
        for equation in jaxpr.eqns:
            outputs = self._equation(equation, [read(var) for var in equation.invars])
            known.update(zip(equation.outvars, map(fitting, outputs, equation.outvars), strict=True))
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
            return [one_of(*alternatives) for alternatives in zip(*branches, strict=True)]
        if name in _UNREADABLE and (matrices := self._matrices_beside_data(values)):
            return [self._unreadable(name, matrices, values)] * outputs
        called = called_jaxpr(equation)
        if called is not None:
            return self._run(called, values)
        if name in PRODUCTS:
            return [self._product(equation, values[0], values[1])]
        if name == "optimization_barrier":
            return values
        if name in _JOINS and (joined := joined_weights(equation, values)) is not None:
            return [joined]
        if any(isinstance(value, Joined) for value in values):
            return self._of_joined(equation, values)
        if name in ("gather", "dynamic_slice") and isinstance(values[0], Weight) and values[0].kernel is not None:
            return [self._pick(equation, values[0], one_of(*values[1:]))]
        if any(isinstance(value, Signal) for value in values):
            return [self._of_signals(name, values)] * outputs
        if any(isinstance(value, Weight) for value in values):
            return [self._of_weights(equation, values)] * outputs
        return [one_of(*values)] * outputs

    # Loops: a carry may have its initial value, or the value after any iteration.

    def _scan(self, equation: Any, values: list[Value]) -> list[Value]:
        body, consts, carry = scan_parts(equation)
        slices = [one_slice(value) for value in values[consts + carry :]]
        return self._loop(body, values[:consts], values[consts : consts + carry], slices)

    def _while(self, equation: Any, values: list[Value]) -> list[Value]:
        body, start, end = while_parts(equation)
        return self._loop(body, values[start:end], values[end:], [])

    def _loop(self, body: Any, consts: list[Value], carry: list[Value], slices: list[Value]) -> list[Value]:
        recording, self.found.recording = self.found.recording, False
        while True:
            outputs = self._run(body, [*consts, *carry, *slices])
            joined = [one_of(before, after) for before, after in zip(carry, outputs[: len(carry)], strict=True)]
            if joined == carry:
                break
            carry = joined
        self.found.recording = recording
        outputs = self._run(body, [*consts, *carry, *slices])
        return [*carry, *map(all_slices, outputs[len(carry) :])]

    # Layers

    def _product(self, equation: Any, left: Value, right: Value) -> Value:
        operands = left, right
        sides = [side for side in (0, 1) if isinstance(whole(operands[side]), Weight)]
        if not sides:
            return self._without_weights(whole(left), whole(right))
        # Of two weights, the layer's input is the one computed from data, or else the one with a single axis.
        side = min(sides, key=lambda side: (bool(inputs_of([operands[side]])), self._ndim(operands[side]) < 2))
        weight, other = operands[side], whole(operands[1 - side])
        if isinstance(weight, Joined):
            return self._product_of_joined(equation, side, weight, other)
        assert isinstance(weight, Weight)
        if isinstance(other, Weight) and not other.inputs:
            return self._product_of_parameters(equation, (weight, other) if side == 0 else (other, weight))
        if isinstance(other, (Input, Weight)):
            self.found.data |= other.inputs
        if weight.kernel is None or self._ndim(weight) < 2:
            return self._unclear_layer(weight, "only something computed from it is in a matrix product")
        axes = product_axes(equation, side, weight, self._shapes[weight.kernel])
        self.found.use_otherwise({weight.kernel})
        if axes is None:
            return self._unclear_layer(weight, "one of its axes is both summed over and kept")
        if is_matrix(axes, self._shapes[weight.kernel]):
            self.found.use_otherwise(weight.paths)
        self.found.use(weight.kernel)
        if isinstance(other, Input):
            self.found.read_data(weight.kernel, other.inputs)
        self.found.layer(weight, weight.kernel, axes)
        return Signal(weight.kernel)

    def _without_weights(self, *values: Part) -> Value:
        return self._of_signals("product", values) if any(isinstance(value, Signal) for value in values) else one_of(*values)

    def _product_of_joined(self, equation: Any, side: int, joined: Joined, other: Part) -> Value:
        """Multiplies each kernel as if it were alone. In the order of layers, all kernels are one use."""
        if self._ndim(joined) > 1 and (not isinstance(other, Weight) or other.inputs):
            self.found.use_otherwise(together([joined]).paths)
        first = len(self.found.uses)

        def product(part: Part) -> Value:
            operands = (part, other) if side == 0 else (other, part)
            return self._product(equation, *operands) if isinstance(part, Weight) else self._without_weights(*operands)

        outputs = [product(part) for part in joined.parts]
        self.found.use_together(first)
        dim = output_dim(equation, side, joined.dim)
        return one_of(*outputs) if dim is None else join(dim, joined.sizes, outputs)

    def _product_of_parameters(self, equation: Any, weights: tuple[Weight, Weight]) -> Value:
        """A matrix and a learned vector are a layer and its input, if the matrix has no other use."""
        shown = [(side, weight, weight.kernel) for side, weight in enumerate(weights) if weight.kernel is not None]
        axes = [product_axes(equation, side, weight, self._shapes[kernel]) for side, weight, kernel in shown]
        matrices = [
            (kernel, weight, weights[1 - side], own)
            for (side, weight, kernel), own in zip(shown, axes, strict=True)
            if own is not None and is_matrix(own, self._shapes[kernel])
        ]
        both = together(weights)
        if len(shown) < 2 or None in axes or len(matrices) != 1:
            self.found.use_otherwise({kernel for _, _, kernel in shown})
        else:
            ((kernel, matrix, vector, own),) = matrices
            self.found.apply_to_vector(kernel)
            if kernel in self.found.for_vectors:
                self.found.note_unclear(vector, "a learned vector, to which a layer is applied")
                self.found.layer(matrix, kernel, own)
                return Signal(kernel)
        self.found.note_unclear(
            both, "it is only multiplied with other parameters; if it is a layer, describe it in a Layer"
        )
        return both

    def _ndim(self, value: Value) -> int:
        """The number of axes of the parameter that a value shows; 0 if it shows none."""
        kernels = [part.kernel for part in parts_of(value) if isinstance(part, Weight)]
        return max((len(self._shapes[kernel]) for kernel in kernels if kernel is not None), default=0)

    def _unclear_layer(self, weight: Weight, reason: str) -> Signal:
        self.found.note_unclear(weight, reason)
        self.found.use()
        return Signal()

    def _matrices_beside_data(self, values: Sequence[Value]) -> list[Weight]:
        """The weights of several axes among these values, if any other value is computed from data."""
        parts = [part for value in values for part in parts_of(value)]
        has_data = bool(inputs_of(parts)) or any(isinstance(part, Signal) for part in parts)
        return [part for part in parts if has_data and isinstance(part, Weight) and len(self.found.running(part)) > 1]

    def _unreadable(self, name: str, matrices: Sequence[Weight], values: Sequence[Value]) -> Signal:
        self.found.data |= inputs_of(values)
        self.found.use_otherwise(together(matrices).paths)
        reason = f"it is an operand of {name}, which cannot be read; if it is a layer, describe it in a Layer"
        return self._unclear_layer(together(matrices), reason)

    def _of_weights(self, equation: Any, values: list[Value]) -> Value:
        """A value computed from weights, inputs and constants, without any layer."""
        first = values[0]
        if isinstance(first, Weight) and first.kernel is not None and equation.primitive.name in VIEWS:
            return view(equation, first, self._shapes[first.kernel])
        all_of_them = together(values)
        shape = equation.outvars[0].aval.shape
        same = [
            value
            for value, var in zip(values, equation.invars, strict=True)
            if isinstance(value, Weight) and value.kernel is not None and var.aval.shape == shape
        ]
        if len(equation.outvars) > 1 or not same:
            return all_of_them
        # If weights meet elementwise, the weight with the most axes is the kernel; the others were broadcast to its shape.
        kernel = max(same, key=lambda value: sum(map(len, value.axes)))
        return dataclasses.replace(kernel, paths=all_of_them.paths, inputs=all_of_them.inputs)

    def _pick(self, equation: Any, weight: Weight, index: Value) -> Value:
        """Takes slices of a stack, or looks up rows of an embedding."""
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
                self.found.data |= index.inputs
            self.found.look_up(weight.kernel)
            return Signal()
        axes = tuple(weight.axes[places[dim]] if places.get(dim) not in {None, *picked} else () for dim in range(len(after)))
        return weight.shows(axes, weight.along(picked))

    # Joined arrays

    def _of_joined(self, equation: Any, values: list[Value]) -> list[Value]:
        """Applies the equation to each part if its parts stay distinct, otherwise to the whole array."""
        name = equation.primitive.name
        moved = views(equation, values[0]) if name in VIEWS and isinstance(values[0], Joined) else None
        if moved is not None:
            of_part = lambda part: self._equation(equation, [part, *values[1:]])
            return [joined.each(lambda part, at=at: of_part(part)[at]) for at, joined in enumerate(moved)]
        met = part_by_part(values) if name in _ARITHMETIC | _WITHIN_NORMALIZATION and len(equation.outvars) == 1 else None
        # A kernel that spans all parts belongs to none of them.
        across = [value for value in values if isinstance(value, Weight) and len(self.found.running(value)) > 1]
        if met is None or (across and isinstance(whole(met[0]), Weight)):
            return self._equation(equation, [whole(value) for value in values])
        joined, by_part = met
        return [join(joined.dim, joined.sizes, [self._equation(equation, part)[0] for part in by_part])]

    # Operations on a layer's output

    def _of_signals(self, name: str, values: Sequence[Value]) -> Value:
        signals = [value for value in values if isinstance(value, Signal)]
        others = [value for value in values if isinstance(value, (Input, Weight))]
        sources = {signal.source for signal in signals}
        source = sources.pop() if len(sources) == 1 else None
        statistic = all(signal.statistic for signal in signals)
        for other in others:
            if isinstance(other, Weight):
                self.found.meet(other, source, name in _ARITHMETIC)
        if any(other.inputs & self.found.data for other in others):
            return Signal()  # Two branches meet here.
        if name in _REDUCTIONS:
            return Signal(source, statistic=True)
        weights = frozenset().union(*(signal.weights for signal in signals))
        if name in _ARITHMETIC:
            weights |= {other for other in others if isinstance(other, Weight)}
            if source is not None and not statistic:
                for weight in weights:
                    self.found.follow(weight, source)
        keeps = name in _ARITHMETIC or name in VIEWS or name in _WITHIN_NORMALIZATION
        # Any function of a statistic is a statistic too: its reciprocal root, its maximum with epsilon.
        return Signal(source if keeps or statistic else None, statistic, weights if statistic else frozenset())
