"""Blocks: layers that are balanced together, such as the layers of a Transformer block or of a residual block."""

import collections
import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from tb_optax._layers.layer import InvalidLayersError, KernelShape, Layers, LayersOrFn, PyTree, kernel_shape, resolve_layers


def in_blocks(layers: LayersOrFn, block_of: Callable[[str], str] | None = None) -> Callable[[PyTree], Layers]:
    """Finds the same layers and puts each into a block.

    The layers of a block share the mean of their metrics and one scale. So blocks are balanced instead of layers, as Liu et
    al. do for Transformers ("Model Balancing Helps Low-data Training and Fine-tuning", EMNLP 2024). Each slice of stacked
    layers (`nn.scan`) is in a block with the same slice of the others.

    Args:
      layers: layers, or a function that finds them, such as `find_layers` or the result of `trace_layers`.
      block_of: a function from a layer's name to the name of its block, `""` for a layer in no block. By default a block is
        the innermost module around a layer that has a number and a sibling with another number: `"h_3"` of `"h_3/mlp/c_fc"`,
        `"layer1/0"` of `"layer1/0/conv1"`, `"model.layers.3"` of `"model.layers.3.self_attn.q_proj"`. Stacked layers are in
        the same blocks if they have the same outermost module and equally many slices.

    Returns:
      A function of the parameters, to pass as `layers=`.

    Raises:
      TypeError: `block_of` is not a function, or does not return a string.

    Example:
      >>> import jax.numpy as jnp, tb_optax
      >>> block = lambda: {"attn": {"kernel": jnp.ones((64, 96))}, "mlp": {"kernel": jnp.ones((64, 128))}}
      >>> print(tb_optax.in_blocks(tb_optax.find_layers)({"h_0": block(), "h_1": block()}))
      h_0/attn: h_0/attn/kernel (64, 96), dense 64 x 96, in block h_0
      h_0/mlp: h_0/mlp/kernel (64, 128), dense 64 x 128, in block h_0
      h_1/attn: h_1/attn/kernel (64, 96), dense 64 x 96, in block h_1
      h_1/mlp: h_1/mlp/kernel (64, 128), dense 64 x 128, in block h_1
      4 layers, with 100% of the parameters
    """
    if block_of is not None and not callable(block_of):
        raise TypeError(f"in_blocks: block_of={block_of!r} is not a function; give one from a layer's name to its block's.")

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
                    f"in_blocks: block_of({name!r}) returned {block!r}; it must return a block's name, or '' for none."
                )
        return Layers(
            [dataclasses.replace(layer, block=blocks[layer.name]) for layer in found], found.left_out, found.shapes
        )

    return found_in_blocks


def group_ids(found: Layers, shapes: Mapping[str, KernelShape]) -> Int[np.ndarray, " slices"]:
    """The group number, from 0, of each slice of each layer, in the layers' order.

    The slices of a group are balanced together. A group is a block, or a layer without a block. In a stack, each slice index
    has a group of its own.

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
                f"Layer {layer.name!r} has the stack {stack}, but other layers of its block {layer.block!r} have the stack "
                f"{stacks[layer.block]}; give it another block."
            )
        own = ("block", layer.block) if layer.block else ("layer", layer.name)
        groups += [known.setdefault((own, index), len(known)) for index in np.ndindex(stack)]
    return np.array(groups, np.int32)


def _by_numbers(names: Sequence[str]) -> dict[str, str]:
    """The block of each layer: the innermost numbered module around it that has a sibling with another number."""
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
    """The module, its name without the number, and the number; None if it has no number."""
    found = re.fullmatch(r"(.*?)(\d+)", module)
    return (module, found[1], found[2]) if found else None


def _by_stacks(shapes: Mapping[str, KernelShape]) -> dict[str, str]:
    """The block of each stacked layer: its outermost module and the sizes of its stack."""
    first = lambda name: re.split(r"[/.]", name)[0]
    return {name: f"{first(name)}{list(shape.stack)}" for name, shape in shapes.items() if shape.stack}
