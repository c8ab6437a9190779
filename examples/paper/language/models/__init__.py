"""The networks of language modelling, by name: pure functions of their parameters, `model.apply({"params": params}, ...)`.

The paper's `tensorized` predicts from what came before. The one that the paper's authors trained sees what it is to predict;
it is `tensorized_leaking` here, and what it reaches is no perplexity of a language model.
"""

import dataclasses
from typing import Literal, TypeAlias

import jax.numpy as jnp
from jax.typing import DTypeLike

from examples.paper.errors import UserError
from examples.paper.language.models.gpt import GPT
from examples.paper.language.models.tensorized import TensorizedTransformer

LanguageModel: TypeAlias = TensorizedTransformer | GPT


@dataclasses.dataclass(frozen=True)
class _Tensorized:
    causal: bool
    layers: int = 3
    width: int = 256
    hidden: int = 2100


@dataclasses.dataclass(frozen=True)
class _GPT:
    layers: int
    width: int
    heads: int
    key_value_heads: int | None = None  # None: as many as `heads`
    feed_forward: int = 4


Model: TypeAlias = Literal[
    "tensorized", "tensorized_leaking", "gpt-tiny", "gpt-tiny-grouped", "gpt-mini", "gpt-small", "gpt-medium"
]
_MODELS: dict[str, _Tensorized | _GPT] = {
    "tensorized": _Tensorized(causal=True),
    "tensorized_leaking": _Tensorized(causal=False),
    "gpt-tiny": _GPT(layers=4, width=128, heads=4),
    "gpt-tiny-grouped": _GPT(layers=4, width=128, heads=4, key_value_heads=1, feed_forward=8),
    "gpt-mini": _GPT(layers=6, width=384, heads=6),
    "gpt-small": _GPT(layers=12, width=768, heads=12),  # GPT-2 small's
    "gpt-medium": _GPT(layers=24, width=1024, heads=16),
}
MODELS = tuple(_MODELS)


def create_model(
    name: str,
    *,
    vocabulary: int,
    window: int,
    width: int | None = None,
    layers: int | None = None,
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> LanguageModel:
    """Builds a model with float32 parameters.

    `model.init(keys, tokens, train=False)["params"]` are its parameters, `model.apply({"params": params}, tokens,
    train=True, rngs={"dropout": key})` its logits, float32, one row for each of the tokens `(batch, length)`.

    Args:
      name: one of `MODELS`.
      vocabulary: number of tokens.
      window: length of what the tensorized networks read; a GPT reads any.
      width: of the residual stream, in place of the model's own; the feed-forward part grows with it.
      layers: how many, in place of the model's own.
      dropout: the share of numbers that training leaves out.
      dtype: what it computes in.
      remat: whether the backward pass computes the insides of a layer again: slower, in less memory.

    Raises:
      UserError: no such model, or a size that it cannot have.
    """
    if name not in _MODELS:
        raise UserError(f"name={name!r} is no model; give one of {', '.join(MODELS)}.")
    size = _MODELS[name]
    width, layers = width if width is not None else size.width, layers if layers is not None else size.layers
    for argument, value in (("vocabulary", vocabulary), ("window", window), ("width", width), ("layers", layers)):
        if value < 1:
            raise UserError(f"{argument}={value} leaves nothing of {name}; give 1 at least.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout} is no share of numbers to leave out; give 0 at least, and less than 1.")
    common = {"layers": layers, "width": width, "dropout": dropout, "dtype": jnp.dtype(dtype), "remat": remat}
    if isinstance(size, _GPT):
        if width % (2 * size.heads):
            raise UserError(
                f"width={width} does not give each of the {size.heads} heads of {name} an even size, which rotary "
                f"positions need; give a multiple of {2 * size.heads}."
            )
        heads = {"heads": size.heads, "key_value_heads": size.key_value_heads or size.heads}
        return GPT(vocabulary, **heads, feed_forward=size.feed_forward, **common)
    if width % 2:
        raise UserError(f"width={width} has no half for sines and one for cosines; give {name} an even one.")
    hidden = round(size.hidden * width / size.width)
    return TensorizedTransformer(vocabulary, window, hidden=hidden, causal=size.causal, **common)
