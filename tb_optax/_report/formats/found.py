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

# What a dict is to the container that holds it: items, an object's attributes, or the parameters or modules of a module.
_ITEMS, _ATTRIBUTES, _MODULES = "items", "attributes", "modules"

Tensor = TypeVar("Tensor")


def tensors_by_path(root: Any, kind: type[Tensor]) -> tuple[dict[Path, Tensor], dict[Path, str]]:
    """The tensors by their path, and why others cannot be read. Each container is visited once, under its first name.

    The keys of dicts and the places in lists are joined by "/", the modules of a module by ".".
    """
    tensors: dict[Path, Tensor] = {}
    unreadable: dict[Path, str] = {}
    seen: set[int] = set()
    letters = 0
    waiting: list[Iterator[tuple[Path, Any, str]]] = [iter([("", root, _ITEMS)])]  # a container and those that hold it
    while waiting:
        path, value, role = next(waiting[-1], (None, None, _ITEMS))
        if path is None:
            waiting.pop()
        elif isinstance(value, kind):
            path = path or "tensor"
            if path in tensors and tensors[path] is not value:
                unreadable[path] = "two arrays have this name"
            tensors[path] = value
            letters += len(path)
        elif isinstance(value, (Mapping, list, tuple)) and _has_content(value) and id(value) not in seen:
            seen.add(id(value))
            letters += len(path)
            if isinstance(value, Object) and (reason := _why_not(value, kind)):
                unreadable[path] = reason
            else:
                waiting.append(_children(path, value, role))
        if len(waiting) > _DEEPEST or letters > _LONGEST_NAMES:
            raise PickleError(f"containers in containers, more than {_DEEPEST} deep, or names that fill the memory")
    return {path: tensor for path, tensor in tensors.items() if path not in unreadable}, unreadable


def _has_content(value: Any) -> bool:
    if isinstance(value, Object):
        return bool(value.pairs or value.elements or value.state or value.arguments)
    return bool(value.pairs if isinstance(value, Mapping) else value)


def _children(path: Path, value: Any, role: str) -> Iterator[tuple[Path, Any, str]]:
    """What a container holds, each with its path and role."""
    if isinstance(value, Object):
        for state in value.state[:2] if isinstance(value.state, tuple) else (value.state,):
            yield path, state, _ATTRIBUTES
        yield path, value.elements, _ITEMS
    if not isinstance(value, Mapping):
        yield from ((_joined(path, "/", str(place)), content, _ITEMS) for place, content in enumerate(value))
    elif role == _ATTRIBUTES:
        for key, content in value.pairs:
            if isinstance(key, str) and key in _OF_MODULES:
                yield path, content, _MODULES
            elif isinstance(key, str) and key != _ONCE_MORE:
                yield _joined(path, ".", key), content, _ITEMS
    else:
        # A key that is set again replaces the first, as in a dict.
        pairs = {(type(key), _key(key, number)): content for number, (key, content) in enumerate(value.pairs)}
        separator = "." if role == _MODULES else "/"
        yield from ((_joined(path, separator, key), content, _ITEMS) for (_, key), content in pairs.items())


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
    arguments = value.arguments[:8] if isinstance(value.arguments, tuple) else ()
    given = [*arguments, *(part for each in arguments if isinstance(each, (tuple, list)) for part in each[:4])]
    if any(isinstance(each, kind) for each in given):
        return f"{value.name[:100]} would make it, which is not known"
    return ""
