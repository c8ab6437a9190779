"""Reads the axes of one kernel from names and shapes, by the conventions of Flax, Haiku, Equinox, PyTorch and TensorFlow.

Every function here reads one kernel without its layer axes, and returns None if several readings are possible.

Example:
  >>> convolution_axes((3, 3, 64, 128), outputs_first=False), convolution_axes((128, 64, 3, 3), outputs_first=False)
  (MatrixAxes(reduction=(2,), output=(3,)), MatrixAxes(reduction=(1,), output=(0,)))
  >>> attention_input_axes((512, 8, 64), output=(8, 64, 512))  # queries of Flax: embed, heads, head_dim
  MatrixAxes(reduction=(0,), output=(1, 2))
  >>> attention_input_axes((8, 512, 64), output=(8, 64, 512))  # queries of Gemma: heads, embed, head_dim
  MatrixAxes(reduction=(1,), output=(0, 2))
"""

import math
import re
from typing import Literal, NamedTuple, TypeAlias

from tb_optax._layers.layer import Axes

Shape: TypeAlias = tuple[int, ...]
Layout: TypeAlias = Literal["torch", "jax"]

# Biases and norms; stacked, they have two axes and more.
VECTOR = re.compile(r"(^|_)(bias|biases|scale|offset|gamma|beta|mean|var)(_|\d|$)|[Nn]orm_?\d*$")
NORM = re.compile(r"[Nn]orm_?\d*$|^ln(_?[\da-z])?$")  # a module
FACTOR_OR_BIAS = re.compile(r"^b(_|\d|$)")  # a bias, or the second factor of a low-rank update (LoRA)
EMBEDDING = re.compile(r"embed|(^|_)emb(_|\d|$)|^wte$|^wpe$|^shared$", re.IGNORECASE)
# Learned tables and fixed arrays. The network does not multiply data by them as by a weight.
TABLE = re.compile(
    r"^(pe|tril|inv_freq|filterbank|fb|scales|codebook|h0|c0|A_log|.*(_cached|mask|latents|_tokens?|position_bias.*)"
    r"|quer(y|ies)_(embed|feat|token).*|rel(ative)?_(pos|attention_bias).*)$",
    re.IGNORECASE,
)
GENERIC = re.compile(r"^(kernel|kernels|weights?|w|W|value|values|vars|\d+)$")
EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
CONVOLUTION = re.compile(r"conv", re.IGNORECASE)
ATTENTION_INPUT = re.compile(r"^(w?(q|k|v|kv|qkv)(_(proj|einsum|kernel|linear|a|b))?|query|key|value|c_attn|in_proj)$")
ATTENTION_OUTPUT = re.compile(r"^((w?o|out|attn_vec)(_(proj|einsum|kernel|linear))?|c_proj)$")

# The largest window of a convolution: on a side in two and three dimensions; in one dimension, if a name or a bias says that
# it is a convolution, and otherwise.
_MOST_ON_A_SIDE = 31
_MOST_IN_ONE_DIMENSION = 512
_MOST_UNSAID = 16


class MatrixAxes(NamedTuple):
    """Which axes of a kernel, without its layer axes, make its matrices; all others are pooled."""

    reduction: Axes
    output: Axes


def sides_and_window(shape: Shape, *, outputs_first: bool) -> tuple[MatrixAxes, Shape]:
    """Inputs and outputs of a dense kernel or a convolution, and the sizes of its window.

    Outputs and inputs come first, in this order, or inputs and outputs come last.
    """
    if outputs_first:
        return MatrixAxes((1,), (0,)), shape[2:]
    return MatrixAxes((len(shape) - 2,), (len(shape) - 1,)), shape[:-2]


def convolution_axes(shape: Shape, *, outputs_first: bool, said: bool = False) -> MatrixAxes | None:
    """The axes of a convolution's kernel; None if no part of it can be a window.

    The window is in front (inputs and outputs follow, as in Flax) or at the end (outputs and inputs come before, as in
    PyTorch). Where sizes allow both, `outputs_first` decides.

    Args:
      shape: of three axes or more.
      outputs_first: whether the name says that outputs come first.
      said: whether a name or a bias says that it is a convolution.
    """
    for first in (outputs_first, not outputs_first):
        axes, window = sides_and_window(shape, outputs_first=first)
        sides = [shape[axis] for axis in (*axes.reduction, *axes.output)]
        if can_be_window(window, sides, said=said):
            return axes
    return None


def can_be_window(window: Shape, sides: list[int], *, said: bool) -> bool:
    """Whether these sizes can be the window of a convolution whose matrices have these sides."""
    largest = max(window)
    if len(window) > 1:  # A window of 64 x 1 has one dimension.
        return largest <= _MOST_ON_A_SIDE or (said and math.prod(window) == largest <= _MOST_IN_ONE_DIMENSION)
    return largest <= _MOST_IN_ONE_DIMENSION if said else largest <= _MOST_UNSAID and largest < min(sides)


def attention_output_axes(shape: Shape, inputs: list[Shape]) -> MatrixAxes | None:
    """The axes of the output projection `(heads, head_dim, embed)`, if queries, keys or values beside it agree with that."""
    if len(shape) == 3 and any(attention_input_axes(each, shape) is not None for each in inputs):
        return MatrixAxes((0, 1), (2,))
    return None


def attention_input_axes(shape: Shape, output: Shape | None) -> MatrixAxes | None:
    """The axes of queries, keys or values, alone or several in one array, beside an output `(heads, head_dim, embed)`.

    They are reduced over the axis of the size `embed`; the last axis is `head_dim`. In latent attention they are
    `(rank, heads, head_dim)`, with as many heads as the output has. None unless exactly one of the two readings fits.
    """
    if output is None or len(output) != 3 or len(shape) < 3:
        return None
    heads, head_dim, embed = output
    reduced = [axis for axis in range(len(shape) - 1) if shape[axis] == embed]
    if shape[-1] != head_dim or not reduced:
        reduced = [0] if len(shape) == 3 and shape[1] == heads and embed not in shape else []
    if len(reduced) != 1:
        return None
    return MatrixAxes(tuple(reduced), tuple(axis for axis in range(len(shape)) if axis not in reduced))
