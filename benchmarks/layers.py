"""Whether `find_layers` reads the weights of published architectures right: `python -m benchmarks.layers`.

Needs torch and transformers (`pip install torch transformers`). Each architecture is built with small random weights under
its real names. The expected reading comes from the modules that own the weights: a `Linear` is one matrix, a convolution has
a matrix for each place of its window, an embedding has none.
"""

import dataclasses
import inspect
import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

import tb_optax
from tb_optax._layers.layer import kernel_shape

_SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300},
    **{"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "pad_token_id": 0},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "num_key_value_heads": 2, "num_layers": 2, "num_heads": 4, "d_ff": 96},
    **{
        "d_kv": 16,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "num_local_experts": 4,
        "num_experts": 4,
        "moe_intermediate_size": 96,
    },
    **{"shared_expert_intermediate_size": 96, "image_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64, "head_dim": 16},
    **{"state_size": 16, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "embedding_size": 64},
}
ARCHITECTURES = (
    *(
        "bert",
        "gpt2",
        "llama",
        "mixtral",
        "qwen3_moe",
        "gpt_oss",
        "t5",
        "bart",
        "opt",
        "gpt_neox",
        "deberta-v2",
        "distilbert",
    ),
    *("vit", "swin", "resnet", "convnext", "mobilenet_v2", "clip", "sam", "wav2vec2", "vits", "encodec", "whisper", "mamba"),
)


def build(architecture: str) -> Any:
    """A model with random weights, as small as its configuration allows by the names in `_SMALL`."""
    from transformers import AutoConfig, AutoModel  # pyright: ignore[reportMissingImports]

    config = AutoConfig.for_model(architecture)
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))]
    for part in parts:
        for name, value in _SMALL.items():
            known = getattr(part, name, None)
            if isinstance(known, int) and not isinstance(known, bool):
                setattr(part, name, value)
        if isinstance(vars(part).get("layer_types"), list):
            part.layer_types = part.layer_types[: part.num_hidden_layers]
    return AutoModel.from_config(config)


def expected_readings(model: Any) -> dict[str, tuple[Any, ...] | None]:
    """For each parameter of two or more axes: its stack, how many matrices it has, their sides; None if it is no weight."""
    from torch import nn  # pyright: ignore[reportMissingImports]

    expected: dict[str, tuple[Any, ...] | None] = {}
    for name, module in model.named_modules():
        for own, array in module.named_parameters(recurse=False):
            path, shape = f"{name}.{own}" if name else own, tuple(array.shape)
            owner = module
            if ".parametrizations." in path:
                owner = model.get_submodule(path.split(".parametrizations.")[0])
                own = {"original0": "gain", "original1": "weight", "original": "weight"}[own]
            if len(shape) < 2:
                continue
            elif "expert" in type(owner).__name__.lower() and len(shape) == 3:
                reading = ((shape[0],), 1, *sorted(shape[1:]))
            elif own.startswith("weight") and len(shape) == 2 and _multiplies(owner):
                reading = ((), 1, *sorted(shape))
            elif own == "weight" and isinstance(owner, nn.modules.conv._ConvNd):
                reading = ((), math.prod(shape[2:]), *sorted(shape[:2]))
            else:
                reading = None
            expected[path] = None if reading is None or min(reading[2:]) == 1 else reading
    return expected


def _multiplies(module: Any) -> bool:
    from torch import nn  # pyright: ignore[reportMissingImports]
    from transformers.pytorch_utils import Conv1D  # pyright: ignore[reportMissingImports]

    return isinstance(module, (nn.Linear, Conv1D, nn.RNNBase)) or "router" in type(module).__name__.lower()


def compare(architecture: str) -> tuple[Counter[str], list[str]]:
    """How many parameters are read right, left out though they are weights, and read wrongly; and the latter's names."""
    model = build(architecture)
    expected = expected_readings(model)
    params = {name: jax.ShapeDtypeStruct(tuple(array.shape), jnp.float32) for name, array in model.named_parameters()}
    torch_first: Any = {"layout": "torch"} if "layout" in inspect.signature(tb_optax.find_layers).parameters else {}
    found = {}
    for layer in tb_optax.find_layers(params, min_eigenvalues=2, **torch_first):
        shape = kernel_shape(layer, params[layer.kernel].shape)
        found[layer.kernel] = (shape.stack, shape.matrices, *sorted((shape.rows, shape.columns)))
    counts: Counter[str] = Counter()
    wrong = []
    for path, reading in expected.items():
        if found.get(path) == reading:
            counts["right"] += 1
        elif path not in found:
            counts["left out"] += 1
            wrong.append(f"{path} {params[path].shape}")
        else:
            counts["wrong"] += 1
            wrong.append(f"{path} {params[path].shape}")
    return counts, wrong


@dataclasses.dataclass
class _Total:
    architectures: int = 0
    all_right: int = 0


def main() -> None:
    total = _Total()
    print("| architecture | parameters | right | left out | wrong | such as |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for architecture in ARCHITECTURES:
        try:
            counts, wrong = compare(architecture)
        except Exception as error:
            print(f"| {architecture} | not built: {type(error).__name__}: {str(error)[:80]} |")
            continue
        total.architectures += 1
        total.all_right += counts["wrong"] == counts["left out"] == 0
        numbers = " | ".join(str(counts[key]) for key in ("right", "left out", "wrong"))
        print(f"| {architecture} | {sum(counts.values())} | {numbers} | {', '.join(wrong[:2])} |")
    print(f"\n{total.all_right} of {total.architectures} architectures with every weight read right")


if __name__ == "__main__":
    main()
