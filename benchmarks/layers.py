"""How many weights of published architectures `find_layers` reads right: `python -m benchmarks.layers`.

Needs torch and transformers (`pip install torch transformers`). Each architecture is built by its default configuration,
without memory for its weights. The expected reading comes from the modules that own the weights: a `Linear` is one matrix, a
convolution has a matrix for each place of its window, an embedding has none.
"""

import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

import tb_optax
from benchmarks.tables import table
from tb_optax._layers.layer import kernel_shape

ARCHITECTURES = ("bert", "gpt2", "llama", "mixtral", "qwen3_moe", "gpt_oss", "t5", "bart", "opt", "gpt_neox")
ARCHITECTURES += ("deberta-v2", "distilbert", "vit", "swin", "resnet", "convnext", "mobilenet_v2", "clip", "sam")
ARCHITECTURES += ("wav2vec2", "vits", "encodec", "whisper", "mamba")


def build(architecture: str) -> Any:
    """A model by its default configuration, without memory for its weights."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoConfig, AutoModel  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(architecture))


def expected_readings(model: Any) -> dict[str, tuple[Any, ...] | None]:
    """The stack, the number of matrices and their sides for each parameter of two or more axes; None if it is no weight."""
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
    """How many parameters are read right, left out though they are weights, or read wrong; and which are not right."""
    model = build(architecture)
    params = {name: jax.ShapeDtypeStruct(tuple(array.shape), jnp.float32) for name, array in model.named_parameters()}
    found = {}
    for layer in tb_optax.find_layers(params, min_eigenvalues=2, layout="torch"):
        shape = kernel_shape(layer, params[layer.kernel].shape)
        found[layer.kernel] = (shape.stack, shape.matrices, *sorted((shape.rows, shape.columns)))
    expected = expected_readings(model)
    verdict = lambda path: "right" if found.get(path) == expected[path] else "wrong" if path in found else "left out"
    counts = Counter(map(verdict, expected))
    return counts, [f"{path} {params[path].shape}" for path in expected if verdict(path) != "right"]


def main() -> None:
    """Prints the table."""
    rows, right, built = [], 0, 0
    for architecture in ARCHITECTURES:
        try:
            counts, wrong = compare(architecture)
        except Exception as error:
            rows.append((architecture, "", "", "", "", f"not built: {type(error).__name__}: {str(error)[:80]}"))
            continue
        built += 1
        right += counts["right"] == counts.total()
        numbers = (counts.total(), counts["right"], counts["left out"], counts["wrong"])
        rows.append((architecture, *map(str, numbers), ", ".join(wrong[:2])))
    columns = ("architecture", "parameters", "right", "left out", "wrong", "such as")
    print(table(columns, rows, right=range(1, 5)))
    print(f"\n{right} of {built} architectures with every weight read right")


if __name__ == "__main__":
    main()
