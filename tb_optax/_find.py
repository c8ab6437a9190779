"""Reads the layers off a parameter tree.

A tree knows names and shapes, not what is done with them, so this module reads them by the conventions of Flax, Haiku,
Equinox and PyTorch. What no tree can tell is the order of the layers and which normalization belongs to which: for that,
`trace_layers` reads the forward pass.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from tb_optax._layers import (
    Layer,
    Layers,
    Path,
    PyTree,
    is_float_array,
    layer_names,
    leaves_by_path,
    path_name,
    select_layers,
    split_path,
)

_VECTOR_NAMES = frozenset({"bias", "b", "scale", "offset", "gamma", "beta", "mean", "var"})
_OUTPUT_FIRST = frozenset({"weight", "weights", "weight_ih", "weight_hh"})  # Equinox, PyTorch: (out, in, *window)
_WEIGHT_TO_BIAS = (("kernel", "bias"), ("weight", "bias"), ("w", "b"), ("W", "b"))
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$", re.IGNORECASE)


def find_layers(params: PyTree, *, exclude: Sequence[str] = (), min_eigenvalues: int = 50) -> Layers:
    """Finds the balanced layers of a network in its parameter tree.

    Every real floating-point array of two or more axes is a layer, except embeddings (by their name, or by an
    `Embedding` module around them), stacked vectors, and what `exclude` and `min_eigenvalues` leave out. Dense, attention
    and 1-D to 3-D convolution kernels are understood in the layouts of Flax Linen and NNX, Haiku and JAX at large (inputs
    before outputs, windows first) and of Equinox and PyTorch (`weight`: outputs first). A stack of layers (`nn.scan`,
    `jax.vmap`) is known by the extra leading axes of its biases and norms. A layer's bias, in the same module, takes
    the layer's scale.

    The order of a tree is not the order of the network, so the first and the last layer, which TempBalance leaves alone
    (Zhou et al., 2023, Section 4.1), must be named in `exclude`; the scale of a normalization stays 1. `trace_layers`
    knows both.

    Args:
      params: parameters: Linen or Haiku params, an NNX state, an Equinox module, any pytree of arrays or of
        `jax.ShapeDtypeStruct`s.
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
            "optax.inject_hyperparams, give static_args=('metric', 'assign', 'layers'): it takes functions for schedules.)"
        )
    leaves = leaves_by_path(params)
    modules = _modules(leaves)
    left_out: dict[Path, str] = {}
    kernels: list[Path] = []
    embeddings = _embedding_paths(params)
    for path, leaf in leaves.items():
        if not hasattr(leaf, "shape") or len(leaf.shape) < 2:
            continue
        reason = "an embedding" if path in embeddings else _why_not_a_kernel(path, modules, leaves)
        if reason is None:
            kernels.append(path)
        else:
            left_out[path] = reason
    names = layer_names(kernels)
    layers = [_layer(names[path], path, modules, leaves) for path in kernels]
    return select_layers(layers, leaves, left_out, exclude, min_eigenvalues, "find_layers")


def _modules(leaves: Mapping[Path, Any]) -> dict[str, dict[str, Path]]:
    """Array leaves grouped by module, then by their names in it."""
    modules: dict[str, dict[str, Path]] = {}
    for path, leaf in leaves.items():
        if hasattr(leaf, "shape"):
            module, name = split_path(path)
            modules.setdefault(module, {})[name] = path
    return modules


def _embedding_paths(params: PyTree) -> set[Path]:
    """Paths of the arrays inside modules whose type is called `Embedding` (Equinox keeps an embedding in `weight`)."""
    is_embedding = lambda node: type(node).__name__ in ("Embedding", "Embed")
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_embedding)
    inside = [(key_path, node) for key_path, node in nodes if is_embedding(node)]
    return {path_name((*outer, *inner)) for outer, node in inside for inner, _ in jax.tree_util.tree_leaves_with_path(node)}


def _why_not_a_kernel(path: Path, modules: Mapping[str, Mapping[str, Path]], leaves: Mapping[Path, Any]) -> str | None:
    """Why an array of two or more axes is no kernel; None if it is one."""
    leaf = leaves[path]
    module, name = split_path(path)
    names = modules[module]
    if not is_float_array(leaf):
        return f"its dtype, {leaf.dtype}, is no real floating point"
    if name in _VECTOR_NAMES or any(
        other in _VECTOR_NAMES and leaves[names[other]].shape == leaf.shape for other in names if other != name
    ):
        return "a stack of vectors, by its name or its bias"
    parent = split_path(module)[1]
    if _EMBEDDING.search(name) or (name == "weight" and len(leaf.shape) == 2 and _EMBEDDING.search(parent)):
        return "an embedding"
    return None


def _layer(layer_name: str, kernel: Path, modules: Mapping[str, Mapping[str, Path]], leaves: Mapping[Path, Any]) -> Layer:
    """Describes a kernel by the conventions for its name, its shape and its bias."""
    module, name = split_path(kernel)
    shape = leaves[kernel].shape
    bias = _bias(kernel, modules[module], leaves)
    bias_shape = None if bias is None else tuple(leaves[bias].shape)
    attention = None if name in _OUTPUT_FIRST else _attention_axes(module, len(shape), bias_shape, shape, modules)
    if attention is not None:
        stacked, reduction_axes, output_axes = attention
    elif name in _OUTPUT_FIRST:
        stacked = _stacked_axes(module, shape, bias_shape, modules, leaves)
        reduction_axes, output_axes = (stacked + 1,), (stacked,)
    else:
        stacked = _stacked_axes(module, shape, bias_shape, modules, leaves)
        reduction_axes, output_axes = (len(shape) - 2,), (len(shape) - 1,)
        if bias_shape is not None and stacked == 0 and 1 < len(bias_shape) < len(shape):
            # A dense kernel with several output axes (`DenseGeneral`), as its bias shows.
            output_axes = tuple(range(len(shape) - len(bias_shape), len(shape)))
            reduction_axes = tuple(range(output_axes[0]))
    layer_axes = tuple(range(stacked))
    follows = ()
    if bias is not None and bias_shape is not None and bias_shape[:stacked] == tuple(shape[:stacked]):
        follows = (bias,)
    return Layer(layer_name, kernel, follows, reduction_axes, output_axes, layer_axes)


def _bias(kernel: Path, names: Mapping[str, Path], leaves: Mapping[Path, Any]) -> Path | None:
    """The bias of a kernel in the same module: by name, or the one vector beside the one kernel."""
    _, name = split_path(kernel)
    for weight_name, bias_name in _WEIGHT_TO_BIAS:
        candidate = name.replace(weight_name, bias_name, 1)
        if weight_name in name and candidate in names:
            return names[candidate]
    if len(names) == 2:
        (other,) = (path for path in names.values() if path != kernel)
        if len(leaves[other].shape) == 1 and leaves[other].shape[0] in leaves[kernel].shape:
            return other
    return None


def _attention_axes(
    module: str,
    ndim: int,
    bias_shape: tuple[int, ...] | None,
    shape: tuple[int, ...],
    modules: Mapping[str, Mapping[str, Path]],
) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """Stacked, reduction and output axes of Flax's attention kernels, or None for any other.

    Queries, keys and values are `(embed, heads, head_dim)`, the output is `(heads, head_dim, embed)`: three axes, and no
    convolution. They are known by the module's name and its siblings.
    """
    parent, own = split_path(module)
    siblings = {split_path(other)[1] for other in modules if split_path(other)[0] == parent}
    if ndim < 3 or own not in ("query", "key", "value", "out") or not {"query", "key", "value"} <= siblings:
        return None
    output = shape[-1:] if own == "out" else shape[-2:]
    if bias_shape is not None and bias_shape != tuple(shape[:-3]) + tuple(output):
        return None  # A stack of plain dense layers that happen to be called so.
    stacked = ndim - 3
    if own == "out":
        return stacked, (stacked, stacked + 1), (stacked + 2,)
    return stacked, (stacked,), (stacked + 1, stacked + 2)


def _stacked_axes(
    module: str,
    shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    modules: Mapping[str, Mapping[str, Path]],
    leaves: Mapping[Path, Any],
) -> int:
    """How many leading axes of a kernel stack layers: as many as its bias has beyond the output axis.

    Without a bias, the nearest enclosing module that holds biases or norms answers, if all its arrays share those axes.
    """
    if bias_shape is not None:
        return _extra_axes(bias_shape, shape)
    scope = module
    while scope:
        scope, _ = split_path(scope)
        inside = {
            path: name
            for other, names in modules.items()
            if other == scope or not scope or other.startswith((scope + "/", scope + "."))
            for name, path in names.items()
        }
        vectors = [leaves[path].shape for path, name in inside.items() if name in _VECTOR_NAMES]
        if vectors:
            stacked = min(len(vector) for vector in vectors) - 1
            shared = all(tuple(leaves[path].shape[:stacked]) == tuple(shape[:stacked]) for path in inside)
            return stacked if shared and stacked <= len(shape) - 2 else 0
    return 0


def _extra_axes(bias_shape: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Leading axes that a bias and its kernel share, before the bias's one output axis (and Equinox's window of ones)."""
    core = tuple(bias_shape)
    while len(core) > 1 and core[-1] == 1:
        core = core[:-1]
    stacked = max(len(core) - 1, 0)
    fits = core and core[:-1] == tuple(shape[:stacked]) and core[-1] in (shape[-1], shape[min(stacked, len(shape) - 1)])
    return stacked if fits and stacked <= len(shape) - 2 else 0
