"""The tensors among the values of a pickle, by path: dicts in dicts, lists, modules, and whatever objects hold them."""

from collections.abc import Iterator
from typing import Any, TypeVar

from tb_optax._layers.layer import Path
from tb_optax._report.formats.pickled import Mapping, Object, PickleError

_DEEPEST = 300  # containers in containers; a module in a module is three
_LONGEST_NAMES = 2**26  # characters of all paths together
_OF_MODULES = frozenset(("_modules", "_parameters", "_buffers"))  # no part of a parameter's name in PyTorch
_ONCE_MORE = "_flat_weights"  # a recurrent module's list of its own parameters
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")

Tensor = TypeVar("Tensor")


def tensors_by_path(root: Any, kind: type[Tensor]) -> tuple[dict[Path, Tensor], dict[Path, str]]:
    """The tensors by their path, and why others cannot be read. Each container is visited once, under its first name.

    The keys of dicts and the places in lists are joined by "/", the modules of a module by ".".
    """
    tensors: dict[Path, Tensor] = {}
    unreadable: dict[Path, str] = {}
    seen: set[int] = set()
    waiting = [("", root, 0)]
    letters = 0
    while waiting:
        path, value, depth = waiting.pop()
        if isinstance(value, kind):
            path = path or "tensor"
            if path in tensors and tensors[path] is not value:
                unreadable[path] = "two arrays have this name"
            tensors[path] = value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            if depth > _DEEPEST:
                raise PickleError(f"containers in containers, more than {_DEEPEST} deep")
            seen.add(id(value))
            if isinstance(value, Object) and (reason := _why_not(value, kind)):
                unreadable[path] = reason
                continue
            children = [(child, content, depth + 1) for child, content in _children(path, value)]
            letters += sum(len(child) for child, _, _ in children)
            if letters > _LONGEST_NAMES:
                raise PickleError("names of arrays that fill the memory")
            waiting.extend(reversed(children))
    return {path: tensor for path, tensor in tensors.items() if path not in unreadable}, unreadable


def _children(path: Path, value: Any, separator: str = "/") -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Object):
        for state in value.state if isinstance(value.state, tuple) else (value.state,):
            if isinstance(state, Mapping):
                yield from _of_state(path, state)
        yield from _children(path, value.elements)
    if isinstance(value, Mapping):
        # A key that is set again replaces the first, as in a dict.
        pairs = {(type(key), _key(key, number)): content for number, (key, content) in enumerate(value.pairs)}
        yield from ((_joined(path, separator, key), content) for (_, key), content in pairs.items())
    else:
        yield from ((_joined(path, separator, str(place)), content) for place, content in enumerate(value))


def _of_state(path: Path, state: Mapping) -> Iterator[tuple[Path, Any]]:
    """The attributes of an object."""
    for key, content in state.pairs:
        if not isinstance(key, str) or key == _ONCE_MORE:
            continue
        if key in _OF_MODULES and isinstance(content, Mapping):
            yield from _children(path, content, ".")
        else:
            yield _joined(path, ".", key), content


def _key(key: Any, number: int) -> str:
    if isinstance(key, bytes):
        return key.decode("latin-1")
    return str(key) if isinstance(key, (str, int, float, bool)) else f"<{number}>"


def _joined(path: Path, separator: str, key: str) -> Path:
    return f"{path}{separator}{key}" if path else key


def _why_not(value: Object, kind: type) -> str:
    """Why an object that a tensor was given to, or a NumPy array, cannot be read."""
    if value.name in _ARRAYS:
        return "it is a NumPy array in a pickle; save it with numpy.savez"
    arguments = value.arguments if isinstance(value.arguments, tuple) else ()
    given = [*arguments, *(part for each in arguments if isinstance(each, (tuple, list)) for part in each[:20])]
    if any(isinstance(each, kind) for each in given):
        return f"{value.name[:100]} would make it, which is not known"
    return ""
