"""Blocks: layers that are balanced as one, such as those of a Transformer block or of a residual block."""

import collections
import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from tb_optax._layers.layer import InvalidLayersError, KernelShape, Layers, LayersOrFn, PyTree, kernel_shape, resolve_layers


def in_blocks(layers: LayersOrFn, block_of: Callable[[str], str] | None = None) -> Callable[[PyTree], Layers]:
    """The same layers, each with the block that it is in.

    Layers of a block share the mean of their metrics, and one scale: what is balanced are blocks (as Liu et al., "Model
    Balancing Helps Low-data Training and Fine-tuning", EMNLP 2024, do it for Transformers). Of stacked layers (`nn.scan`),
    each slice is in a block with the same slice of the others.

    Args:
      layers: layers, or a function that finds them, such as `find_layers` or what `trace_layers` returned.
      block_of: from a layer's name to its block's, `""` for a layer that is in none. By default a block is the innermost
        numbered module around a layer that has another number beside it: `"h_3"` of `"h_3/mlp/c_fc"`, `"layer1/0"` of
        `"layer1/0/conv1"`, `"model.layers.3"` of `"model.layers.3.self_attn.q_proj"`; stacked layers with as many slices,
        below the same outermost module, are in the same blocks.

    Returns:
      A function of the parameters, for `layers=`.

    Raises:
      TypeError: `block_of` is not a function; when called, it gives no text.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> block = lambda: {"attn": {"kernel": jnp.ones((64, 96))}, "mlp": {"kernel": jnp.ones((64, 128))}}
      >>> print(tb_optax.in_blocks(tb_optax.find_layers)({"h_0": block(), "h_1": block()}))
      h_0/attn: h_0/attn/kernel, in block h_0
      h_0/mlp: h_0/mlp/kernel, in block h_0
      h_1/attn: h_1/attn/kernel, in block h_1
      h_1/mlp: h_1/mlp/kernel, in block h_1
    """
    if block_of is not None and not callable(block_of):
        raise TypeError(f"in_blocks: block_of={block_of!r} is not a function of a layer's name.")

    def found_in_blocks(params: PyTree) -> Layers:
        found, leaves = resolve_layers(layers, params)
        names = [layer.name for layer in found]
        if block_of is None:
            shapes = {layer.name: kernel_shape(layer, leaves[layer.kernel].shape) for layer in found}
            blocks = _by_numbers(names) | _by_stacks(shapes)
        else:
            blocks = {name: block_of(name) for name in names}
        for name, block in blocks.items():
            if not isinstance(block, str):
                raise InvalidLayersError(
                    f"in_blocks: block_of({name!r}) gave {block!r}; give a block's name, or '' for none."
                )
        return Layers([dataclasses.replace(layer, block=blocks[layer.name]) for layer in found], found.left_out)

    return found_in_blocks


def group_ids(found: Layers, shapes: Mapping[str, KernelShape]) -> Int[np.ndarray, " slices"]:
    """For each slice of each layer, in the layers' order, the number of the group that it is balanced in, from 0.

    A group is a block, or a layer without a block; of stacked layers, each slice is in a group of its own.

    Raises:
      ValueError: layers of a block are stacked differently.
    """
    known: dict[Hashable, int] = {}
    stacks: dict[str, tuple[int, ...]] = {}
    groups = []
    for layer in found:
        stack = shapes[layer.name].stack
        if layer.block and stacks.setdefault(layer.block, stack) != stack:
            raise ValueError(
                f"Layer {layer.name!r} is of stack {stack} and in the block {layer.block!r}, other layers of which are of "
                f"stack {stacks[layer.block]}; give it another block."
            )
        own = ("block", layer.block) if layer.block else ("layer", layer.name)
        groups += [known.setdefault((own, index), len(known)) for index in np.ndindex(stack)]
    return np.array(groups, np.int32)


def _by_numbers(names: Sequence[str]) -> dict[str, str]:
    """Of each layer, the innermost module around it of whose series there are several."""
    series: dict[str, set[str]] = collections.defaultdict(set)
    modules = {name: [_numbered(name[: cut.start()]) for cut in re.finditer(r"[/.]", name)] for name in names}
    for around in modules.values():
        for _, stem, number in filter(None, around):
            series[stem].add(number)
    several = {stem for stem, numbers in series.items() if len(numbers) > 1}
    blocks = {}
    for name, around in modules.items():
        inner = [module for module, stem, _ in filter(None, around) if stem in several]
        blocks[name] = inner[-1] if inner else ""
    return blocks


def _numbered(module: str) -> tuple[str, str, str] | None:
    """The module, its name without its number, and the number, if it has one."""
    found = re.fullmatch(r"(.*?)(\d+)", module)
    return (module, found[1], found[2]) if found else None


def _by_stacks(shapes: Mapping[str, KernelShape]) -> dict[str, str]:
    """Of layers that are stacked, the outermost module, and how many slices there are."""
    first = lambda name: re.split(r"[/.]", name)[0]
    return {name: f"{first(name)}{list(shape.stack)}" for name, shape in shapes.items() if shape.stack}
