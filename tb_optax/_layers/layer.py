"""What a layer is: one weight seen as matrices, and the parameters that share its learning rate.

A parameter tree holds arrays; TempBalance needs layers. A `Layer` names an array by its path and says which of its axes
are which, so that nothing after this module needs to know where the array came from.
"""

import collections
import dataclasses
import fnmatch
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from tb_optax._dtypes import is_float_array

PyTree: TypeAlias = Any
Path: TypeAlias = str
Axes: TypeAlias = tuple[int, ...]


class InvalidLayersError(TypeError):
    """An error of this library about layers, told apart from errors of a user's function that finds layers."""


class KernelAxes(NamedTuple):
    """Which axes of a kernel are of which kind, as `Layer` has them, but counted from the front; all others are pooled."""

    reduction: Axes
    output: Axes
    layer: Axes


@dataclasses.dataclass(frozen=True)
class Layer:
    """One balanced weight of a network.

    The kernel's axes fall into four kinds, the first two as in `optax.contrib.MuonDimensionNumbers`:

    - *reduction axes*, summed over in the forward pass, and *output axes*: together they make a matrix;
    - *layer axes*, along which many layers are stacked (`nn.scan`, `jax.vmap`): each slice is a layer of its own, with
      its own spectrum, metric and scale;
    - every other axis is *pooled*: the matrices along it share one spectrum (the window of a convolution).

    Attributes:
      name: what the layer is called in `TempBalanceState`, for example `"layer1/0/conv1"`.
      kernel: the path of the weight in the parameter tree, for example `"layer1/0/conv1/kernel"`: the keys joined by
        `/`, without the `value` that ends the paths of an NNX state.
      follows: the paths of the parameters that take the kernel's scale: its bias, the normalization after it. A
        parameter of a stacked layer has the kernel's layer axes too.
      reduction_axes: axes of the kernel, counted from either end.
      output_axes: likewise.
      layer_axes: likewise.
      block: layers with the same one share the mean of their metrics, and one scale (`in_blocks` finds them); a layer
        without one has its own.

    Raises:
      TypeError: a field that is to be a tuple is a string or a number.

    Example:
      >>> import tb_optax
      >>> tb_optax.Layer("dense", "dense/kernel", follows=("dense/bias",))
      Layer(name='dense', kernel='dense/kernel', follows=('dense/bias',), reduction_axes=(-2,), output_axes=(-1,), \
layer_axes=(), block='')
    """

    name: str
    kernel: Path
    follows: tuple[Path, ...] = ()
    reduction_axes: tuple[int, ...] = (-2,)
    output_axes: tuple[int, ...] = (-1,)
    layer_axes: tuple[int, ...] = ()
    block: str = ""

    def __post_init__(self):
        for field in ("follows", "reduction_axes", "output_axes", "layer_axes"):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InvalidLayersError(f"Layer {self.name!r}: {field}={value!r} must be a tuple, such as ({value!r},).")
            object.__setattr__(self, field, tuple(value))


class Layers(tuple[Layer, ...]):
    """The layers of a network, and why every other weight of it is not among them.

    A tuple of layers. `left_out` maps the path of each array of two or more axes that is in no layer to the reason, but for
    stacks of biases where the forward pass shows that they are; printing the object shows both.
    """

    left_out: Mapping[Path, str]

    def __new__(cls, layers: Iterable[Layer] = (), left_out: Mapping[Path, str] | None = None) -> "Layers":
        self = super().__new__(cls, layers)
        self.left_out = dict(left_out or {})
        return self

    def __str__(self) -> str:
        block = lambda layer: f", in block {layer.block}" if layer.block else ""
        lines = [f"{layer.name}: {' + '.join((layer.kernel, *layer.follows))}{block(layer)}" for layer in self]
        lines += [f"left out: {path}: {reason}" for path, reason in self.left_out.items()]
        return "\n".join(lines)


LayersOrFn: TypeAlias = Sequence[Layer] | Callable[[PyTree], Sequence[Layer]]


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """A kernel's axes, resolved against its shape: non-negative, and the sizes that follow from them."""

    reduction_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    layer_axes: tuple[int, ...]
    pooled_axes: tuple[int, ...]
    stack: tuple[int, ...]
    """Sizes of the layer axes."""
    matrices: int
    """Matrices that share one spectrum."""
    rows: int
    columns: int

    @property
    def eigenvalues(self) -> int:
        """Length of each layer's spectrum."""
        return self.matrices * min(self.rows, self.columns)

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The axes that one output of the layer reads; with the output axes, they make each kernel one matrix."""
        return self.reduction_axes + self.pooled_axes


def kernel_shape(layer: Layer, shape: Sequence[int]) -> KernelShape:
    """Resolves a layer's axes against the shape of its kernel.

    Raises:
      ValueError: an axis is out of range or named twice.
    """
    ndim = len(shape)
    named = {field: getattr(layer, field) for field in ("reduction_axes", "output_axes", "layer_axes")}
    for field, axes in named.items():
        for axis in axes:
            if not -ndim <= axis < ndim:
                raise ValueError(
                    f"Layer {layer.name!r}: {field}={axes} names axis {axis}, but {layer.kernel!r} has shape "
                    f"{tuple(shape)}; give axes between {-ndim} and {ndim - 1}."
                )
    resolved = {field: tuple(axis % ndim for axis in axes) for field, axes in named.items()}
    counts = collections.Counter(axis for axes in resolved.values() for axis in axes)
    twice = [axis for axis, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"Layer {layer.name!r}: axis {twice[0]} of {layer.kernel!r} (shape {tuple(shape)}) is named twice in "
            f"{named}; an axis is of one kind only."
        )
    pooled = tuple(axis for axis in range(ndim) if axis not in counts)
    size = lambda axes: math.prod(shape[axis] for axis in axes)
    return KernelShape(
        **resolved,
        pooled_axes=pooled,
        stack=tuple(shape[axis] for axis in resolved["layer_axes"]),
        matrices=size(pooled),
        rows=size(resolved["reduction_axes"]),
        columns=size(resolved["output_axes"]),
    )


def short_repr(value: Any) -> str:
    """What an error says of a value that may be a whole network: a line."""
    return " ".join(reprlib.repr(value).split())


def path_name(key_path: tuple[Any, ...]) -> Path:
    """Joins a JAX key path by `/`, leaving out the `value` attribute in which Flax boxes its variables."""
    if len(key_path) > 1 and getattr(key_path[-1], "name", None) == "value":
        key_path = key_path[:-1]
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def split_path(path: Path) -> tuple[str, str]:
    """Splits a path at its last `/` (or `.`, as in PyTorch's flat names) into a module and a name in it."""
    cut = max(path.rfind("/"), path.rfind("."))
    return path[: max(cut, 0)], path[cut + 1 :]


def layer_names(kernels: Iterable[Path]) -> dict[Path, str]:
    """What the layers of these kernels are called: their modules, or the whole path where a module holds several."""
    kernels = tuple(kernels)
    per_module = collections.Counter(split_path(kernel)[0] for kernel in kernels)
    names = {}
    for kernel in kernels:
        module, _ = split_path(kernel)
        names[kernel] = module if module and per_module[module] == 1 else kernel
    return names


def leaves_by_path(params: PyTree) -> dict[Path, Any]:
    """The leaves of a parameter tree by path.

    Raises:
      ValueError: two leaves have the same path.
    """
    leaves: dict[Path, Any] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_name(key_path)
        if path in leaves:
            raise ValueError(f"params holds two leaves whose path reads {path!r}; rename one of their keys.")
        leaves[path] = leaf
    return leaves


def select_layers(
    candidates: Iterable[Layer],
    leaves: Mapping[Path, Any],
    left_out: Mapping[Path, str],
    exclude: Sequence[str],
    min_eigenvalues: int,
    argument_of: str,
) -> Layers:
    """Keeps the layers with enough eigenvalues whose names match no pattern of `exclude` (as `fnmatch` has them)."""
    if min_eigenvalues < 2:
        raise ValueError(f"{argument_of}: min_eigenvalues={min_eigenvalues}; a spectrum needs at least 2.")
    candidates = tuple(candidates)
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    names = [layer.name for layer in candidates] + list(left_out)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{argument_of}: exclude={pattern!r} matches no layer. Patterns are shell-style and match a layer's "
                f"whole name (`*` crosses `/`); the layers are: {', '.join(names) or 'none'}."
            )
    kept, reasons = [], dict(left_out)
    for layer in candidates:
        count = kernel_shape(layer, leaves[layer.kernel].shape).eigenvalues
        matched = [pattern for pattern in patterns if fnmatch.fnmatchcase(layer.name, pattern)]
        if matched:
            reasons[layer.kernel] = f"excluded by {matched[0]!r}"
        elif count < min_eigenvalues:
            reasons[layer.kernel] = f"{count} eigenvalues, fewer than min_eigenvalues={min_eigenvalues}"
        else:
            kept.append(layer)
    following = {path for layer in kept for path in layer.follows}
    return Layers(kept, {path: reason for path, reason in reasons.items() if path not in following})


def resolve_layers(layers: LayersOrFn, params: PyTree) -> tuple[Layers, dict[Path, Any]]:
    """The layers of `params`, checked against it, and its leaves by path.

    Raises:
      TypeError: `layers` is not a sequence of layers, or does not return one.
      ValueError: a path is not in `params` or stands twice, a name stands twice, axes do not fit.
    """
    leaves = leaves_by_path(params)
    found = _called(layers, params) if callable(layers) else layers
    if isinstance(found, (str, Mapping)) or not isinstance(found, Sequence):
        raise InvalidLayersError(
            f"layers={short_repr(found)}: give a sequence of tb_optax.Layer, or a function of params that returns one."
        )
    for layer in found:
        if not isinstance(layer, Layer):
            raise InvalidLayersError(f"layers holds {short_repr(layer)}, which is not a tb_optax.Layer.")
        _check_layer(layer, leaves)
    _check_unique("name", [layer.name for layer in found])
    _check_unique("path", [path for layer in found for path in (layer.kernel, *layer.follows)])
    of_layers = {path for layer in found for path in (layer.kernel, *layer.follows)}
    left_out = {
        path: "not among layers"
        for path, leaf in leaves.items()
        if path not in of_layers and is_float_array(leaf) and len(leaf.shape) >= 2
    }
    return Layers(found, left_out | dict(getattr(found, "left_out", {}))), leaves


def _called(layers: Callable[[PyTree], Sequence[Layer]], params: PyTree) -> Sequence[Layer]:
    """Calls `layers`. A network or its forward pass is callable too, and fails on parameters alone in its own ways."""
    try:
        return layers(params)
    except InvalidLayersError:
        raise
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"layers={short_repr(layers)} could not be called with params alone ({error}); give a function such as "
            "tb_optax.find_layers, or what tb_optax.trace_layers returned for your forward pass."
        ) from error


def _check_layer(layer: Layer, leaves: Mapping[Path, Any]) -> None:
    for path in (layer.kernel, *layer.follows):
        if path not in leaves:
            raise ValueError(
                f"Layer {layer.name!r} names the path {path!r}, which is not in params. Its paths are: "
                f"{', '.join(leaves) or 'none'}."
            )
        if not is_float_array(leaves[path]):
            raise InvalidLayersError(f"Layer {layer.name!r}: {path!r} is not an array of real floating-point numbers.")
    shape = kernel_shape(layer, leaves[layer.kernel].shape)
    if shape.eigenvalues < 2:
        raise ValueError(
            f"Layer {layer.name!r}: {layer.kernel!r} of shape {leaves[layer.kernel].shape} has {shape.eigenvalues} "
            "eigenvalues; a spectrum needs at least 2."
        )
    for path in layer.follows:
        follower = leaves[path].shape
        for axis, size in zip(shape.layer_axes, shape.stack, strict=True):
            if axis >= len(follower) or follower[axis] != size:
                raise ValueError(
                    f"Layer {layer.name!r}: {path!r} of shape {follower} has no axis {axis} of size {size}, the layer "
                    f"axis of {layer.kernel!r}; leave it out of follows, or stack it alike."
                )


def _check_unique(what: str, values: Sequence[str]) -> None:
    for value, count in collections.Counter(values).items():
        if count > 1:
            raise ValueError(f"layers has the {what} {value!r} {count} times; it can belong to one layer only.")
