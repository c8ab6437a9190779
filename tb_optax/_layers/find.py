"""Reads the layers off a parameter tree.

A tree knows names and shapes, not what is done with them, so this module reads them by the conventions of Flax, Haiku,
Equinox and PyTorch. What no tree can tell is the order of the layers and which normalization belongs to which: for that,
`trace_layers` reads the forward pass.

Example:
  Neither name nor shape says that this is a stack of three dense kernels rather than a 1-D convolution; its bias does.

  >>> import jax.numpy as jnp
  >>> tree = _Tree({"blocks": {"kernel": jnp.ones((3, 64, 128)), "bias": jnp.ones((3, 128))}})
  >>> tree.follows("blocks/kernel")
  ('blocks/bias',)
  >>> tree.conventional_axes("blocks/kernel")
  KernelAxes(reduction=(1,), output=(2,), layer=(0,))
"""

import functools
import itertools
import re
from collections.abc import Collection, Sequence
from typing import TypeAlias

import jax

from tb_optax._dtypes import is_float_array
from tb_optax._layers.layer import (
    Axes,
    KernelAxes,
    Layer,
    Layers,
    Path,
    PyTree,
    layer_names,
    leaves_by_path,
    path_name,
    select_layers,
    split_path,
)

# Biases and norms; stacked, they have two axes and more.
_VECTOR = re.compile(r"(^|_)(bias|biases|scale|offset|gamma|beta|mean|var)(_|\d|$)|[Nn]orm_?\d*$")
_B = re.compile(r"^b(_|\d|$)")  # a bias, or the second factor of a low-rank update (LoRA)
_EMBEDDING = re.compile(r"embed|(^|_)emb(_|\d|$)|^wte$|^wpe$|^shared$", re.IGNORECASE)
_EMBEDDING_TYPES = frozenset({"Embedding", "Embed"})
_NORM_TYPES = frozenset({"BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"})
_WEIGHT_TO_BIAS = (("kernel", "bias"), ("weights", "biases"), ("weight", "bias"), ("w", "b"), ("W", "b"))

Shape: TypeAlias = tuple[int, ...]


def find_layers(params: PyTree, *, exclude: Sequence[str] = (), min_eigenvalues: int = 50) -> Layers:
    """Finds the balanced layers of a network in its parameter tree.

    Every real floating-point array of two or more axes is a layer, except embeddings (by their name, or by an
    `Embedding` module around them), biases and norms, and what `exclude` and `min_eigenvalues` leave out. Dense, attention
    and 1-D to 3-D convolution kernels are understood in the layouts of Flax Linen and NNX, Haiku and JAX at large (inputs
    before outputs, windows first) and of Equinox and PyTorch (`weight`: outputs first). A layer's bias, in the same
    module, takes the layer's scale.

    A stack of layers (`nn.scan`, `jax.vmap`) is known by the extra axes of its bias or, where it has none, of the biases
    and norms in the nearest module around it: leading axes, or the second one (an `nn.scan` over axis 1).
    Where sizes allow several readings, leading axes come first. Where no bias or norm is near, nothing in a tree
    tells a stack of dense kernels from a 1-D convolution, nor a dense kernel of three axes (`DenseGeneral`): it is read as
    a convolution, whose matrices share one spectrum. `trace_layers` knows.

    The order of a tree is not the order of the network, so the first and the last layer, which TempBalance leaves alone
    (Zhou et al., 2023, Section 4.1), must be named in `exclude`; the scale of a normalization stays 1. `trace_layers`
    knows both.

    Args:
      params: parameters: Linen or Haiku params, an NNX state, an Equinox module, any pytree of arrays or of
        shapes (`jax.ShapeDtypeStruct`).
      exclude: shell-style patterns (`fnmatch`) of the names of layers to leave out: `("conv1", "fc")`. A pattern matches
        a whole name; `*` crosses `/`.
      min_eigenvalues: layers with fewer eigenvalues are left out: too few for a fit.

    Returns:
      The layers, in the order of the tree, with the reasons for what was left out.

    Raises:
      ValueError: a pattern matches nothing, `min_eigenvalues < 2`, or two paths of `params` read alike.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> params = {"dense": {"kernel": jnp.ones((64, 128)), "bias": jnp.ones(128)}, "head": {"kernel": jnp.ones((128, 10))}}
      >>> print(tb_optax.find_layers(params))
      dense: dense/kernel + dense/bias
      left out: head/kernel: 10 eigenvalues, fewer than min_eigenvalues=50
    """
    if hasattr(params, "shape"):
        raise ValueError(
            f"find_layers: params is a single array of shape {params.shape}, not a tree of named weights. (Under "
            "optax.inject_hyperparams, which takes functions for schedules, name 'layers' in static_args; for tempbalance, "
            "give static_args=('metric', 'assign', 'layers').)"
        )
    tree = _Tree(params)
    left_out: dict[Path, str] = {}
    axes: dict[Path, KernelAxes] = {}
    for path, leaf in tree.leaves.items():
        if hasattr(leaf, "shape") and len(leaf.shape) >= 2:
            found = tree.why_not_a_kernel(path) or tree.conventional_axes(path)
            if isinstance(found, str):
                left_out[path] = found
            else:
                axes[path] = found
    names = layer_names(axes)
    layers = [Layer(names[path], path, tree.follows(path), *axes[path]) for path in axes]
    return select_layers(layers, tree.leaves, left_out, exclude, min_eigenvalues, "find_layers")


find_all_layers = functools.partial(find_layers, min_eigenvalues=2)
"""`find_layers` however small they are: for what needs no fit of a spectrum."""


class _Tree:
    """A parameter tree, read by the names, shapes and neighbours of its real floating-point arrays."""

    def __init__(self, params: PyTree):
        self.leaves = leaves_by_path(params)
        self._shapes: dict[Path, Shape] = {
            path: tuple(leaf.shape) for path, leaf in self.leaves.items() if is_float_array(leaf)
        }
        self._modules: dict[str, dict[str, Path]] = {}
        for path in self._shapes:
            module, name = split_path(path)
            self._modules.setdefault(module, {})[name] = path
        self._embeddings = _arrays_of(params, _EMBEDDING_TYPES)
        norms = _arrays_of(params, _NORM_TYPES)
        self._vectors = {path for path in self._shapes if path in norms or self._is_vector_by_name(path)}
        kernels = [path for path, shape in self._shapes.items() if len(shape) >= 2 and path not in self._vectors]
        self._biases = {path: bias for path in kernels if (bias := self._find_bias(path)) is not None}
        # Biases known by their place only, and an affine norm's `weight`, which is shaped like its bias.
        self._vectors |= set(self._biases.values())
        self._vectors |= {
            path
            for path in kernels
            if any(other in self._vectors and self._shapes[other] == self._shapes[path] for other in self._beside(path))
        }

    def _is_vector_by_name(self, path: Path) -> bool:
        """Whether its name is a bias's or norm's; `b` with two axes is one only if stacked as another array beside it is."""
        name, (*stack, _) = split_path(path)[1], self._shapes[path] or (1,)
        if not _B.search(name):
            return _VECTOR.search(name) is not None
        stacked = [
            self._shapes[other][: len(stack)] for other in self._beside(path) if len(self._shapes[other]) > len(stack) + 1
        ]
        return sum(size > 1 for size in self._shapes[path]) < 2 or tuple(stack) in stacked

    def follows(self, kernel: Path) -> tuple[Path, ...]:
        return (self._biases[kernel],) if kernel in self._biases else ()

    def why_not_a_kernel(self, path: Path) -> str | None:
        """Why an array of two or more axes is no kernel; None if it is one."""
        if path not in self._shapes:
            return f"its dtype, {self.leaves[path].dtype}, is no real floating point"
        module, name = split_path(path)
        # In PyTorch's flat names only the module says so; its convolutions (`patch_embed`) have more axes.
        torch_embedding = (
            path.endswith(".weight") and len(self._shapes[path]) == 2 and _EMBEDDING.search(split_path(module)[1])
        )
        if path in self._embeddings or _EMBEDDING.search(name) or torch_embedding:
            return "an embedding"
        return "a bias or normalization" if path in self._vectors else None

    def conventional_axes(self, kernel: Path) -> KernelAxes | str:
        """The kernel's axes by the conventions for its name, shape and bias; why not, if none fits."""
        shape = self._shapes[kernel]
        bias = self._shapes[self._biases[kernel]] if kernel in self._biases else None
        if bias is None:
            # Attention kernels are known by their names and shapes too, so that they need no neighbours.
            stacks = [self._stack_by_neighbours(kernel), tuple(range(len(shape) - 3))]
        else:
            bias = _without_trailing_ones(bias)
            stacks = [tuple(range(axes)) for axes in reversed(range(max(len(bias), 1)))] + [(1,)] * (len(bias) > 1)
            stacks = [stack for stack in stacks if _along(shape, stack) == _along(bias, stack)]
        for read in (self._attention_axes, self._dense_or_conv_axes):
            for stack in stacks:
                bias_slice = None if bias is None else _without(bias, stack)
                reading = read(kernel, stack, bias_slice)
                if reading is None:
                    continue
                reduction, output = reading
                if bias_slice is None or bias == bias_slice[:1] or _along(_without(shape, stack), output) == bias_slice:
                    own = [axis for axis in range(len(shape)) if axis not in stack]
                    return KernelAxes(tuple(own[axis] for axis in reduction), tuple(own[axis] for axis in output), stack)
        return f"its bias of shape {bias} does not tell its axes; describe it in a Layer, or use trace_layers"

    def _beside(self, path: Path) -> list[Path]:
        return [other for other in self._modules[split_path(path)[0]].values() if other != path]

    def _find_bias(self, kernel: Path) -> Path | None:
        """The bias of a kernel in the same module: by name, or the one vector beside the one kernel."""
        module, name = split_path(kernel)
        for weight_name, bias_name in _WEIGHT_TO_BIAS:
            candidate = name.replace(weight_name, bias_name, 1)
            bias = self._modules[module].get(candidate) if weight_name in name else None
            if bias is not None and len(_without_trailing_ones(self._shapes[bias])) < len(self._shapes[kernel]):
                return bias
        beside = self._beside(kernel)
        if len(beside) == 1 and split_path(beside[0])[1][:1] in tuple("b0123456789"):
            shape, (*stack, size) = self._shapes[kernel], self._shapes[beside[0]] or (0,)
            if size in shape and tuple(stack) == shape[: len(stack)] and len(stack) <= len(shape) - 2:
                return beside[0]
        return None

    def _attention_axes(self, kernel: Path, stack: Axes, bias: Shape | None) -> tuple[Axes, Axes] | None:
        """Reduction and output axes of one of Flax's attention kernels, or None for any other.

        Queries, keys and values are `(embed, heads, head_dim)`, the output is `(heads, head_dim, embed)`: three axes, and
        no convolution.
        """
        del bias
        module, name = split_path(kernel)
        parent, own = split_path(module)
        kernel_of = lambda module: self._modules.get(f"{parent}/{module}" if parent else module, {}).get("kernel")
        family = [kernel_of(module) for module in ("query", "key", "value", "out")]
        if name != "kernel" or kernel not in family or None in family:
            return None
        query, key, value, out = (_without(self._shapes[path], stack) for path in family if path is not None)
        if not len(query) == len(key) == len(value) == len(out) == 3 or query[1:] != key[1:] or value[1:] != out[:2]:
            return None  # Dense layers that happen to be called so.
        return ((0, 1), (2,)) if own == "out" else ((0,), (1, 2))

    def _dense_or_conv_axes(self, kernel: Path, stack: Axes, bias: Shape | None) -> tuple[Axes, Axes] | None:
        """Reduction and output axes of one kernel of a stack, or None if there are too few."""
        shape = _without(self._shapes[kernel], stack)
        outputs = 1 if bias is None else max(1, len(bias))
        if len(shape) <= outputs:
            return None
        if outputs > 1:  # Flax's DenseGeneral, as its bias shows
            return tuple(range(len(shape) - outputs)), tuple(range(len(shape) - outputs, len(shape)))
        outputs_first = "weight" in split_path(kernel)[1]
        if bias:
            # The size of the bias may tell what the name does not: GPT-2's `weight` has its inputs first.
            candidates = min(2, len(shape) - 1)  # A convolution has inputs and outputs at one end.
            at_start, at_end = bias[0] in shape[:candidates], bias[0] in shape[-candidates:]
            outputs_first = outputs_first if at_start == at_end else at_start
        return ((1,), (0,)) if outputs_first else ((len(shape) - 2,), (len(shape) - 1,))

    def _stack_by_neighbours(self, kernel: Path) -> Axes:
        """The axes that stack a kernel without a bias: those it shares with all that is in the same stack.

        How many there are shows in the biases and norms of the nearest module around it: unstacked, they have one axis.
        """
        shape = self._shapes[kernel]
        scope, _ = split_path(kernel)
        while True:
            inside = [path for path in self._shapes if not scope or path.startswith((scope + "/", scope + "."))]
            vectors = [_without_trailing_ones(self._shapes[path]) for path in inside if path in self._vectors]
            if vectors or not scope:
                break
            scope, _ = split_path(scope)
        most = min([len(shape) - 2, *(len(vector) - 1 for vector in vectors)]) if vectors else 0
        shared = lambda axis: (
            shape[axis] > 1 and all(_along(self._shapes[path], (axis,)) == shape[axis : axis + 1] for path in inside)
        )
        leading = tuple(itertools.takewhile(shared, range(most)))
        return leading or ((1,) if most >= 1 and shared(1) else ())


def _arrays_of(params: PyTree, types: Collection[str]) -> set[Path]:
    """Paths of the arrays held directly by modules of these types: Equinox calls most arrays `weight`."""
    is_module = lambda node: type(node).__name__ in types
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_module)
    return {
        path_name((*outer, *inner))
        for outer, node in nodes
        if is_module(node)
        for inner, _ in jax.tree_util.tree_leaves_with_path(node)
        if len(inner) == 1
    }


def _along(shape: Shape, axes: Axes) -> Shape:
    return tuple(shape[axis] for axis in axes if axis < len(shape))


def _without(shape: Shape, axes: Axes) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _without_trailing_ones(shape: Shape) -> Shape:
    """The shape of a bias without Equinox's window of ones."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
