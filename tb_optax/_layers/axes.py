"""Follows the axes of a parameter to its matrix product, through operations that only move its numbers.

A network seldom multiplies by a parameter as it is stored: reshapes, transposes, slices and casts come first. A `Weight` is
an array computed from parameters. For each of its dimensions, it records the parameter axes along which the dimension runs.
So a product shows which of the parameter's axes it sums over and which it keeps. In this module a parameter has *axes*, and
the current array has *dimensions* (`dim`).

Example:
  The queries of two attention heads, stored as `(embed, heads, head_dim)`, are computed by one matrix product:

  >>> import jax, jax.numpy as jnp
  >>> queries = lambda kernel, x: jax.lax.dot(x, kernel.reshape(64, 64))
  >>> reshape, product = jax.make_jaxpr(queries)(jnp.ones((64, 2, 32)), jnp.ones((1, 64))).eqns
  >>> kernel = parameter("query/kernel", (64, 2, 32))
  >>> kernel.axes
  ((0,), (1,), (2,))
  >>> matrix = view(reshape, kernel, (64, 2, 32))
  >>> matrix.axes  # its second dimension runs along two axes of the kernel
  ((0,), (1, 2))
  >>> product_axes(product, 1, matrix, (64, 2, 32))  # the matrix is operand 1
  KernelAxes(reduction=(0,), output=(1, 2), layer=())
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from tb_optax._compat import parameter_of
from tb_optax._layers.layer import Axes, KernelAxes, Path

# Primitives that keep the numbers and change only their shape, dtype or place.
VIEWS = frozenset(
    {
        *("reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "reduce_precision"),
        *("slice", "dynamic_slice", "split", "unstack", "rev", "tile", "copy", "copy_p", "stop_gradient"),
        *("name", "sharding_constraint", "reshard", "mesh_cast", "device_put"),
        *("all_gather", "all_gather_invariant", "pvary", "pcast", "pbroadcast"),
    }
)

PRODUCTS = frozenset({"dot_general", "ragged_dot_general", "conv_general_dilated"})


@dataclasses.dataclass(frozen=True)
class Weight:
    """An array computed from parameters, without any layer."""

    paths: frozenset[Path]
    kernel: Path | None = None
    """The parameter whose axes the array shows; None if it shows none."""
    axes: tuple[Axes, ...] = ()
    """For each dimension of the array, the axes of that parameter along which the dimension runs."""
    layer_axes: frozenset[int] = frozenset()
    """The axes of that parameter along which the array is one slice."""
    inputs: frozenset[Any] = frozenset()
    """The network inputs that the array is computed from: running statistics, or data normalized before any layer."""

    @property
    def running(self) -> frozenset[int]:
        """The axes of the parameter along which any dimension of the array runs."""
        return frozenset(axis for axes in self.axes for axis in axes)

    def along(self, dims: Collection[int]) -> frozenset[int]:
        return frozenset(axis for dim in dims for axis in self.axes[dim])

    def shows(self, axes: tuple[Axes, ...], dropped: Collection[int] = ()) -> "Weight":
        """The same parameter with other axes. The array is one slice along `dropped` axes that no dimension runs along."""
        view = dataclasses.replace(self, axes=axes)
        return dataclasses.replace(view, layer_axes=self.layer_axes | (frozenset(dropped) - view.running))


def parameter(path: Path, shape: Sequence[int]) -> Weight:
    return Weight(frozenset({path}), path, tuple((axis,) for axis in range(len(shape))))


def slice_along(weight: Weight, dim: int) -> Weight:
    """One slice of a weight along `dim`, as a loop or `unstack` gives it."""
    return weight.shows(weight.axes[:dim] + weight.axes[dim + 1 :], weight.axes[dim])


def view(equation: Any, weight: Weight, parameter_shape: tuple[int, ...]) -> Weight:
    """The weight that one of `VIEWS` returns."""
    axes = weight.axes
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    match equation.primitive.name:
        case "transpose":
            return weight.shows(tuple(axes[dim] for dim in parameter_of(equation, "permutation")))
        case "broadcast_in_dim":
            placed = dict(zip(parameter_of(equation, "broadcast_dimensions"), axes, strict=True))
            return weight.shows(tuple(placed.get(dim, ()) for dim in range(len(after))))
        case "unstack":
            return slice_along(weight, parameter_of(equation, "axis"))
        case "squeeze" | "reshape":
            # A batched reshape may include a transpose, in `dimensions`.
            order = parameter_of(equation, "dimensions", None) if equation.primitive.name == "reshape" else None
            order = tuple(range(len(before))) if order is None else order
            return _reshape(weight, [axes[dim] for dim in order], [before[dim] for dim in order], after, parameter_shape)
        case _ if len(before) != len(after):
            return Weight(weight.paths, inputs=weight.inputs)
    return weight


def _reshape(
    weight: Weight, axes: Sequence[Axes], before: Sequence[int], after: Sequence[int], parameter_shape: tuple[int, ...]
) -> Weight:
    """Follows axes through a reshape.

    A run of old dimensions becomes a run of new ones with the same product of sizes. If the new sizes equal the sizes of
    the run's axes, each new dimension gets its own axis. Otherwise each new dimension gets all axes of the run.
    """
    dropped = [axis for dim, size in enumerate(before) if size == 1 for axis in axes[dim] if parameter_shape[axis] > 1]
    new_axes: list[Axes] = [()] * len(after)
    if 0 in before:
        return weight.shows(tuple(new_axes), dropped)
    old = [(size, [axis for axis in axes[dim] if parameter_shape[axis] > 1]) for dim, size in enumerate(before) if size > 1]
    todo = [dim for dim, size in enumerate(after) if size > 1]
    while old and todo:
        run, parts = [old.pop(0)], [todo.pop(0)]
        while (left := math.prod(size for size, _ in run)) != (right := math.prod(after[dim] for dim in parts)):
            if left < right:
                run.append(old.pop(0))
            else:
                parts.append(todo.pop(0))
        merged = tuple(axis for _, run_axes in run for axis in run_axes)
        each_its_own = [parameter_shape[axis] for axis in merged] == [after[dim] for dim in parts]
        for place, dim in enumerate(parts):
            new_axes[dim] = merged[place : place + 1] if each_its_own else merged
    return weight.shows(tuple(new_axes), dropped)


def product_axes(equation: Any, side: int, weight: Weight, parameter_shape: tuple[int, ...]) -> KernelAxes | None:
    """The axes of the parameter that is operand `side` of a product, by kind; None unless each axis has exactly one kind."""
    contracted, batch, window = (weight.along(dims) for dims in _product_dimensions(equation, side))
    if equation.primitive.name == "conv_general_dilated":
        batch |= _stacked_outputs(equation, weight)
    layer = batch | weight.layer_axes
    output = weight.running - contracted - layer - window
    # A dropped axis of size one changes no matrix, so it may count as any kind.
    ones = frozenset(axis for axis, size in enumerate(parameter_shape) if size == 1)
    reduction = contracted | (ones - output - layer - window)
    kinds = (reduction, output, layer, window)
    if sum(map(len, kinds)) != len(parameter_shape) or len(frozenset().union(*kinds)) != len(parameter_shape):
        return None
    return KernelAxes(tuple(sorted(reduction)), tuple(sorted(output)), tuple(sorted(layer)))


def is_matrix(axes: KernelAxes, parameter_shape: tuple[int, ...]) -> bool:
    """Whether a product sums over some axes of a parameter and keeps others. If it does only one, it sees a vector."""
    return all(math.prod(parameter_shape[axis] for axis in own) > 1 for own in (axes.reduction, axes.output))


def output_dim(equation: Any, side: int, dim: int) -> int | None:
    """The output dimension that a product gives dimension `dim` of operand `side`; None if the product sums over it."""
    contracted, batch, _ = _product_dimensions(equation, side)
    match equation.primitive.name:
        case "dot_general" if dim in batch:
            return batch.index(dim)
        case "dot_general" if dim not in contracted:
            left = len(equation.invars[0].aval.shape) - len(contracted) if side == 1 else len(batch)
            return left + sum(other not in (*contracted, *batch) for other in range(dim))
        case "conv_general_dilated":
            dimensions = parameter_of(equation, "dimension_numbers")
            return dimensions.out_spec[1] if (side, dim) == (1, dimensions.rhs_spec[0]) else None
    return None


def _product_dimensions(equation: Any, side: int) -> tuple[Axes, Axes, Axes]:
    """Contracted, batch and window dimensions of one operand."""
    match equation.primitive.name:
        case "dot_general":
            contracted, batch = parameter_of(equation, "dimension_numbers")
            return tuple(contracted[side]), tuple(batch[side]), ()
        case "ragged_dot_general":
            dimensions = parameter_of(equation, "ragged_dot_dimension_numbers")
            contracted, batch = dimensions.dot_dimension_numbers
            groups = dimensions.rhs_group_dimensions if side == 1 else ()
            return tuple(contracted[side]), (*batch[side], *groups), ()
    _, reduction, *window = parameter_of(equation, "dimension_numbers").rhs_spec
    return ((reduction, *window), (), ()) if _takes_patches(equation, window) else ((reduction,), (), tuple(window))


def _takes_patches(equation: Any, window: Sequence[int]) -> bool:
    """Whether a convolution multiplies patches that do not overlap by one matrix: its stride is its window."""
    sizes = [equation.invars[1].aval.shape[dim] for dim in window]
    is_plain = (
        parameter_of(equation, "feature_group_count") == parameter_of(equation, "batch_group_count") == 1
        and all(tuple(pair) == (0, 0) for pair in parameter_of(equation, "padding"))
        and set(parameter_of(equation, "rhs_dilation")) <= {1}
        and set(parameter_of(equation, "lhs_dilation")) <= {1}
    )
    return is_plain and list(parameter_of(equation, "window_strides")) == sizes and max(sizes) > 1


def _stacked_outputs(equation: Any, weight: Weight) -> frozenset[int]:
    """The stack axes of a batched convolution: JAX batches over kernels by groups and merges the stack into the outputs."""
    if parameter_of(equation, "feature_group_count") == parameter_of(equation, "batch_group_count") == 1:
        return frozenset()
    return frozenset(weight.axes[parameter_of(equation, "dimension_numbers").rhs_spec[0]][:-1])
