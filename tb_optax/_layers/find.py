"""Reads the layers off a parameter tree.

A tree has names and shapes, but does not say how the network uses its arrays. This module reads arrays by the conventions
of Flax, Haiku, Equinox, PyTorch and TensorFlow (`conventions`), and by the arrays beside them. No tree shows the order of
the layers, or which normalization follows which layer: `trace_layers` reads the forward pass for that.

Example:
  The bias shows that this is a stack of three dense kernels, not a 1-D convolution.

  >>> import jax.numpy as jnp
  >>> tree = _Tree({"blocks": {"kernel": jnp.ones((3, 64, 128)), "bias": jnp.ones((3, 128))}})
  >>> tree.follows("blocks/kernel")
  ('blocks/bias',)
  >>> tree.axes("blocks/kernel")
  KernelAxes(reduction=(1,), output=(2,), layer=(0,))
"""

import dataclasses
import fnmatch
import functools
import itertools
import re
from collections.abc import Collection, Sequence
from typing import get_args

import jax

from tb_optax._dtypes import is_float_array
from tb_optax._layers import conventions
from tb_optax._layers.conventions import Layout, MatrixAxes, Shape
from tb_optax._layers.layer import (
    Axes,
    KernelAxes,
    Layer,
    Layers,
    Path,
    PyTree,
    checked_patterns,
    layer_names,
    leaf_paths,
    leaves_by_path,
    select_layers,
    short_repr,
    split_path,
)

_EMBEDDING_TYPES = frozenset({"Embedding", "Embed"})
_NORM_TYPES = frozenset({"BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"})
_WEIGHT_TO_BIAS = (("kernel", "bias"), ("weights", "biases"), ("weight", "bias"), ("w", "b"), ("W", "b"))


def find_layers(
    params: PyTree,
    *,
    exclude: Sequence[str] = (),
    min_eigenvalues: int = 50,
    layout: Layout | None = None,
    unmeasured: Sequence[str] = (),
) -> Layers:
    """Finds the balanced layers of a network in its parameter tree.

    Every real floating-point array of two or more axes is a layer, except embeddings, other tables, biases and norms
    (recognised by their names or by the modules around them), and what `exclude` and `min_eigenvalues` leave out. A layer's
    bias, and the gain of its weight norm, take the layer's scale. Arrays are read by their names, shapes and neighbours:

    - Two axes: a dense kernel.
    - A stack of layers (`nn.scan`, `jax.vmap`) has layer axes in front, or one as its second axis. The extra axes of its
      bias show them or, if it has none, those of the biases and norms in the nearest module around it. Experts (`experts`,
      `moe` in the names) of three axes are a stack.
    - Attention kernels of three or more axes are recognised by their names (`query`, `q_proj`, `wq_b`, `kv_einsum`, `out`,
      `o_proj`, ...) and by the sizes of the output projection beside them.
    - Convolutions have a window in front (Flax, Haiku, TensorFlow: inputs before outputs) or at the end (PyTorch, Equinox:
      outputs first). In two and three dimensions, a window has at most 31 on a side. In one dimension it has at most 512 if
      a name or a bias says that it is a convolution; otherwise at most 16, and less than both other sizes.

    An array that fits several readings is left out, with the reason; `trace_layers`, which reads the forward pass, or a
    `Layer` settles it. A kernel whose matrices have a side of 1 (a depthwise convolution) is left out too: a vector has no
    spectrum.

    A tree does not show the order of the network. The paper leaves out the first and the last layer (Zhou et al., 2023,
    Section 4.1): name them in `exclude`, or use `trace_layers`, which finds them, and the normalization after each layer.

    Args:
      params: parameters: Linen or Haiku params, an NNX state, an Equinox module, any pytree of arrays or of
        shapes (`jax.ShapeDtypeStruct`).
      exclude: shell-style patterns (`fnmatch`) of the names of layers to leave out: `("conv1", "fc")`. A pattern matches
        a whole name; `*` crosses `/`.
      min_eigenvalues: layers with fewer eigenvalues are left out, because their fits are mostly noise.
      layout: whether convolutions have their outputs first (`"torch"`) or their window (`"jax"`), if sizes allow both. By
        default the name decides (`weight`: outputs first).
      unmeasured: patterns, as in `exclude`, of the arrays that get the greatest scale and no metric (`Layer.measured`). They
        match a layer's name, or the path of an array that would be left out, such as an embedding: `("*embed*", "lm_head")`
        for `llr`.

    Returns:
      The layers, in the order of the tree, with the reasons for what was left out. Print them to see how each was read.

    Raises:
      ValueError: a pattern matches nothing, `min_eigenvalues < 2`, `layout` is unknown, `params` is not a tree, or two of
        its paths are equal.
      TypeError: `exclude` or `unmeasured` is not a sequence of strings.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> params = {"dense": {"kernel": jnp.ones((64, 128)), "bias": jnp.ones(128)}, "head": {"kernel": jnp.ones((128, 10))}}
      >>> print(tb_optax.find_layers(params))
      dense: dense/kernel (64, 128), dense 64 x 128, + dense/bias
      left out: head/kernel (128, 10): 10 eigenvalues, fewer than min_eigenvalues=50
      1 layer, with 87% of the parameters
    """
    if params is None or (jax.tree_util.all_leaves([params]) and not hasattr(params, "shape")):
        raise ValueError(
            f"find_layers: params={short_repr(params)} is not a tree of named weights; give a network's parameters. (Only "
            "tb_optax.report takes the path of a checkpoint.)"
        )
    if hasattr(params, "shape"):
        raise ValueError(
            f"find_layers: params is a single array of shape {params.shape}, not a tree of named weights. (Under "
            "optax.inject_hyperparams, which treats functions as schedules, name 'layers' in static_args; for tempbalance, "
            "give static_args=('metric', 'assign', 'layers').)"
        )
    if layout is not None and layout not in get_args(Layout):
        raise ValueError(f"find_layers: layout={layout!r} is unknown; give 'torch', 'jax' or None.")
    tree = _Tree(params, layout)
    left_out: dict[Path, str] = {}
    axes: dict[Path, KernelAxes] = {}
    for path, leaf in tree.leaves.items():
        if hasattr(leaf, "shape") and len(leaf.shape) >= 2:
            found = tree.why_not_a_kernel(path) or tree.axes(path)
            if isinstance(found, str):
                left_out[path] = found
            else:
                axes[path] = found
    names = layer_names(axes)
    layers = [Layer(names[path], path, tree.follows(path), *axes[path]) for path in axes]
    layers = _not_measured(layers, left_out, unmeasured)
    return select_layers(layers, tree.leaves, left_out, exclude, min_eigenvalues, "find_layers")


def _not_measured(layers: list[Layer], left_out: dict[Path, str], unmeasured: Sequence[str]) -> list[Layer]:
    """Marks the layers that match a pattern as not measured, and adds the arrays of `left_out` that match one."""
    tables = [Layer(path, path, measured=False) for path in left_out]
    names = [layer.name for layer in (*layers, *tables)]
    patterns = checked_patterns("find_layers", "unmeasured", unmeasured, names)
    matches = lambda layer: any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in patterns)
    added = [table for table in tables if matches(table)]
    for table in added:
        del left_out[table.kernel]
    return [dataclasses.replace(layer, measured=not matches(layer)) for layer in layers] + added


find_all_layers = functools.partial(find_layers, min_eigenvalues=2)
"""`find_layers` with small layers too, for transformations that fit no spectrum."""


class _Tree:
    """A parameter tree, read by the names, shapes and neighbours of its real floating-point arrays."""

    def __init__(self, params: PyTree, layout: Layout | None = None):
        self.leaves = leaves_by_path(params)
        self._layout = layout
        self._shapes: dict[Path, Shape] = {
            path: tuple(leaf.shape) for path, leaf in self.leaves.items() if is_float_array(leaf)
        }
        self._modules: dict[str, dict[str, Path]] = {}
        for path in self._shapes:
            module, name = split_path(path)
            self._modules.setdefault(module, {})[name] = path
        self._embeddings = _arrays_of(params, _EMBEDDING_TYPES)
        norms = _arrays_of(params, _NORM_TYPES)
        self._gains = self._find_gains()
        self._vectors = {path for path in self._shapes if path in norms or self._is_vector_by_name(path)}
        self._vectors |= set(self._gains.values())
        kernels = [path for path, shape in self._shapes.items() if len(shape) >= 2 and path not in self._vectors]
        self._biases = {path: bias for path in kernels if (bias := self._find_bias(path)) is not None}
        # Biases known by their place only, and an affine norm's `weight`, which is shaped like its bias.
        self._vectors |= set(self._biases.values())
        self._vectors |= {
            path
            for path in kernels
            if any(other in self._vectors and self._shapes[other] == self._shapes[path] for other in self._beside(path))
        }

    def _find_gains(self) -> dict[Path, Path]:
        """The gain of each kernel under weight norm: `weight_g` beside `weight_v`."""
        gains = {}
        for names in self._modules.values():
            for name, path in names.items():
                gain = names.get(name.removesuffix("_v") + "_g") if name.endswith("_v") else None
                if gain is not None and len(self._shapes[path]) >= 2:
                    gains[path] = gain
        return gains

    def _is_vector_by_name(self, path: Path) -> bool:
        """Whether its name is a bias's or a norm's. `b` of two axes is one only if an array beside it has the same stack."""
        name, (*stack, _) = split_path(path)[1], self._shapes[path] or (1,)
        if len(stack) == 1 and name in ("weight", "w") and conventions.NORM.search(_role(path)[1]):
            return True  # A stack of norms without biases.
        if not conventions.FACTOR_OR_BIAS.search(name):
            return conventions.VECTOR.search(name) is not None
        stacked = [
            self._shapes[other][: len(stack)] for other in self._beside(path) if len(self._shapes[other]) > len(stack) + 1
        ]
        return sum(size > 1 for size in self._shapes[path]) < 2 or tuple(stack) in stacked

    def follows(self, kernel: Path) -> tuple[Path, ...]:
        return tuple(each[kernel] for each in (self._biases, self._gains) if kernel in each)

    def why_not_a_kernel(self, path: Path) -> str | None:
        """Why an array of two or more axes is not a kernel; None if it is one."""
        if path not in self._shapes:
            return f"its dtype, {self.leaves[path].dtype}, is not real floating-point"
        if path in self._vectors:
            return "a bias or normalization"
        name = split_path(path)[1]
        if path in self._embeddings or conventions.EMBEDDING.search(name) or self._is_embedding_by_module(path):
            return "an embedding"
        return "a table or a buffer, by its name" if conventions.TABLE.search(name) else None

    def _is_embedding_by_module(self, path: Path) -> bool:
        """Whether the module says so, in flat names (PyTorch, Keras). Unlike dense layers, embeddings have no bias."""
        components = _components(path)
        if len(self._shapes[path]) != 2 or path in self._biases or not (components[0] == "weight" or "vars" in components):
            return False
        module = _first_telling(components)
        return bool(conventions.EMBEDDING.search(module) or conventions.TABLE.search(module))

    def axes(self, kernel: Path) -> KernelAxes | str:
        """The kernel's axes; the reason if no reading, or more than one, fits its names, shape and neighbours."""
        if kernel in self._biases:
            return self._axes_by_bias(kernel, _without_trailing_ones(self._shapes[self._biases[kernel]]))
        shape = self._shapes[kernel]
        stack = self._stack_by_neighbours(kernel)
        # If no neighbour shows a stack, attention of four axes may be a stack.
        for layer_axes in (stack,) if stack else ((), tuple(range(len(shape) - 3))):
            matrix = self._attention_axes(kernel, layer_axes)
            if matrix is not None:
                return _with_stack(shape, layer_axes, matrix)
        rest = _without(shape, stack)
        if len(rest) == 2:
            return _with_stack(shape, stack, self._dense_axes(kernel))
        components = _components(kernel)
        if len(rest) == 3 and any(conventions.EXPERTS.search(component) for component in components):
            expert = next(axis for axis in range(len(shape)) if axis not in stack)
            return _with_stack(shape, tuple(sorted((expert, *stack))), self._dense_axes(kernel))
        if self._is_attention_by_name(kernel):
            return _ambiguous(
                "an attention kernel by its name, but no output projection beside it shows which axis is heads"
            )
        said = any(conventions.CONVOLUTION.search(component) for component in components)
        if len(rest) == 3 and not said and not self._vectors:
            return _ambiguous(f"a convolution, or a stack of {rest[0]}: no bias and no norm in the tree shows which")
        matrix = conventions.convolution_axes(rest, outputs_first=self._outputs_first(kernel), said=said)
        if matrix is None:
            return _ambiguous(f"a stack, or a product over several axes; no part of {rest} can be a convolution's window")
        return _with_stack(shape, stack, matrix)

    def _axes_by_bias(self, kernel: Path, bias: Shape) -> KernelAxes | str:
        """The reading, among all stacks that the bias fits, whose outputs have the bias's shape."""
        shape = self._shapes[kernel]
        stacks = [tuple(range(axes)) for axes in reversed(range(max(len(bias), 1)))] + [(1,)] * (len(bias) > 1)
        for stack in stacks:
            if _along(shape, stack) != _along(bias, stack):
                continue
            outputs = _without(bias, stack)
            matrix = self._attention_axes(kernel, stack) or self._dense_or_convolution_axes(kernel, stack, outputs)
            if matrix is not None and (bias == outputs[:1] or _along(_without(shape, stack), matrix.output) == outputs):
                return _with_stack(shape, stack, matrix)
        return f"its bias of shape {bias} does not show its axes; describe it in a Layer, or use trace_layers"

    def _beside(self, path: Path) -> list[Path]:
        return [other for other in self._modules[split_path(path)[0]].values() if other != path]

    def _find_bias(self, kernel: Path) -> Path | None:
        """The bias of a kernel in the same module: by name, or the one vector beside the one kernel."""
        module, name = split_path(kernel)
        name = name.removesuffix("_v") if kernel in self._gains else name
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

    def _is_attention_by_name(self, kernel: Path) -> bool:
        role = _role(kernel)[1]
        return bool(conventions.ATTENTION_INPUT.search(role) or conventions.ATTENTION_OUTPUT.search(role))

    def _attention_axes(self, kernel: Path, stack: Axes) -> MatrixAxes | None:
        """The axes of an attention kernel of three or more axes, by its name and the projections beside it."""
        module, role = _role(kernel)
        if len(self._shapes[kernel]) - len(stack) < 3:
            return None
        beside = {
            _role(path)[1]: _without(self._shapes[path], stack)
            for path in self._shapes
            if path not in self._vectors and len(self._shapes[path]) > len(stack) and _role(path)[0] == module
        }
        if conventions.ATTENTION_OUTPUT.search(role):
            inputs = [shape for other, shape in beside.items() if conventions.ATTENTION_INPUT.search(other)]
            return conventions.attention_output_axes(beside[role], inputs)
        if conventions.ATTENTION_INPUT.search(role):
            outputs = [shape for other, shape in beside.items() if conventions.ATTENTION_OUTPUT.search(other)]
            return conventions.attention_input_axes(beside[role], outputs[0] if len(outputs) == 1 else None)
        return None

    def _outputs_first(self, kernel: Path) -> bool:
        return self._layout == "torch" or (self._layout is None and "weight" in split_path(kernel)[1])

    def _dense_axes(self, kernel: Path) -> MatrixAxes:
        return conventions.sides_and_window(self._shapes[kernel][-2:], outputs_first=self._outputs_first(kernel))[0]

    def _dense_or_convolution_axes(self, kernel: Path, stack: Axes, outputs: Shape) -> MatrixAxes | None:
        """The axes of a dense kernel or a convolution with a bias of these outputs; None if there are too few."""
        shape = _without(self._shapes[kernel], stack)
        count = max(1, len(outputs))
        if len(shape) <= count:
            return None
        if count > 1:  # Flax's DenseGeneral, as its bias shows.
            return MatrixAxes(tuple(range(len(shape) - count)), tuple(range(len(shape) - count, len(shape))))
        outputs_first = self._outputs_first(kernel)
        if outputs:
            # The size of the bias decides before the name does: GPT-2's `weight` has its inputs first.
            candidates = min(2, len(shape) - 1)  # A convolution has inputs and outputs at one end.
            at_start, at_end = outputs[0] in shape[:candidates], outputs[0] in shape[-candidates:]
            outputs_first = outputs_first if at_start == at_end else at_start
        axes, window = conventions.sides_and_window(shape, outputs_first=outputs_first)
        return axes if not window or conventions.can_be_window(window, [], said=True) else None

    def _stack_by_neighbours(self, kernel: Path) -> Axes:
        """The layer axes of a kernel without a bias: those it shares with every array of the nearest module around it.

        The biases and norms of that module show how many there are, because without a stack they have one axis.
        """
        shape = self._shapes[kernel]
        scope, _ = split_path(kernel)
        while True:
            inside = [path for path in self._shapes if not scope or path.startswith((scope + "/", scope + "."))]
            vectors = [self._shapes[path] for path in inside if path in self._vectors]
            if vectors or not scope:
                break
            scope, _ = split_path(scope)
        if not vectors:
            return ()
        if len(shape) > 2 and shape[1] == 1 and all(vector[1:2] == (1,) and vector[:1] != (1,) for vector in vectors):
            return (1,)  # A stack of one layer along its second axis.
        most = min([len(shape) - 2, *(len(_without_trailing_ones(vector)) - 1 for vector in vectors)])
        shared = lambda axis: (
            self._shapes[kernel][axis] > 1
            and all(_along(self._shapes[path], (axis,)) == shape[axis : axis + 1] for path in inside)
        )
        leading = tuple(itertools.takewhile(shared, range(most)))
        return leading or ((1,) if most >= 1 and shared(1) else ())


def _arrays_of(params: PyTree, types: Collection[str]) -> set[Path]:
    """Paths of the arrays held directly by modules of these types: Equinox calls most arrays `weight`."""
    is_module = lambda node: type(node).__name__ in types
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_module)
    modules = {jax.tree_util.keystr(outer, simple=True, separator="/") for outer, node in nodes if is_module(node)}
    return {path for path in leaf_paths(params) if modules and path.rpartition("/")[0] in modules}


def _components(path: Path) -> list[str]:
    """The names in a path, from its last one to its first."""
    module, name = split_path(path)
    return [name, *reversed(re.split(r"[/.]", module))] if module else [name]


def _first_telling(components: Sequence[str]) -> str:
    return next((name for name in components if not conventions.GENERIC.search(name)), "")


def _role(path: Path) -> tuple[str, str]:
    """The module around a projection, and its name in that module: `attn` and `q_proj` of `attn/q_proj/kernel`."""
    components = _components(path)
    if conventions.GENERIC.search(components[0]) and len(components) > 1:
        components = components[1:]
    return "/".join(reversed(components[1:])), components[0]


def _with_stack(shape: Shape, stack: Axes, matrix: MatrixAxes) -> KernelAxes:
    own = [axis for axis in range(len(shape)) if axis not in stack]
    reduction, output = (tuple(own[axis] for axis in axes) for axes in matrix)
    return KernelAxes(reduction, output, stack)


def _ambiguous(readings: str) -> str:
    return f"several readings: {readings}; use trace_layers, or describe it in a Layer"


def _along(shape: Shape, axes: Axes) -> Shape:
    return tuple(shape[axis] for axis in axes if axis < len(shape))


def _without(shape: Shape, axes: Axes) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _without_trailing_ones(shape: Shape) -> Shape:
    """The shape of a bias without Equinox's window of ones."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
