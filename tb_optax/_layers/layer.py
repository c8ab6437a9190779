"""What a layer is: one weight seen as matrices, and the parameters that share its learning rate.

A parameter tree holds arrays; TempBalance needs layers. A `Layer` names an array by its path and says which of its axes
are which, so that nothing after this module needs to know where the array came from.
"""

import collections
import dataclasses
import fnmatch
import math
import numbers
import re
import reprlib
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from tb_optax._dtypes import is_float_array

PyTree: TypeAlias = Any
Path: TypeAlias = str
Axes: TypeAlias = tuple[int, ...]


class InvalidLayersError(TypeError):
    """An error of this library about layers, unlike a TypeError of a user's function that finds layers."""


class KernelAxes(NamedTuple):
    """The axes of a kernel by kind, as in `Layer`, but counted from the front; all others are pooled."""

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
      output_axes: axes of the kernel, counted from either end.
      layer_axes: axes of the kernel, counted from either end.
      block: the layers of a block share the mean of their metrics, and one scale (`in_blocks` finds blocks). `""` for a
        layer in no block.
      measured: whether the layer has a spectrum and a metric. At each refresh, a layer that is not measured gets the
        greatest scale of the others, as in LLR embeddings and the output layer.

    Raises:
      TypeError: a name or a path is not a string, an axis is not a whole number, or a field that must be a tuple is not one.

    Example:
      >>> import tb_optax
      >>> tb_optax.Layer("dense", "dense/kernel", follows=("dense/bias",))
      Layer(name='dense', kernel='dense/kernel', follows=('dense/bias',), reduction_axes=(-2,), output_axes=(-1,), \
layer_axes=(), block='', measured=True)
    """

    name: str
    kernel: Path
    follows: tuple[Path, ...] = ()
    reduction_axes: tuple[int, ...] = (-2,)
    output_axes: tuple[int, ...] = (-1,)
    layer_axes: tuple[int, ...] = ()
    block: str = ""
    measured: bool = True

    def __post_init__(self):
        for field, example in {"name": "dense", "kernel": "dense/kernel", "block": "h_3"}.items():
            value = getattr(self, field)
            if not isinstance(value, str):
                raise InvalidLayersError(f"Layer {self.name!r}: {field}={value!r} must be a string, such as {example!r}.")
        for field in ("follows", "reduction_axes", "output_axes", "layer_axes"):
            value = getattr(self, field)
            what, of, example = (
                ("paths", str, "dense/bias") if field == "follows" else ("whole numbers", numbers.Integral, -1)
            )
            if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, of) for each in value):
                example = value if isinstance(value, of) else example
                raise InvalidLayersError(
                    f"Layer {self.name!r}: {field}={value!r} must be a tuple of {what}, such as ({example!r},)."
                )
            object.__setattr__(self, field, tuple(value))


class Layers(tuple[Layer, ...]):
    """The layers of a network, and the reason why each of its other weights is left out.

    A tuple of layers. Printing it shows how each kernel was read, what follows it, and what was left out.

    Attributes:
      left_out: for the path of each array of two or more axes that is in no layer, the reason. Stacks of biases are not
        among them if the forward pass shows that they are biases.
      shapes: the shape of every real floating-point array of the parameters, if the layers were found in parameters.
    """

    left_out: Mapping[Path, str]
    shapes: Mapping[Path, tuple[int, ...]]

    def __new__(
        cls,
        layers: Iterable[Layer] = (),
        left_out: Mapping[Path, str] | None = None,
        shapes: Mapping[Path, tuple[int, ...]] | None = None,
    ) -> "Layers":
        self = super().__new__(cls, layers)
        self.left_out = dict(left_out or {})
        self.shapes = dict(shapes or {})
        return self

    @property
    def measured(self) -> "Layers":
        """The layers that have a spectrum and a metric."""
        return Layers([layer for layer in self if layer.measured], self.left_out, self.shapes)

    def __str__(self) -> str:
        lines = []
        for layer in self:
            parts = [self._with_shape(layer.kernel)]
            if not layer.measured:
                parts.append("not measured, with the greatest scale")
            elif layer.kernel in self.shapes:
                parts.append(kernel_shape(layer, self.shapes[layer.kernel]).describe())
            follows = " ".join(f"+ {path}" for path in layer.follows)
            parts += [follows] * bool(follows) + [f"in block {layer.block}"] * bool(layer.block)
            lines.append(f"{layer.name}: {', '.join(parts)}")
        lines += [f"left out: {self._with_shape(path)}: {reason}" for path, reason in self.left_out.items()]
        if self.shapes:
            count = f"{len(self)} layer{'s' * (len(self) != 1)}"
            lines.append(f"{count}, with {self.share():.0%} of the parameters")
        return "\n".join(lines)

    def _with_shape(self, path: Path) -> str:
        return f"{path} {self.shapes[path]}" if path in self.shapes else path

    def share(self) -> float:
        """The share of the parameters that is in the layers, with what follows their kernels."""
        balanced = {path for layer in self for path in (layer.kernel, *layer.follows)}
        sizes = {path: math.prod(shape) for path, shape in self.shapes.items()}
        return sum(size for path, size in sizes.items() if path in balanced) / max(1, sum(sizes.values()))


# Reasons for which no warning is due: the array is not a weight to balance, or the user left it out.
_DELIBERATE = (
    *("an embedding", "a table or a buffer", "a bias or normalization", "the first layer", "the last layer"),
    *("excluded by", "not among layers", "a mask hides it", "its dtype"),
)


def check_share(argument_of: str, layers: Layers) -> None:
    """Warns if more parameters in matrices are left out than balanced, not counting those left out deliberately."""
    size = lambda path: math.prod(layers.shapes.get(path, ()))
    balanced = sum(size(layer.kernel) for layer in layers)
    missing = {path: reason for path, reason in layers.left_out.items() if not reason.startswith(_DELIBERATE)}
    if sum(map(size, missing)) > balanced > 0:
        largest = max(missing, key=size)
        share = balanced / (balanced + sum(map(size, missing)))
        warnings.warn(
            f"{argument_of} balances {share:.0%} of the parameters in matrices. {len(missing)} arrays are left out, such as "
            f"{largest!r} {layers.shapes[largest]}: {missing[largest]}. Print tb_optax.find_layers(params) to see all of "
            "them, and try tb_optax.trace_layers, which reads the forward pass.",
            stacklevel=4,
        )


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

    def describe(self) -> str:
        """How the kernel is read: `"stack of 12, dense 64 x 128"`, `"9 matrices of 64 x 64, a convolution"`."""
        matrix = f"{self.rows} x {self.columns}"
        stack = f"stack of {' x '.join(map(str, self.stack))}, " if self.stack else ""
        if self.pooled_axes:
            return f"{stack}{self.matrices} {'matrix' if self.matrices == 1 else 'matrices'} of {matrix}, a convolution"
        if len(self.reduction_axes) > 1 or len(self.output_axes) > 1:
            return f"{stack}{matrix} over axes {_listed(self.reduction_axes)} and {_listed(self.output_axes)}"
        return f"{stack}dense {matrix}"

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The axes that one output of the layer reads; with the output axes, they make each kernel one matrix."""
        return self.reduction_axes + self.pooled_axes


def _listed(axes: Axes) -> str:
    return str(axes[0]) if len(axes) == 1 else f"({', '.join(map(str, axes))})"


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
    """A value in an error message, cut to 120 characters because it may be a whole network."""
    return textwrap.shorten(reprlib.repr(value), 120, placeholder=" ...")


def path_name(key_path: tuple[Any, ...]) -> Path:
    """Joins a JAX key path by `/`, leaving out the `value` attribute in which Flax boxes its variables."""
    if len(key_path) > 1 and getattr(key_path[-1], "name", None) == "value":
        key_path = key_path[:-1]
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


# PyTorch's parametrizations keep the weight `B` of module `A` under these names: weight norm its gain and its direction.
_PARAMETRIZED = re.compile(r"(?:(.*)[/.])?parametrizations[/.]([^/.]+)[/.]original([01]?)")


def split_path(path: Path) -> tuple[str, str]:
    """Splits a path at its last `/` (or `.`, as in PyTorch's flat names) into a module and a name in it.

    `A.parametrizations.B.original` is split as `A.B` is; `original0` and `original1`, of weight norm, as `A.B_g` and
    `A.B_v`. The `:0` that ends TensorFlow's names is dropped.
    """
    if parametrized := _PARAMETRIZED.fullmatch(path):
        return parametrized[1] or "", parametrized[2] + {"": "", "0": "_g", "1": "_v"}[parametrized[3]]
    cut = max(path.rfind("/"), path.rfind("."))
    return path[: max(cut, 0)], path[cut + 1 :].removesuffix(":0")


def layer_names(kernels: Iterable[Path]) -> dict[Path, str]:
    """What the layers of these kernels are called: their modules, or the whole path where a module holds several."""
    kernels = tuple(kernels)
    per_module = collections.Counter(split_path(kernel)[0] for kernel in kernels)
    names = {}
    for kernel in kernels:
        module, _ = split_path(kernel)
        names[kernel] = module if module and per_module[module] == 1 else kernel
    return names


def leaf_paths(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[Path]:
    """The paths of the leaves of a tree, in its order: keys joined by `/`, without the boxes that arrays lie in.

    A box is a node with one leaf: a variable of Flax, whose attribute is `value`, or an array of Haliax, which has no key.
    """
    key_paths = [key_path for key_path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]
    children = collections.Counter(key_path[:-1] for key_path in key_paths)
    paths = []
    for key_path in key_paths:
        inside = key_path[-1] if len(key_path) > 1 and children[key_path[:-1]] == 1 else None
        is_box = getattr(inside, "name", None) == "value" or isinstance(inside, jax.tree_util.FlattenedIndexKey)
        paths.append(jax.tree_util.keystr(key_path[:-1] if is_box else key_path, simple=True, separator="/"))
    return paths


def leaves_by_path(params: PyTree) -> dict[Path, Any]:
    """The leaves of a parameter tree by path.

    Raises:
      ValueError: two leaves have the same path.
    """
    leaves: dict[Path, Any] = {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        if path in leaves:
            raise ValueError(f"params holds two leaves whose path reads {path!r}; rename one of their keys.")
        leaves[path] = leaf
    return leaves


def map_by_path(function: Callable[[Path, Any], Any], tree: PyTree) -> PyTree:
    """The tree with `function(path, leaf)` in place of each leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([function(path, leaf) for path, leaf in zip(leaf_paths(tree), leaves, strict=True)])


def select_layers(
    candidates: Iterable[Layer],
    leaves: Mapping[Path, Any],
    left_out: Mapping[Path, str],
    exclude: Sequence[str],
    min_eigenvalues: int,
    argument_of: str,
) -> Layers:
    """Keeps the layers with enough eigenvalues whose names match no shell-style pattern of `exclude`."""
    if not isinstance(min_eigenvalues, numbers.Real) or min_eigenvalues < 2:
        raise ValueError(
            f"{argument_of}: min_eigenvalues={min_eigenvalues!r}; give a number of at least 2, because a fit needs two."
        )
    candidates = tuple(candidates)
    names = [*(layer.name for layer in candidates), *layer_names(left_out).values()]
    patterns = checked_patterns(argument_of, "exclude", exclude, names, paths=left_out)
    kept, reasons = [], dict(left_out)
    for layer in candidates:
        shape = kernel_shape(layer, leaves[layer.kernel].shape)
        count = shape.eigenvalues
        matched = [pattern for pattern in patterns if fnmatch.fnmatchcase(layer.name, pattern)]
        if matched:
            reasons[layer.kernel] = f"excluded by {matched[0]!r}"
        elif layer.measured and min(shape.rows, shape.columns) == 1:
            which = "its one matrix is" if shape.matrices == 1 else f"each of its {shape.matrices} matrices is"
            reasons[layer.kernel] = f"{which} a vector, which has no spectrum"
        elif layer.measured and count < min_eigenvalues:
            reasons[layer.kernel] = f"{count} eigenvalues, fewer than min_eigenvalues={min_eigenvalues}"
        else:
            kept.append(layer)
    following = {path for layer in kept for path in layer.follows}
    left_out = {path: reason for path, reason in reasons.items() if path not in following}
    return Layers(kept, left_out, shapes_of(leaves))


def checked_patterns(
    argument_of: str, argument: str, given: Any, names: Sequence[str], paths: Iterable[Path] = ()
) -> Collection[str]:
    """The given patterns, one or several, after a check that each matches a name or a path."""
    patterns = (given,) if isinstance(given, str) else given
    if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidLayersError(
            f"{argument_of}: {argument}={short_repr(given)} must be a sequence of patterns, such as ('head',); give () for "
            "no pattern."
        )
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in (*names, *paths)):
            raise ValueError(
                f"{argument_of}: {argument}={pattern!r} matches no layer. Patterns are shell-style and match a layer's "
                f"whole name (`*` crosses `/`); the layers are: {', '.join(names) or 'none'}."
            )
    return patterns


def shapes_of(leaves: Mapping[Path, Any]) -> dict[Path, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in leaves.items() if is_float_array(leaf)}


def resolve_layers(layers: LayersOrFn, params: PyTree) -> tuple[Layers, dict[Path, Any]]:
    """The layers of `params`, checked against it, and its leaves by path.

    Where `optax.masked` or `optax.partition` hides a part of `params`, hidden kernels and followers take no part.

    Raises:
      TypeError: `layers` is not a sequence of layers, or does not return one.
      ValueError: a path is not in `params`, a path or a name is given twice, or axes do not fit.
    """
    leaves = leaves_by_path(params)
    found = _called(layers, params) if callable(layers) else layers
    if isinstance(found, (str, Mapping)) or not isinstance(found, Sequence):
        raise InvalidLayersError(
            f"layers={short_repr(found)}: give a sequence of tb_optax.Layer, or a function of params that returns one."
        )
    for layer in found:
        if not isinstance(layer, Layer):
            raise InvalidLayersError(
                f"layers holds {short_repr(layer)}, which is not a tb_optax.Layer; give tb_optax.Layer(name, kernel)."
            )
    reasons = dict(getattr(found, "left_out", {}))
    found, masked = _without_masked(found, params)
    for layer in found:
        _check_layer(layer, leaves)
    _check_unique("name", [layer.name for layer in found])
    _check_unique("path", [path for layer in found for path in (layer.kernel, *layer.follows)])
    of_layers = {path for layer in found for path in (layer.kernel, *layer.follows)}
    left_out = {
        path: "not among layers"
        for path, leaf in leaves.items()
        if path not in of_layers and is_float_array(leaf) and len(leaf.shape) >= 2
    }
    return Layers(found, left_out | reasons | masked, shapes_of(leaves)), leaves


def _without_masked(layers: Sequence[Layer], params: PyTree) -> tuple[Sequence[Layer], dict[Path, str]]:
    """The layers without what `optax.masked` or `optax.partition` hides; and the reasons, by hidden kernel."""
    is_masked = lambda node: isinstance(node, optax.MaskedNode)
    nodes = jax.tree.leaves(params, is_leaf=is_masked)
    if not any(map(is_masked, nodes)):
        return layers, {}
    paths = leaf_paths(params, is_leaf=is_masked)
    hidden = {path for path, node in zip(paths, nodes, strict=True) if is_masked(node)}
    seen = [layer for layer in layers if layer.kernel not in hidden]
    follows = lambda layer: tuple(path for path in layer.follows if path not in hidden)
    reasons = {layer.kernel: "a mask hides it" for layer in layers if layer.kernel in hidden}
    return [dataclasses.replace(layer, follows=follows(layer)) for layer in seen], reasons


def _called(layers: Callable[[PyTree], Sequence[Layer]], params: PyTree) -> Sequence[Layer]:
    """Calls `layers`. A network or a forward pass, given by mistake, is callable too, and fails on parameters alone."""
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
            raise InvalidLayersError(
                f"Layer {layer.name!r}: {path!r} is not an array of real floating-point numbers; leave it out."
            )
    shape = kernel_shape(layer, leaves[layer.kernel].shape)
    if layer.measured and shape.eigenvalues < 2:
        raise ValueError(
            f"Layer {layer.name!r}: {layer.kernel!r} of shape {leaves[layer.kernel].shape} has {shape.eigenvalues} "
            "eigenvalues; a spectrum needs at least 2."
        )
    if layer.measured and min(shape.rows, shape.columns) == 1:
        raise ValueError(
            f"Layer {layer.name!r}: {layer.kernel!r} of shape {leaves[layer.kernel].shape} is read as {shape.matrices} "
            f"vectors, which have no spectrum; give other axes than reduction_axes={layer.reduction_axes} and "
            f"output_axes={layer.output_axes}."
        )
    for path in layer.follows:
        follower = leaves[path].shape
        for axis, size in zip(shape.layer_axes, shape.stack, strict=True):
            if axis >= len(follower) or follower[axis] != size:
                raise ValueError(
                    f"Layer {layer.name!r}: {path!r} of shape {follower} has no axis {axis} of size {size}, the layer "
                    f"axis of {layer.kernel!r}; leave it out of follows, or stack it like the kernel."
                )


def _check_unique(what: str, values: Sequence[str]) -> None:
    for value, count in collections.Counter(values).items():
        if count > 1:
            raise ValueError(f"layers has the {what} {value!r} {count} times; it can belong to one layer only.")
