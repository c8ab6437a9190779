"""LoRA adapters as PEFT saves them: `B A` in the place of each pair `lora_A.weight`, `lora_B.weight`, or added to a base."""

import dataclasses
import json
import math
import re
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import jax
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, Source

_PREFIX = "base_model.model."
_FIRST = re.compile(r"^(?:base_model\.model\.)?(?P<name>.+)\.lora_A(?P<adapter>\.[^.]+)?\.weight$")
_CONFIG = "adapter_config.json"


class _Pair(NamedTuple):
    """The two factors of a change: `first` of shape `(rank, inputs, ...)`, `second` of shape `(outputs, rank, ...)`."""

    first: Path
    second: Path
    shape: tuple[int, ...]
    rank: int


def is_adapter(source: Source) -> bool:
    """Whether there are pairs of LoRA's factors under PEFT's names."""
    return any(_FIRST.match(path) for path in source.shapes)


def products(source: Source) -> Source:
    """An adapter with the change `B A` of each weight in the place of its two factors; any other source as it is.

    The change is scaled by `lora_alpha / r` if `adapter_config.json` lies beside the file.
    """
    if not is_adapter(source):
        return source
    pairs, config = _pairs(source), _config(source)
    shapes = {f"{name}.weight": jax.ShapeDtypeStruct(pair.shape, np.float32) for name, pair in pairs.items()}

    def read(path: Path) -> Any:
        pair = pairs[path.removesuffix(".weight")]
        return _scale(config, pair) * _product(source, pair)

    scaled = "LoRA adapter as B A" + (" times lora_alpha / r" if config else ", scale unknown")
    others = dict.fromkeys(_others(source, pairs), "not a LoRA factor")
    return dataclasses.replace(
        source,
        format=f"{source.format}, {scaled}",
        shapes=shapes,
        read=read,
        unreadable={**source.unreadable, **others},
        tree=None,
    )


def merged(base: Source, adapter: Source) -> Source:
    """The base with the change of an adapter added to its weights, and the whole weights in the adapter in their places.

    Raises:
      CheckpointError: a weight of the adapter is not in the base or has another shape; or the scale is not known.
    """
    pairs, config = _pairs(adapter), _config(adapter)
    if config is None and adapter.tree is None:
        where = f"it has no {_CONFIG} beside it, so the scale lora_alpha / r is unknown"
        raise CheckpointError(adapter.name, where, "give the folder that PEFT's save_pretrained wrote")
    changed: dict[Path, tuple[_Pair, bool]] = {}
    for name, pair in pairs.items():
        found = [path for path in base.shapes if _is_same(path.removesuffix(".weight"), name) and path.endswith("weight")]
        if len(found) != 1:
            what = f"{len(found)} weights of the base {base.name} have the name {name}"
            raise CheckpointError(adapter.name, what, "give first the base that the adapter was trained on")
        shape = base.shapes[found[0]].shape
        turned = shape != pair.shape or (config or {}).get("fan_in_fan_out") is True
        if (pair.shape[::-1] if turned else pair.shape) != shape:
            what = f"{name} has the shape {pair.shape}, and {shape} in the base {base.name}"
            raise CheckpointError(adapter.name, what, "give first the base that the adapter was trained on")
        changed[found[0]] = pair, turned

    whole, unknown = {}, dict(base.unreadable)
    for other in _others(adapter, pairs):
        own = [path for path in base.shapes if _is_same(path, other.removeprefix(_PREFIX))]
        if len(own) == 1 and base.shapes[own[0]].shape == adapter.shapes[other].shape:
            whole[own[0]] = other
        else:
            unknown[other] = "neither a LoRA factor nor a weight of the base"

    def read(path: Path) -> Any:
        if path in whole:
            return adapter.read(whole[path])
        weight = base.read(path)
        if path not in changed:
            return weight
        pair, turned = changed[path]
        change = _scale(config, pair) * _product(adapter, pair)
        return weight.astype(np.promote_types(weight.dtype, np.float32)) + (change.T if turned else change)

    shapes = {
        path: jax.ShapeDtypeStruct(each.shape, np.promote_types(each.dtype, np.float32)) if path in changed else each
        for path, each in base.shapes.items()
    }
    shapes |= {path: adapter.shapes[other] for path, other in whole.items()}
    return Source(adapter.name, f"{adapter.format}, LoRA adapter on {base.name}", shapes, read, unknown, layout=base.layout)


def _others(source: Source, pairs: dict[str, _Pair]) -> list[Path]:
    """The arrays that are no factors: whole weights that were trained beside the adapter, factors of embeddings."""
    factors = {path for pair in pairs.values() for path in (pair.first, pair.second)}
    return [path for path in source.shapes if path not in factors]


def _pairs(source: Source) -> dict[str, _Pair]:
    """The factors of each weight, by the weight's name in the base."""
    found: dict[str, _Pair] = {}
    for first, shape in source.shapes.items():
        if not (match := _FIRST.match(first)):
            continue
        second = first.replace(".lora_A", ".lora_B")
        others = source.shapes.get(second)
        magnitude = first.replace(".lora_A", ".lora_magnitude_vector")
        if {magnitude, magnitude.removesuffix(".weight")} & set(source.shapes):
            raise CheckpointError(
                source.name, f"{first} belongs to a DoRA adapter, whose change is not B A", "merge it into its base"
            )
        if others is None or others.shape[1:2] != shape.shape[:1]:
            raise CheckpointError(source.name, f"{first} has no matching lora_B", "get or save the file again")
        if match["name"] in found:
            raise CheckpointError(source.name, f"it holds two adapters for {match['name']}", "save each in its own file")
        found[match["name"]] = _Pair(first, second, (others.shape[0], *shape.shape[1:]), shape.shape[0])
    return found


def _product(source: Source, pair: _Pair) -> Any:
    first, second = source.read(pair.first).astype(np.float32), source.read(pair.second).astype(np.float32)
    return (second.reshape(-1, pair.rank) @ first.reshape(pair.rank, -1)).reshape(pair.shape)


def _config(source: Source) -> dict[str, Any] | None:
    """What PEFT wrote beside the file."""
    where = FilePath(source.name).parent / _CONFIG
    if source.tree is not None or not where.is_file():
        return None
    try:
        config = json.loads(where.read_text("utf-8"))
        float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(where, "not a LoRA configuration: it has no lora_alpha", "save it again") from error
    if config.get("alpha_pattern"):
        raise CheckpointError(
            where,
            "alpha_pattern gives some layers other scales, which the report does not support",
            "merge the adapter into its base",
        )
    return config


def _scale(config: dict[str, Any] | None, pair: _Pair) -> float:
    if config is None:
        return 1.0
    return float(config["lora_alpha"]) / (math.sqrt(pair.rank) if config.get("use_rslora") else pair.rank)


def _is_same(path: str, name: str) -> bool:
    """Whether they are one name, of which one may have a prefix that the other lacks."""
    return path == name or path.endswith("." + name) or name.endswith("." + path)
