"""Reads the layers off the forward pass: their axes, their order, and what follows them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax

from tb_optax._dtypes import is_float_array
from tb_optax._layers.axes import parameter
from tb_optax._layers.findings import Findings
from tb_optax._layers.jaxpr import JaxprReader
from tb_optax._layers.layer import (
    KernelAxes,
    Layer,
    Layers,
    Path,
    PyTree,
    layer_names,
    leaves_by_path,
    select_layers,
    short_repr,
    split_path,
)


def trace_layers(
    fn: Callable[..., Any],
    *args: Any,
    wrt: Any = None,
    exclude: Sequence[str] = (),
    min_eigenvalues: int = 50,
    first_and_last: bool | Literal["unmeasured"] = False,
) -> Layers:
    """Finds the balanced layers of a network in its forward pass.

    Traces `fn(params, *args)` without running it. The matrix products and convolutions in it show which parameters are
    layers, in which order, along which axes. What is added to their outputs, or multiplied with them, shows which biases and
    normalizations follow which layer. `trace_layers` sees through `jit`, `scan` (each slice is a layer of its own), `remat`,
    `cond`, `while`, `shard_map`, `custom_jvp` and `custom_vjp`.

    - A normalization follows the layer right before it. After a nonlinearity, pooling or the sum of two branches, it follows
      no layer. A parameter that is applied to several layers follows none of them.
    - If kernels are joined into one array before their product (`concatenate`, `stack`; Linen's `OptimizedLSTMCell`), each
      is a layer. Parameters that are joined in the same way, or meet a kernel's part of the result, follow that kernel.
    - If a matrix is multiplied with a learned vector (the query of an attention pool) and with nothing else, it is a layer.
      Two matrices that are only multiplied with each other (a low-rank adapter) are left out: either may be the layer.
    - A convolution whose stride is its window is read as one matrix that multiplies patches.
    - If every expert is given every token, each expert is a layer.
    - Matrices that a Pallas kernel or a callback takes are left out: a jaxpr does not show what is done with them.

    The first and the last layer that read data are left out (Zhou et al., 2023, Section 4.1), with all kernels that read the
    same data (the gates of an LSTM) or are joined to theirs. An embedding lookup counts as a first layer. A stack that is
    scanned over counts as neither, because it holds more than one layer.

    For an NNX module, `trace_layers(model, x)` traces a copy of the model in evaluation mode. Its parameters are the state
    that `nnx.Optimizer` sees, `nnx.state(model, wrt)`.

    Args:
      fn: the forward pass, or a loss; or an NNX module.
      *args: the arguments of `fn`. For a function, the first is the parameter tree that the optimizer will see, in which
        leaves that are not arrays stay as they are; the others are running statistics and data: arrays, shapes
        (`jax.ShapeDtypeStruct`) or trees of them. `fn` may also close over data. For a module, all are data.
      wrt: for a module, which of its variables are parameters, as in `nnx.Optimizer`; by default `nnx.Param`.
      exclude: shell-style patterns (`fnmatch`) of the names of further layers to leave out.
      min_eigenvalues: layers with fewer eigenvalues are left out.
      first_and_last: `True` to balance the first and the last layer too. Give it if `params` is only a part of the network,
        such as LoRA's factors, whose first and last layer are not the network's. `"unmeasured"` to return embeddings and the
        first and the last layer with `Layer.measured=False`: they have no metric, and get the greatest scale (see `llr`).

    Returns:
      The layers in the order in which `fn` first uses them, with the reasons for what was left out. Stacks of biases and
      scales are in neither, though they have two or more axes.

    Raises:
      ValueError: a pattern of `exclude` matches nothing, `min_eigenvalues < 2`, `first_and_last` is unknown, two paths of
        `params` are equal, or `wrt` is given without an NNX module.
      TypeError: `fn` is not a function, `params` is missing, or `exclude` is not a sequence of strings.
      NotImplementedError: this version of JAX writes a jaxpr that cannot be read.

    Example:
      >>> import jax, jax.numpy as jnp, tb_optax
      >>> params = {name: {"w": jnp.ones((64, 64)), "b": jnp.ones(64)} for name in ("stem", "hidden", "head")}
      >>> def apply(params, x):
      ...   for name in ("stem", "hidden", "head"):
      ...     x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"])
      ...   return x
      >>> print(tb_optax.trace_layers(apply, params, jnp.ones((1, 64))))
      hidden: hidden/w (64, 64), dense 64 x 64, + hidden/b
      left out: stem/w (64, 64): the first layer
      left out: head/w (64, 64): the last layer
      1 layer, with 33% of the parameters
    """
    if first_and_last not in (False, True, "unmeasured"):
        raise ValueError(f"trace_layers: first_and_last={first_and_last!r} is unknown; give False, True or 'unmeasured'.")
    fn, params, args = _function_of_params(fn, args, wrt)
    leaves = leaves_by_path(params)
    arrays = {path: leaf for path, leaf in leaves.items() if hasattr(leaf, "shape")}
    shapes = {path: tuple(leaf.shape) for path, leaf in arrays.items()}
    structure = jax.tree_util.tree_structure(params)

    def of_arrays(arrays: dict[Path, Any], *args: Any) -> Any:
        # Only arrays can be traced, and an Equinox module holds functions too.
        return fn(structure.unflatten((leaves | arrays).values()), *args)

    try:
        jaxpr = jax.make_jaxpr(of_arrays)(arrays, *args).jaxpr
    except Exception as error:
        error.add_note(
            "This error is of the forward pass that trace_layers traced. Give trace_layers(fn, params, *data) for a "
            "function and trace_layers(model, *data) for an NNX module; data are arrays or jax.ShapeDtypeStruct."
        )
        raise
    weights = [parameter(path, shapes[path]) for path in sorted(shapes)]  # as JAX flattens a dict
    return _balanced(JaxprReader(jaxpr, weights, shapes).found, arrays, exclude, min_eigenvalues, first_and_last)


def _function_of_params(
    fn: Callable[..., Any], args: tuple[Any, ...], wrt: Any
) -> tuple[Callable[..., Any], PyTree, tuple[Any, ...]]:
    """The forward pass as a function of parameters and data, its parameters, and its data."""
    nnx = getattr(sys.modules.get("flax"), "nnx", None)  # If `fn` is an NNX module, flax.nnx is imported already.
    if nnx is None or not isinstance(fn, nnx.Module):
        if wrt is not None:
            raise ValueError(
                f"trace_layers: wrt={wrt!r} is for an NNX module, which fn={short_repr(fn)} is not; leave wrt out."
            )
        if not args:
            raise TypeError("trace_layers: params is missing; give trace_layers(fn, params, *data), or an NNX module.")
        if not callable(fn) or isinstance(fn, type):
            raise TypeError(
                f"trace_layers: fn={short_repr(fn)} is not a function; give trace_layers(fn, params, *data), or an instance "
                "of an NNX module."
            )
        return fn, args[0], args[1:]
    model = nnx.clone(fn)
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param if wrt is None else wrt, ...)
    # Batch norm and dropout write to the copy that `merge` makes.
    return lambda params, *data: nnx.merge(graph, params, rest, copy=True)(*data), params, args


def _balanced(
    found: Findings,
    arrays: dict[Path, Any],
    exclude: Sequence[str],
    min_eigenvalues: int,
    first_and_last: bool | Literal["unmeasured"],
) -> Layers:
    left_out: dict[Path, str] = {}
    unmeasured = first_and_last == "unmeasured"
    tables = [path for path in found.embeddings if unmeasured and is_float_array(arrays[path])]
    for path, leaf in arrays.items():
        if len(leaf.shape) >= 2 and path not in found.axes and not found.is_vector(path):
            known = "an embedding" if path in found.embeddings else found.unclear.get(path)
            left_out[path] = known or "no matrix product with it in the forward pass"
    names = layer_names(dict.fromkeys([*sorted(tables), *found.axes]))
    layers = {path: Layer(names[path], path, measured=False) for path in sorted(tables)}
    left_out = {path: reason for path, reason in left_out.items() if path not in layers}
    for path, axes in _experts_apart(found.axes, arrays).items():
        if path in layers:  # A tied embedding is a table first.
            layers[path] = dataclasses.replace(layers[path], follows=found.followers(path))
        elif is_float_array(arrays[path]):
            layers[path] = Layer(names[path], path, found.followers(path), *axes)
        else:
            left_out[path] = f"its dtype, {arrays[path].dtype}, is not real floating-point"
    for path, which in ({} if first_and_last is True else _ends(found)).items():
        if path in layers and unmeasured:
            layers[path] = dataclasses.replace(layers[path], measured=bool(layers[path].layer_axes))
        elif path in layers and not layers[path].layer_axes:
            left_out[path] = f"the {which} layer"
            del layers[path]
    return select_layers(layers.values(), arrays, left_out, exclude, min_eigenvalues, "trace_layers")


def _ends(found: Findings) -> dict[Path, str]:
    """The kernels of the first and of the last layer."""
    first = set().union(*found.uses[:1])
    inputs = {found.reads[path] for path in first if path in found.reads}
    first |= {path for path, read in found.reads.items() if read in inputs}
    last = {path for paths in found.uses[-1:] for path in paths} - first
    return dict.fromkeys(sorted(first), "first") | dict.fromkeys(sorted(last), "last")


def _experts_apart(found: Mapping[Path, KernelAxes], arrays: Mapping[Path, Any]) -> dict[Path, KernelAxes]:
    """The axes of all kernels, with experts along a layer axis in both directions.

    If every expert is given every token, the product into the experts keeps their axis as an output; only the product out of
    them has it as a batch. So an output axis is a layer axis if another kernel of the same module has a layer axis at the
    same place and of the same size.
    """
    apart = dict(found)
    for path, axes in found.items():
        module = split_path(path)[0]
        for axis in axes.output[:-1]:
            size = arrays[path].shape[axis]
            beside = (other for other in found if other != path and split_path(other)[0] == module)
            if any(axis in found[other].layer and arrays[other].shape[axis] == size for other in beside):
                output = tuple(each for each in apart[path].output if each != axis)
                apart[path] = apart[path]._replace(output=output, layer=tuple(sorted((*apart[path].layer, axis))))
    return apart
