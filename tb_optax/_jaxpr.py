"""Interprets a jaxpr to learn what a network does with its parameters.

The interpretation runs on abstract values that say where an array comes from. A `Weight` is computed from parameters
alone and remembers which axes of which parameter it shows; a `Signal` has been through the network and remembers the
layer whose output it still is, up to biases and normalization. Everything else, the inputs included, is None. A matrix
product or convolution of a weight with anything but a weight is a layer; a parameter added to or multiplied with a
layer's output follows that layer.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from jax.extend import core

from tb_optax._layers import Path

Axes: TypeAlias = tuple[int, ...]

# The same numbers in another shape, dtype or place.
_VIEWS = frozenset(
    {
        *("reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "reduce_precision"),
        *("slice", "dynamic_slice", "rev", "copy", "copy_p", "optimization_barrier", "stop_gradient", "name"),
        *("sharding_constraint", "reshard", "mesh_cast", "all_gather", "pvary", "pcast"),
    }
)
# What biases and normalizations are made of.
_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "add_any"})
_WITHIN_NORMALIZATION = frozenset({"neg", "square", "integer_pow", "abs"})
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "psum", "psum_invariant", "pmean"})


@dataclasses.dataclass(frozen=True)
class Weight:
    """Computed from parameters alone."""

    paths: frozenset[Path]
    kernel: Path | None = None
    """The parameter whose axes it shows, if it still shows one."""
    axes: tuple[Axes, ...] = ()
    """For each of its axes, the axes of that parameter along which it runs."""
    layer_axes: frozenset[int] = frozenset()
    """Axes of that parameter of which it shows one slice."""


@dataclasses.dataclass(frozen=True)
class Signal:
    """Computed by at least one layer or embedding."""

    source: Path | None = None
    """The kernel of the layer whose output it is; None behind a nonlinearity or where several meet."""
    statistic: bool = False
    """A reduction of that output, such as its mean."""


Value: TypeAlias = Weight | Signal | None


def parameter(path: Path, shape: Sequence[int]) -> Weight:
    return Weight(frozenset({path}), path, tuple((axis,) for axis in range(len(shape))))


class JaxprReader:
    """Runs a jaxpr on `Value`s and takes down which parameters are kernels, when they are used and what follows them.

    Attributes:
      axes: reduction, output and layer axes of each kernel.
      uses: kernels and embeddings in the order of their use.
      unclear: why a parameter in a matrix product is no kernel.
    """

    def __init__(self, shapes: dict[Path, tuple[int, ...]]):
        self.axes: dict[Path, tuple[Axes, Axes, Axes]] = {}
        self.uses: list[Path] = []
        self.unclear: dict[Path, str] = {}
        self._shapes = shapes
        self._followed: dict[Path, dict[Path, frozenset[int]]] = {}
        """For each parameter, the kernels it follows, and its layer axes there."""
        self._recording = True

    def followers(self, kernel: Path) -> tuple[Path, ...]:
        """The parameters that follow this kernel and no other, and are stacked along the same axes."""
        layer_axes = frozenset(self.axes[kernel][2])
        return tuple(
            path for path, sources in self._followed.items() if sources == {kernel: layer_axes} and path not in self.axes
        )

    def run(self, jaxpr: Any, values: Sequence[Value]) -> list[Value]:
        """The values of a jaxpr's outputs, given those of its inputs."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, values, strict=True))
        read = lambda var: None if isinstance(var, core.Literal) else known.get(var)
        for equation in jaxpr.eqns:
            outputs = self._equation(equation, [read(var) for var in equation.invars])
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Value]) -> list[Value]:
        name = equation.primitive.name
        if all(value is None for value in values):
            return [None] * len(equation.outvars)
        if name == "scan":
            return self._scan(equation.params, values)
        if name == "while":
            return self._while(equation.params, values)
        if name == "cond":
            branches = [self.run(branch.jaxpr, values[1:]) for branch in equation.params["branches"]]
            return [_join(*alternatives) for alternatives in zip(*branches, strict=True)]
        called = _called_jaxpr(equation)
        if called is not None:
            return self.run(called, values)
        if name in ("dot_general", "conv_general_dilated"):
            return [self._product(equation, values)]
        if any(isinstance(value, Signal) for value in values):
            return [self._of_signals(name, values)] * len(equation.outvars)
        return [self._of_weights(equation, values)] * len(equation.outvars)

    # Loops: a carry is what it is at the start joined with what an iteration makes of it.

    def _scan(self, params: dict[str, Any], values: list[Value]) -> list[Value]:
        consts, carry = params["num_consts"], params["num_carry"]
        slices = [_slice_leading_axis(value) for value in values[consts + carry :]]
        return self._loop(params["jaxpr"].jaxpr, values[:consts], values[consts : consts + carry], slices)

    def _while(self, params: dict[str, Any], values: list[Value]) -> list[Value]:
        start, end = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        return self._loop(params["body_jaxpr"].jaxpr, values[start:end], values[end:], [])

    def _loop(self, body: Any, consts: list[Value], carry: list[Value], slices: list[Value]) -> list[Value]:
        recording, self._recording = self._recording, False
        while True:
            outputs = self.run(body, [*consts, *carry, *slices])
            joined = [_join(before, after) for before, after in zip(carry, outputs[: len(carry)], strict=True)]
            if joined == carry:
                break
            carry = joined
        self._recording = recording
        outputs = self.run(body, [*consts, *carry, *slices])
        return [*carry, *outputs[len(carry) :]]

    # Layers

    def _product(self, equation: Any, values: list[Value]) -> Value:
        if all(isinstance(value, Weight) for value in values):
            return Weight(_paths(values))
        side = 0 if isinstance(values[0], Weight) else 1
        weight = values[side]
        if not isinstance(weight, Weight) or (side == 0 and equation.primitive.name == "conv_general_dilated"):
            return Signal()
        kernel = weight.kernel
        if kernel is None or len(self._shapes[kernel]) < 2:
            self._note_unclear(weight, "only something computed from it is in a matrix product")
            return Signal()
        axes = self._kernel_axes(weight, *_product_dimensions(equation, side))
        if axes is None:
            self._note_unclear(weight, "one of its axes is both summed over and kept")
            return Signal()
        if self._recording:
            self.axes.setdefault(kernel, axes)
            self.uses.append(kernel)
            self._follow(weight, kernel)
        return Signal(kernel)

    def _kernel_axes(self, weight: Weight, contracted: Axes, batch: Axes, window: Axes) -> tuple[Axes, Axes, Axes] | None:
        """Reduction, output and layer axes of the parameter, from how its view is used."""
        assert weight.kernel is not None
        shape = self._shapes[weight.kernel]
        along = lambda dims: {axis for dim in dims for axis in weight.axes[dim]}
        reduction, layer = along(contracted), along(batch) | weight.layer_axes
        pooled = along(window)
        output = along(set(range(len(weight.axes))) - {*contracted, *batch, *window})
        # An axis of size one that the view has dropped changes no matrix, wherever it is counted.
        reduction |= {axis for axis, size in enumerate(shape) if size == 1} - output - layer - pooled
        kinds = (reduction, output, layer, pooled)
        if sum(map(len, kinds)) != len(shape) or set().union(*kinds) != set(range(len(shape))):
            return None
        return tuple(sorted(reduction)), tuple(sorted(output)), tuple(sorted(layer))

    def _note_unclear(self, weight: Weight, reason: str) -> None:
        for path in weight.paths:
            self.unclear[path] = reason

    def _of_weights(self, equation: Any, values: list[Value]) -> Value:
        """A value computed without any signal: from weights and constants."""
        name = equation.primitive.name
        first = values[0]
        if isinstance(first, Weight) and first.kernel is not None:
            if name in _VIEWS:
                return _view(equation, first, self._shapes[first.kernel])
            if name == "gather":
                return self._gather(equation, first)
        shape = equation.outvars[0].aval.shape
        same = [
            value
            for value, var in zip(values, equation.invars, strict=True)
            if isinstance(value, Weight) and value.kernel is not None and var.aval.shape == shape
        ]
        if len(equation.outvars) > 1 or not same:
            return Weight(_paths(values))
        # Of the weights that meet elementwise, the one of most axes is the kernel: a scale has been broadcast to it.
        kernel = max(same, key=lambda value: sum(map(len, value.axes)))
        return dataclasses.replace(kernel, paths=_paths(values))

    def _gather(self, equation: Any, weight: Weight) -> Value:
        """One slice of a stack, or a lookup of many rows: an embedding."""
        assert weight.kernel is not None
        dimensions = equation.params["dimension_numbers"]
        sizes = equation.params["slice_sizes"]
        lookups = math.prod(equation.invars[1].aval.shape[:-1])
        if lookups == 1 and all(sizes[axis] == 1 for axis in dimensions.collapsed_slice_dims):
            dropped = [axis for dim in dimensions.collapsed_slice_dims for axis in weight.axes[dim]]
            kept = tuple(axes for dim, axes in enumerate(weight.axes) if dim not in dimensions.collapsed_slice_dims)
            if len(kept) == len(equation.outvars[0].aval.shape):
                return dataclasses.replace(weight, axes=kept, layer_axes=weight.layer_axes | set(dropped))
        if self._recording and len(self._shapes[weight.kernel]) >= 2:
            self.uses.append(weight.kernel)
        return Signal()

    # What happens to a layer's output

    def _of_signals(self, name: str, values: list[Value]) -> Value:
        signals = [value for value in values if isinstance(value, Signal)]
        sources = {signal.source for signal in signals}
        source = sources.pop() if len(sources) == 1 else None
        statistic = all(signal.statistic for signal in signals)
        if name in _REDUCTIONS:
            return Signal(source, statistic=True)
        if name in _ARITHMETIC and source is not None:
            for value in values:
                if isinstance(value, Weight):
                    self._follow(value, source)
        keeps = name in _ARITHMETIC or name in _VIEWS or name in _WITHIN_NORMALIZATION
        # Of a statistic any function is one too: its reciprocal root, its maximum with epsilon.
        return Signal(source if keeps or statistic else None, statistic)

    def _follow(self, weight: Weight, kernel: Path) -> None:
        """Takes down that the parameters in `weight` follow a kernel, if they have no more axes than its outputs."""
        if not self._recording:
            return
        most = max(1, len(self.axes[kernel][1])) if kernel in self.axes else 1
        for path in weight.paths - {kernel}:
            sizes = [size for axis, size in enumerate(self._shapes[path]) if axis not in weight.layer_axes and size > 1]
            if len(sizes) <= most:
                self._followed.setdefault(path, {})[kernel] = weight.layer_axes


def _called_jaxpr(equation: Any) -> Any:
    """The jaxpr that an equation calls on its own operands (`jit`, `remat`, `custom_jvp`, `shard_map`, ...), if any."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        called = equation.params.get(key)
        called = getattr(called, "jaxpr", called)
        if hasattr(called, "eqns") and len(called.invars) == len(equation.invars):
            return called
    return None


def _paths(values: Sequence[Value]) -> frozenset[Path]:
    return frozenset().union(*(value.paths for value in values if isinstance(value, Weight)))


def _join(*values: Value) -> Value:
    """The value of an array that may be any of these."""
    different = {value for value in values if value is not None}
    if len(different) <= 1:
        return different.pop() if different else None
    if all(isinstance(value, Weight) for value in different):
        return Weight(_paths(values))
    return Signal(None, all(isinstance(value, Signal) and value.statistic for value in different))


def _slice_leading_axis(value: Value) -> Value:
    if not isinstance(value, Weight) or value.kernel is None:
        return value
    return dataclasses.replace(value, axes=value.axes[1:], layer_axes=value.layer_axes | set(value.axes[0]))


def _product_dimensions(equation: Any, side: int) -> tuple[Axes, Axes, Axes]:
    """Contracted, batch and window dimensions of one operand of a matrix product or convolution."""
    dimensions = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        contracted, batch = dimensions
        return tuple(contracted[side]), tuple(batch[side]), ()
    _, reduction, *window = dimensions.rhs_spec
    return (reduction,), (), tuple(window)


def _view(equation: Any, weight: Weight, kernel_shape: tuple[int, ...]) -> Weight:
    """The axes of a weight behind a primitive that only moves its numbers."""
    params, axes = equation.params, weight.axes
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    dropped: list[int] = []
    match equation.primitive.name:
        case "transpose":
            axes = tuple(axes[dim] for dim in params["permutation"])
        case "broadcast_in_dim":
            placed = dict(zip(params["broadcast_dimensions"], axes, strict=True))
            axes = tuple(placed.get(dim, ()) for dim in range(len(after)))
        case "squeeze" | "reshape":
            axes, dropped = _reshape(axes, before, after, kernel_shape)
        case _ if len(before) != len(after):
            return Weight(weight.paths)
    return dataclasses.replace(weight, axes=axes, layer_axes=weight.layer_axes | set(dropped))


def _reshape(
    axes: tuple[Axes, ...], before: tuple[int, ...], after: tuple[int, ...], kernel_shape: tuple[int, ...]
) -> tuple[tuple[Axes, ...], list[int]]:
    """Follows axes through a reshape.

    Runs of dimensions with the same product belong together: merged, the new dimension runs along all their axes;
    split, each part takes its axis if the sizes say which, or else all.

    Returns:
      The axes of each new dimension, and those axes of the parameter of which only one index is left.
    """
    dropped = [axis for dim, size in enumerate(before) if size == 1 for axis in axes[dim] if kernel_shape[axis] > 1]
    if 0 in before:
        return ((),) * len(after), dropped
    old = [(size, axes[dim]) for dim, size in enumerate(before) if size != 1]
    new_axes: list[Axes] = [()] * len(after)
    todo = [dim for dim, size in enumerate(after) if size != 1]
    while old and todo:
        run, parts = [old.pop(0)], [todo.pop(0)]
        while (left := math.prod(size for size, _ in run)) != (right := math.prod(after[dim] for dim in parts)):
            if left < right:
                run.append(old.pop(0))
            else:
                parts.append(todo.pop(0))
        merged = tuple(axis for _, run_axes in run for axis in run_axes)
        whole = [axis for axis in merged if kernel_shape[axis] != 1]
        if [kernel_shape[axis] for axis in whole] == [after[dim] for dim in parts]:
            new_axes = [(whole[parts.index(dim)],) if dim in parts else own for dim, own in enumerate(new_axes)]
        else:
            new_axes = [merged if dim in parts else own for dim, own in enumerate(new_axes)]
    return tuple(new_axes), dropped
