"""Parameter trees of published shapes, with random weights whose spectra differ from layer to layer.

Numpy only, so that a contender that needs no JAX loads none.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

Tree = dict[str, Any]

_RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_BOTTLENECK = ("resnet50", "resnet101")
_VGG_CONVS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_MIN_EIGENVALUES = 50


@dataclasses.dataclass(frozen=True)
class Network:
    """The parameters of a network.

    Attributes:
      params: nested dicts of arrays; convolutions `HWIO`, dense kernels inputs before outputs.
      exclude: names of the first and the last layer.
      scanned: whether the first axis of every kernel numbers the layers of a stack.
    """

    params: Tree
    exclude: tuple[str, ...] = ()
    scanned: bool = False

    def weights(self) -> dict[str, np.ndarray]:
        """The balanced weights, for contenders without Optax: `HWIO` or inputs by outputs.

        A stack is cut into its layers, named `name[index]`. The rule is TempBalance's: at least 50 eigenvalues, without the
        first and the last layer.
        """
        weights: dict[str, np.ndarray] = {}
        for name, kernel in _kernels(self.params):
            if name not in self.exclude:
                weights |= (
                    {f"{name}[{index}]": each for index, each in enumerate(kernel)} if self.scanned else {name: kernel}
                )
        enough = lambda weight: matrices(weight).shape[0] * min(weight.shape[-2:]) >= _MIN_EIGENVALUES
        return {name: weight for name, weight in weights.items() if enough(weight)}


def matrices(weight: np.ndarray) -> np.ndarray:
    """Every matrix of a weight, one for each place of a convolution's window: `(matrices, inputs, outputs)`."""
    return weight.reshape(-1, *weight.shape[-2:])


def torch_layout(weight: np.ndarray) -> np.ndarray:
    """A kernel as PyTorch has it: `OIHW`, or outputs by inputs."""
    return np.ascontiguousarray(weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T)


def create(name: str, seed: int = 0) -> Network:
    """Builds a network.

    Args:
      name: `tiny`; `resnet18`, `resnet34`, `resnet50`, `resnet101`, `vgg16`, `vgg19`, each also with the channels of its
        last stage after a dash (`resnet18-1024`); `gpt2` (124M parameters); `llama1b` (TinyLlama's 1.1B, bfloat16, its
        22 layers stacked on a scan axis); `llama_layer`, two weights of Llama 3 8B.
      seed: of the weights.
    """
    if name == "llama1b":
        return _llama1b(_Weights(seed, ml_dtypes.bfloat16))
    weights = _Weights(seed)
    if name == "llama_layer":
        return Network({"query": weights.kernel(4096, 4096), "gate": weights.kernel(4096, 14336)})
    if name in ("tiny", "gpt2"):
        return {"tiny": _tiny, "gpt2": _gpt2}[name](weights)
    base, _, channels = name.partition("-")
    if base in _RESNET_BLOCKS:
        return _resnet(weights, _RESNET_BLOCKS[base], base in _BOTTLENECK, int(channels or 512))
    if base in _VGG_CONVS:
        return _vgg(weights, _VGG_CONVS[base], int(channels or 512))
    known = ", ".join((*_RESNET_BLOCKS, *_VGG_CONVS))
    raise ValueError(
        f"network {name!r} is not known; give tiny, gpt2, llama1b, llama_layer, {known}, or one of the last six with the "
        "channels of its last stage: resnet18-1024."
    )


class _Weights:
    """Random parameters. Rows of a matrix differ in size, more in some matrices: each spectrum has its own tail."""

    def __init__(self, seed: int, dtype: Any = np.float32):
        self._random = np.random.default_rng(seed)
        self._dtype = dtype

    def kernel(self, *shape: int, bias: bool = False) -> Tree:
        kernel = self._random.standard_normal(shape, dtype=np.float32)
        spread = self._random.uniform(0.1, 0.8, (*shape[:-2], 1, 1)).astype(np.float32)
        kernel *= np.exp(spread * self._random.standard_normal((shape[-2], 1), dtype=np.float32)) / np.sqrt(shape[-2])
        tree = {"kernel": kernel.astype(self._dtype, copy=False)}
        return tree | {"bias": np.zeros((shape[-1],), self._dtype)} if bias else tree

    def norm(self, *shape: int) -> Tree:
        return {"scale": np.ones(shape, self._dtype), "bias": np.zeros(shape, self._dtype)}

    def embedding(self, *shape: int) -> Tree:
        return {"embedding": np.zeros(shape, self._dtype)}  # in no spectrum


def _kernels(tree: Tree, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if key == "kernel":
            yield prefix[:-1], value
        elif isinstance(value, dict):
            yield from _kernels(value, f"{prefix}{key}/")


def _tiny(weights: _Weights) -> Network:
    """Small enough for a test: two sizes of matrices, a convolution and dense layers."""
    params = {
        "conv1": weights.kernel(3, 3, 3, 16),
        "conv2": weights.kernel(3, 3, 16, 32),
        "conv3": weights.kernel(3, 3, 32, 16),
        "dense": weights.kernel(128, 64, bias=True),
        "linear": weights.kernel(64, 10, bias=True),
    }
    return Network(params, exclude=("conv1", "linear"))


def _resnet(weights: _Weights, blocks: tuple[int, ...], bottleneck: bool, last: int) -> Network:
    """The CIFAR variant, named as in `examples/paper/vision`; a bottleneck has four times as many outputs as `last`."""
    channels = [last // 2 ** (3 - stage) for stage in range(4)]
    params: Tree = {"conv1": weights.kernel(3, 3, 3, channels[0]), "bn1": weights.norm(channels[0])}
    previous = channels[0]
    for stage, (count, size) in enumerate(zip(blocks, channels, strict=True)):
        convs = ((1, size), (3, size), (1, 4 * size)) if bottleneck else ((3, size), (3, size))
        layer: Tree = {}
        for index in range(count):
            inputs, block = previous, {}
            for number, (window, outputs) in enumerate(convs, 1):
                block[f"conv{number}"] = weights.kernel(window, window, previous, outputs)
                block[f"bn{number}"] = weights.norm(outputs)
                previous = outputs
            if inputs != previous or (stage > 0 and index == 0):
                block["shortcut"] = {"0": weights.kernel(1, 1, inputs, previous), "1": weights.norm(previous)}
            layer[str(index)] = block
        params[f"layer{stage + 1}"] = layer
    params["linear"] = weights.kernel(previous, 10, bias=True)
    return Network(params, exclude=("conv1", "linear"))


def _vgg(weights: _Weights, convs: tuple[int, ...], last: int) -> Network:
    """With batch norm and one linear layer; features are numbered as in `examples/paper/vision`, ReLUs and pools counted."""
    features: Tree = {}
    number, previous = 0, 3
    for stage, count in enumerate(convs):
        size = last // (8, 4, 2, 1, 1)[stage]
        for _ in range(count):
            features[str(number)] = weights.kernel(3, 3, previous, size, bias=True)
            features[str(number + 1)] = weights.norm(size)
            number, previous = number + 3, size
        number += 1
    params = {"features": features, "classifier": weights.kernel(previous, 10, bias=True)}
    return Network(params, exclude=("features/0", "classifier"))


def _gpt2(weights: _Weights, depth: int = 12, width: int = 768) -> Network:
    """The first layer is an embedding, the last its transpose: neither is balanced, all others are."""
    dense = functools.partial(weights.kernel, bias=True)
    params: Tree = {"wte": weights.embedding(50257, width), "wpe": weights.embedding(1024, width)}
    for index in range(depth):
        params[f"h_{index}"] = {
            "ln_1": weights.norm(width),
            "attn": {"c_attn": dense(width, 3 * width), "c_proj": dense(width, width)},
            "ln_2": weights.norm(width),
            "mlp": {"c_fc": dense(width, 4 * width), "c_proj": dense(4 * width, width)},
        }
    return Network(params | {"ln_f": weights.norm(width)})


def _llama1b(weights: _Weights, depth: int = 22, width: int = 2048, hidden: int = 5632, keys: int = 256) -> Network:
    shapes = {"query": (width, width), "key": (width, keys), "value": (width, keys), "output": (width, width)}
    shapes |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    blocks = {name: weights.kernel(depth, *shape) for name, shape in shapes.items()}
    norms = {name: {"scale": np.ones((depth, width), ml_dtypes.bfloat16)} for name in ("attention_norm", "mlp_norm")}
    params = {"embedding": weights.embedding(32000, width), "blocks": blocks | norms}
    return Network(params, scanned=True)
