"""The environment that chat templates run in: jinja2's immutable sandbox, with every operation counted.

It offers what transformers' own offers, because templates are written for that: jinja2's filters and tests,
loop controls, `raise_exception`, `strftime_now`, `tojson`, `{% generation %}`. Left out: `lipsum`, which
makes random text, and a few methods of texts (`template_limits.REMOVED_METHODS`).

    {% for x in xs %}       {% for x in counted(xs) %}          the template's tree is changed before it is
    a ~ b                   joined(a, b)                        compiled, where jinja2 has no hook of its own
    [a, b], (a, b), {..}    made([a, b])
    a * b, a % b, ...       call_binop                          jinja2's hooks
    f(x), x | f             call, the filters
    {{ x }}                 finalize, concat
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Sized
from contextlib import suppress
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from minillm.text.template_limits import (
    FILTERS,
    METHODS,
    REMOVED_METHODS,
    Budget,
    check_format,
    check_operator,
)

# These give back a value that was there before.
_GIVE_BACK = frozenset("attr d default first last max min random".split())


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering, under its `budget`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
            finalize=self._finalize,
            optimized=False,  # the optimizer would compute before the rendering begins
        )
        self.budget = budget
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]
        self.filters["tojson"] = _tojson
        for name, own in list(self.filters.items()):
            self.filters[name] = self._bounded(name, own)

    # What the changed tree calls -------------------------------------------------------------

    def counted(self, iterable: Any) -> Any:
        """The items of a loop; each is a step."""
        return self.budget.counted(iterable)

    def joined(self, *parts: Any) -> str:
        """`a ~ b`."""
        return "".join(map(str, parts))

    def made(self, value: Any) -> Any:
        """A list, tuple or dict that the template has written down; `call` looks at its size."""
        return value

    # jinja2's hooks --------------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree

    def _finalize(self, value: Any) -> Any:
        self.budget.step()
        return self.budget.keep(value) if not isinstance(value, str) else value

    def concat(self, pieces: Iterable[str]) -> str:
        """The pieces of an output as one text."""
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            self.budget.require(size)
            kept.append(piece)
        return "".join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator."""
        check_operator(self.budget, operator, left, right)
        return self.budget.keep(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of anything: a function, a macro, a method."""
        # The names keep keyword arguments of the template out of the way, as jinja2's own do.
        __self.budget.step()
        args = __self._checked_arguments(__obj, args, kwargs)
        call = super().call
        return __self.budget.nested(lambda: call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have the attribute."""
        removed = attr in REMOVED_METHODS and isinstance(obj, str | int | float)
        return not removed and super().is_safe_attribute(obj, attr, value)

    def _checked_arguments(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """The arguments of a call that may be made."""
        if isinstance(function, LoopContext):  # {% for ... recursive %} goes on with other items
            return tuple(self.budget.counted(items) for items in args)
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if not isinstance(owner, str):
            return args
        if name == "join" and len(args) == 1:
            args = (self._listed(args[0]),)
        if name in ("format", "format_map"):
            check_format(self.budget, owner, [args, kwargs])
        elif name in METHODS:
            with suppress(IndexError):  # an argument is missing: the call itself will say so
                METHODS[name](self.budget, owner, [*args, *kwargs.values()])
        return args

    def _bounded(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that asks the budget before and after."""
        check = FILTERS.get(name)
        signature = inspect.signature(own) if check else None

        @wraps(own)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            if name == "join":
                args = tuple(self._listed(arg) if i == 1 else arg for i, arg in enumerate(args))
            if check and signature:
                bound = _bind(signature, args, kwargs)
                if bound is not None:
                    check(self.budget, bound)
            result = own(*args, **kwargs)
            if name in _GIVE_BACK:
                return result
            return self.budget.keep(result) if isinstance(result, Sized) else self._counted_result(result)

        return bounded

    def _counted_result(self, result: Any) -> Any:
        """Several filters give iterators, whose items are made later."""
        return self.budget.count(result) if hasattr(result, "__next__") else self.budget.keep(result)

    def _listed(self, items: Any) -> Any:
        """Items that can be counted before they are joined."""
        return items if isinstance(items, Sized) else list(self.budget.count(items))


class _Instrument(NodeTransformer):
    """Puts calls of the environment's methods into a template's tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("made", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("made", node) if node.ctx == "load" else node


def _call(name: str, *arguments: Any) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name)
    return nodes.Call(function, list(arguments), [], None, None, lineno=arguments[0].lineno)


class GenerationTag(Extension):
    """`{% generation %}` marks what a model is trained on; when a prompt is made it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements up to `{% endgeneration %}`."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """Without the values in its repr: they may change, so its size cannot be known."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """The arguments by name; None where they do not fit, which the call itself will say."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return bound.arguments


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter with transformers' signature. It hands on no other option of `json.dumps`."""
    return json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        separators=None if separators is None else tuple(map(str, separators)),  # type: ignore[arg-type]
        sort_keys=bool(sort_keys),
    )


class Refused(jinja2.TemplateError):
    """The template called `raise_exception`."""


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
