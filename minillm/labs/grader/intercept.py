"""Put code in front of an engine function, whatever name it is called by.

    sampling.sample ----+
    lab1.sample     ----+---> function object ---> __code__ : guard(*args): before(args); original(*args)
    a partial of it ----+

A replaced name catches only calls by this name. The function object is the same under all names, so its code
is replaced. The original code moves to a new function, which the guard calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any

Before = Callable[[tuple[Any, ...]], None]


@contextmanager
def intercepted(functions: Iterable[Any], before: Callable[[Any], Before]) -> Iterator[None]:
    """Inside the `with`, every call of `function` first calls `before(function)(args)`."""
    saved = [(function, function.__code__) for function in functions]
    for function, _ in saved:
        function.__code__ = _guard(function, before(function))
    try:
        yield
    finally:
        for function, code in saved:
            function.__code__ = code


def plain_function(value: Any) -> FunctionType | None:
    """The Python function below decorators, methods and properties; None if there is none."""
    value = getattr(value, "__func__", value)
    value = value.fget if isinstance(value, property) else inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _guard(function: FunctionType, before: Before) -> CodeType:
    """Code that calls `before`, then a copy of the function."""
    original = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    original.__kwdefaults__ = function.__kwdefaults__

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before(args)
        return original(*args, **kwargs)

    code = _template(function.__code__.co_freevars)
    return code.replace(co_consts=tuple(enter if const == "enter" else const for const in code.co_consts))


@cache
def _template(free: tuple[str, ...]) -> CodeType:
    """`guard` with the text "enter" in place of a function. It has the free variables of the code it replaces."""
    lines = [
        f"def outer({', '.join(free)}):",
        "  def guard(*args, **kwargs):",
        *(f"    {name}" for name in free),
    ]
    lines.append("    return 'enter'.__call__(args, kwargs)")
    code = compile("\n".join(lines), __file__, "exec", dont_inherit=True)
    return _inner(_inner(code, "outer"), "guard")


def _inner(code: CodeType, name: str) -> CodeType:
    return next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
