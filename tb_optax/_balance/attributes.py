"""Attributes by which metrics and fits declare what they need, also inside `functools.partial` and `jax.jit`."""

import functools
from collections.abc import Callable
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


def declares(function: Any, attribute: str, *, default: bool = False) -> bool:
    """What a function declares; `default` if it does not say.

    `jax.jit` of a function declares what the function does. Any other wrapper declares what it sets itself: what
    `functools.wraps` copied is of another function.
    """
    function = _unjitted(function)
    return default if hasattr(function, "__wrapped__") else bool(getattr(function, attribute, default))


def innermost(function: Any) -> Any:
    """The function inside `functools.partial` and `jax.jit`."""
    while isinstance(function, (functools.partial, _JITTED)):
        function = function.func if isinstance(function, functools.partial) else _unjitted(function)
    return function


def parts(function: Any) -> list[Any]:
    """The functions that a function is made of: itself, or those in a `functools.partial`."""
    function = _unjitted(function)
    if not isinstance(function, functools.partial):
        return [function]
    given = (function.func, *function.args, *function.keywords.values())
    return [part for argument in given if callable(argument) for part in parts(argument)]


def _unjitted(function: Any) -> Any:
    while isinstance(function, _JITTED):
        function = getattr(function, "__wrapped__", None)
    return function
