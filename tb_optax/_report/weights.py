"""Which arrays of a checkpoint are the network's weights: a train state holds an optimizer's too."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tb_optax._layers.layer import Path
from tb_optax._report.source import CheckpointError, Source, printable

_PARAMS = "params"
_NO_WEIGHTS = frozenset(
    {
        *("opt_state", "opt_states", "optimizer", "optimizer_state", "optimizer_states", "opt", "optim"),
        *("optim_state", "optimizer_weights", "optimizer_state_dict"),
        *(
            "mu",
            "nu",
            "trace",
            "ema",
            "ema_params",
            "ema_state",
            "ema_state_dict",
            "ema_model",
            "model_ema",
            "state_dict_ema",
            "batch_stats",
            "rngs",
        ),
    }
)
# What training scripts put a state dict below, where it is all that is left beside the optimizer's state.
_WRAPPERS = frozenset(("state_dict", "model_state_dict", "model", "module", "net", "network", "weights"))


class Weights(NamedTuple):
    """The weights of a checkpoint.

    Attributes:
      shapes: of each weight, by its path within the parameters, in the order of its names, numbers as numbers.
      full_paths: of each, the path within the checkpoint.
      others: arrays that are no weights: an optimizer's state, statistics, counters.
    """

    shapes: dict[Path, jax.ShapeDtypeStruct]
    full_paths: dict[Path, Path]
    others: int


def all_of(source: Source) -> Weights:
    """Takes all arrays as weights."""
    return Weights(dict(source.shapes), {path: path for path in source.shapes}, 0)


def weights_of(source: Source, params: str | None = None) -> Weights:
    """Picks the weights: what is below the prefix `params`, or else the key `params` nearest to the root.

    Without either, they are all arrays but those below a key that names an optimizer's state, such as `opt_state` or `mu`.

    Raises:
      CheckpointError: nothing is below the prefix.
    """
    prefix = None if params is None else tuple(_keys(params.strip("/")))
    full_paths = {}
    within = _within(source.shapes, prefix)
    keys = _root(source.shapes, prefix)
    if source.format == "PyTorch" and not keys:
        wrappers = _wrappers([path for path in within if len(source.shapes[path].shape) >= 2])
        within, keys = [path for path in within if tuple(path.split("/")[: len(wrappers)]) == wrappers], len(wrappers)
    for path in sorted(within, key=natural):
        full_paths[_without_value(_cut(path, keys))] = path
    if not full_paths:
        roots = sorted({keys[0] for keys in map(_keys, source.shapes)})
        if not roots:
            raise CheckpointError(source.name, "it holds no arrays", "give a network's parameters or a checkpoint of them")
        raise CheckpointError(
            source.name,
            f"it has nothing below params={params!r}" if params is not None else "it holds only an optimizer's state",
            f"its first keys are: {', '.join(map(printable, roots[:10]))}",
        )
    shapes = {own: source.shapes[path] for own, path in full_paths.items()}
    return Weights(shapes, full_paths, len(source.shapes) - len(shapes))


def _within(paths: Mapping[Path, object], prefix: tuple[str, ...] | None) -> list[Path]:
    if prefix is None:
        roots = _params_roots(paths)
        if not roots:
            return [path for path in paths if not _NO_WEIGHTS & set(_keys(path)[:-1])]
        return [path for path in paths if any(_is_below(path, root) for root in roots)]
    return [path for path in paths if _is_below(path, prefix)]


def _root(paths: Mapping[Path, object], prefix: tuple[str, ...] | None) -> int:
    """How many keys of the weights' paths all share as their root, which names leave out."""
    roots = [prefix] if prefix is not None else _params_roots(paths)
    return len(roots[0]) if len(roots) == 1 else 0


def _wrappers(paths: Sequence[Path]) -> tuple[str, ...]:
    """The keys that only wrap a PyTorch state dict, whose own names have dots and no slashes."""
    wrappers: tuple[str, ...] = ()
    parents = [path.split("/")[:-1] for path in paths]
    while parents and len(keys := {"/".join(each[len(wrappers) : len(wrappers) + 1]) for each in parents}) == 1:
        if not keys <= _WRAPPERS:
            break
        wrappers += tuple(keys)
    return wrappers


def _params_roots(paths: Iterable[Path]) -> list[tuple[str, ...]]:
    """The keys down to each `params` that is nearest to the root, where two networks may each have theirs."""
    found = set()
    for path in paths:
        keys = _keys(path)[:-1]
        if _PARAMS in keys and not _NO_WEIGHTS & set(keys[: keys.index(_PARAMS)]):
            found.add(tuple(keys[: keys.index(_PARAMS) + 1]))
    least = min(map(len, found), default=0)
    return sorted(root for root in found if len(root) == least)


def _keys(path: Path) -> list[str]:
    return re.split(r"[/.]", path)


def _is_below(path: Path, root: tuple[str, ...]) -> bool:
    keys = _keys(path)
    return len(keys) > len(root) and tuple(keys[: len(root)]) == root


def _cut(path: Path, keys: int) -> Path:
    """Without its first keys."""
    return re.split(r"[/.]", path, maxsplit=keys)[-1] if keys else path


def _without_value(path: Path) -> Path:
    """Without the `value` in which Flax NNX boxes its variables."""
    return path[: -len("/value")] if path.endswith("/value") else path


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts names with their numbers as numbers: `layer2` comes before `layer10`."""
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]


def with_gain(direction: Any, gain: Any) -> Any:
    """The weight `g v / |v|` that weight norm applies. The norm is over the axes along which the gain has one number."""
    axes = tuple(axis for axis, size in enumerate(gain.shape) if size == 1)
    wide = direction.astype(np.promote_types(direction.dtype, np.float32))
    norm = (wide**2).sum(axis=axes, keepdims=True) ** 0.5
    return wide * (gain.astype(wide.dtype) / norm)
