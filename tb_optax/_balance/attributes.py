"""Attributes by which metrics and fits declare what they need."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

Function = TypeVar("Function", bound=Callable[..., Any])
_JITTED = type(jax.jit(lambda: None))


def declare(**attributes: bool) -> Callable[[Function], Function]:
    """Sets attributes of a function."""

    def decorate(function: Function) -> Function:
        for name, value in attributes.items():
            setattr(function, name, value)
        return function

    return decorate


def all_declare(function: Any, attribute: str) -> bool:
    """Whether a function declares an attribute; a `functools.partial` does if all functions in it do.

    `jax.jit` of a function declares what the function does. Any other wrapper has to set the attribute itself, because
    `functools.wraps` also copies attributes that the wrapper may not deserve.
    """
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args, *function.keywords.values())
        return all(all_declare(part, attribute) for part in parts if callable(part))
    if isinstance(function, _JITTED):
        return all_declare(getattr(function, "__wrapped__", None), attribute)
    return bool(getattr(function, attribute, False)) and not hasattr(function, "__wrapped__")


def declares(function: Any, attribute: str, *, default: bool) -> bool:
    """What a function declares, also inside `functools.partial` and `jax.jit`; `default` if it does not say."""
    return bool(getattr(innermost(function), attribute, default))


def innermost(function: Any) -> Any:
    """The function inside `functools.partial` and `jax.jit`."""
    return list(_unwrapped(function))[-1]


def keyword(function: Any, name: str, default: Any) -> Any:
    """The value that `functools.partial` gives a keyword of a function, also inside `jax.jit`."""
    partials = (part for part in _unwrapped(function) if isinstance(part, functools.partial))
    return next((part.keywords[name] for part in partials if name in part.keywords), default)


def _unwrapped(function: Any) -> Iterator[Any]:
    """The function, then what each `functools.partial` and `jax.jit` around another one holds."""
    yield function
    while isinstance(function, (functools.partial, _JITTED)):
        function = function.func if isinstance(function, functools.partial) else getattr(function, "__wrapped__", None)
        yield function


def any_part(function: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether something holds for a function, or for a function inside its `functools.partial` or `jax.jit`."""
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args, *function.keywords.values())
        return any(any_part(part, holds) for part in parts if callable(part))
    if isinstance(function, _JITTED):
        return any_part(getattr(function, "__wrapped__", None), holds)
    return holds(function)
