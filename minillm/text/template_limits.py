"""What a chat template may use: steps, seconds, and the size of every value it makes.

A template is a program from a download. Its sandbox (`template_sandbox.py`) asks the `Budget` of the
rendering before each operation, so no operation begins that cannot end soon:

    step     counts each call, filter, operator and loop iteration, and checks the time
    require  the size of a result, known from the operands before it is made: 'x' * 10**9, center, replace
    keep     the size of a value that was made. All values are small, so whatever reads them is quick

Rendering in another process under the system's limits would bound the same. It would cost a process for each
conversation, and stop the same template at another point on another machine. Signals reach the main thread
only. Counting works in any thread, and most templates that fail do so at the same step everywhere.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Sized
from collections.abc import Set as AbstractSet
from typing import Any

from jinja2.runtime import Undefined

from minillm.errors import TemplateLimit

MAX_SECONDS = 10.0
MAX_STEPS = 1_000_000  # and 10 for each pair of messages: templates look for other messages in a loop
MAX_SIZE = 1 << 20  # characters of one value, and 8 for each character that it is given
MAX_MADE = 64  # values of the largest size, in all
MAX_DEPTH = 64  # of calls inside calls, and of lists inside lists
MAX_BITS = 20_000  # of an integer
SLOW_SIZE = 1 << 16  # characters, for filters that take more than linear time
_OBJECT = 64  # characters: the repr of an object
_ITEM = 8  # an item of a list is a word of memory, whatever it is


class Budget:
    """What one rendering may still use. Every method raises `TemplateLimit` where that is too little."""

    def __init__(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> None:
        self.max_size = MAX_SIZE + 8 * (weigh(messages) + weigh(variables))
        self._steps = self._max_steps = MAX_STEPS + 10 * len(messages) ** 2
        self._made = MAX_MADE * self.max_size
        self._deadline = time.monotonic() + MAX_SECONDS
        self._depth = 0

    def step(self) -> None:
        """Count an operation."""
        self._steps -= 1
        if self._steps < 0:
            raise _too_much(f"takes more than {self._max_steps:,} steps")
        if time.monotonic() > self._deadline:
            raise _too_much(f"takes longer than {MAX_SECONDS:g} seconds")

    def require(self, size: float) -> None:
        """Refuse to make a value of `size` characters."""
        if size > self.max_size:
            raise _too_much(f"makes a value of more than {self.max_size:,} characters")

    def keep(self, value: Any) -> Any:
        """The value, if it is no larger than a value may be."""
        size = weigh(value, self.max_size)
        self.require(size)
        self._made -= size
        if self._made < 0:
            raise _too_much(f"makes more than {MAX_MADE * self.max_size:,} characters in all")
        return value

    def counted(self, iterable: Iterable[Any]) -> Iterable[Any]:
        """The same items; each is a step."""
        return _Counted(self, iterable) if isinstance(iterable, Sized) else self.count(iterable)

    def count(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """As `counted`, of anything."""
        for item in iterable:
            self.step()
            yield item

    def nested(self, work: Callable[[], Any]) -> Any:
        """The result of a call, made one level deeper."""
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                raise _too_much(f"calls itself more than {MAX_DEPTH} levels deep")
            return self.keep(work())
        finally:
            self._depth -= 1


class _Counted:
    """An iterable with a length whose items are counted."""

    def __init__(self, budget: Budget, items: Any) -> None:
        self._budget, self._items = budget, items

    def __iter__(self) -> Iterator[Any]:
        return self._budget.count(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _too_much(what: str) -> TemplateLimit:
    return TemplateLimit(
        f"the chat template {what}", "use another template: chat_template.jinja in the folder"
    )


# ---- sizes ----------------------------------------------------------------------------------------


def weigh(value: Any, most: float = math.inf, depth: int = 0) -> int:
    """Characters of a value when it is written out, roughly; counting ends beyond `most`.

    Raises:
        TemplateLimit: lists inside lists inside lists, and so on.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 1
    if value is None or isinstance(value, float | Undefined):
        return 8
    parts = _parts(value)
    if parts is None:
        return _OBJECT
    if depth > MAX_DEPTH:
        raise _too_much(f"nests values more than {MAX_DEPTH} levels deep")
    total = 2
    for part in parts:
        total += _ITEM + weigh(part, most - total, depth + 1)
        if total > most:
            break
    return total


def _parts(value: Any) -> Any:
    """What a container holds, as an iterable; None for anything else."""
    if isinstance(value, Mapping):
        return (part for item in value.items() for part in item)
    if isinstance(value, Sequence | AbstractSet | MappingView) and not isinstance(value, str | bytes | range):
        return value
    return None


def _count_items(value: Any) -> tuple[int, int]:
    """Items in a value, at all depths, and the depth."""
    counted = [_count_items(part) for part in _parts(value) or ()]
    return 1 + sum(items for items, _ in counted), 1 + max((depth for _, depth in counted), default=0)


# ---- operations whose results can be much larger than what they are given -------------------------


def check_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Before `left operator right` is computed."""
    budget.step()
    integers = isinstance(left, int) and isinstance(right, int)
    if operator == "*" and integers:
        _require_bits(left.bit_length() + right.bit_length())
    elif operator == "*":
        for times, value in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, Sequence):
                budget.require(max(times, 0) * weigh(value, budget.max_size))
    elif operator == "**" and integers:
        _require_bits(left.bit_length() * max(right, 0))
    elif operator == "%" and isinstance(left, str):
        check_percent(budget, left, right)
    elif operator == "+":
        budget.require(weigh(left, budget.max_size) + weigh(right, budget.max_size))


def check_percent(budget: Budget, pattern: str, arguments: Any) -> None:
    """Before `pattern % arguments`."""
    _check_fields(budget, pattern, pattern.count("%"), "*" in pattern, arguments)


def check_format(budget: Budget, pattern: str, arguments: Any) -> None:
    """Before `pattern.format(...)`. A field in a field can be a width."""
    has_nested = re.search(r"\{[^{}]*\{", pattern.replace("{{", "")) is not None
    _check_fields(budget, pattern, pattern.count("{"), has_nested, arguments)


def _check_fields(budget: Budget, pattern: str, count: int, takes_widths: bool, arguments: Any) -> None:
    widths = [int(digits[:9]) for digits in re.findall(r"[0-9]+", pattern)]
    if takes_widths:
        widths += [abs(number) for number in _integers(arguments)]
    field = max(widths, default=0) + weigh(arguments, budget.max_size)
    budget.require(len(pattern) + count * field)


def _integers(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [number for part in _parts(value) or () for number in _integers(part)]


def _require_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise _too_much(f"makes an integer of more than {MAX_BITS:,} bits")


def _require_short(text: Any, size: int = SLOW_SIZE) -> None:
    """Before what takes more than linear time."""
    if weigh(text, size) > size:
        raise _too_much(f"uses a slow filter on more than {size:,} characters")


def _number(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else 0


def _check_width(budget: Budget, text: str, width: Any) -> None:
    budget.require(max(len(text), _number(width)))


def _check_replace(budget: Budget, text: str, old: Any, new: Any) -> None:
    """`old` may be empty, and is then found between all characters."""
    budget.require(len(text) + text.count(str(old)) * len(str(new)))


def _check_search(budget: Budget, text: str, other: Any) -> None:
    """Every character of one may be compared with all of the other."""
    if len(text) * len(str(other or "")) > 100 * SLOW_SIZE:
        raise _too_much("searches a long text for a long text")


def _check_join(budget: Budget, items: Sized, separator: Any) -> None:
    budget.require(weigh(items, budget.max_size) + len(str(separator)) * len(items))


def _check_indent(budget: Budget, text: str, width: Any) -> None:
    each = len(width) if isinstance(width, str) else _number(width)
    budget.require(len(text) + (len(text.splitlines()) + 1) * each)


def _check_wordwrap(budget: Budget, text: str, wrapstring: Any) -> None:
    _require_short(text)
    budget.require(len(text) * (1 + len(str(wrapstring or ""))))


def _check_json(budget: Budget, value: Any, indent: Any, separators: Any) -> None:
    items, depth = _count_items(value)
    step = len(indent) if isinstance(indent, str) else _number(indent)
    budget.require(weigh(value, budget.max_size) + items * (depth * step + weigh(separators)))


def _check_round(precision: Any) -> None:
    if _number(precision) > 100:
        raise _too_much("rounds to more than 100 digits")


def _check_sum(start: Any) -> None:
    if not isinstance(start, int | float):
        raise _too_much("adds up what are no numbers")


Arguments = Mapping[str, Any]
# Before a filter is applied: by its name, with its arguments by the names jinja2 gives them.
FILTERS: Mapping[str, Callable[[Budget, Arguments], None]] = {
    "batch": lambda b, a: b.require(_number(a["linecount"]) * (weigh(a["fill_with"], b.max_size) + 2)),
    "center": lambda b, a: _check_width(b, str(a["value"]), a["width"]),
    "format": lambda b, a: check_percent(b, str(a["value"]), [a["args"], a["kwargs"]]),
    "indent": lambda b, a: _check_indent(b, str(a["s"]), a["width"]),
    "join": lambda b, a: _check_join(b, a["value"], a["d"]),
    "pprint": lambda b, a: _require_short(a["value"]),
    "replace": lambda b, a: _check_replace(b, str(a["s"]), a["old"], a["new"]),
    "round": lambda b, a: _check_round(a["precision"]),
    "striptags": lambda b, a: _require_short(a["value"]),
    "sum": lambda b, a: _check_sum(a["start"]),
    "tojson": lambda b, a: _check_json(b, a["value"], a["indent"], a["separators"]),
    "trim": lambda b, a: _check_search(b, str(a["value"]), a["chars"]),
    "urlize": lambda b, a: _require_short(list(a.values())[1:], SLOW_SIZE // 16),
    "wordwrap": lambda b, a: _check_wordwrap(b, str(a["s"]), a["wrapstring"]),
}
_WIDTHS = dict.fromkeys(("center", "ljust", "rjust", "zfill"), lambda b, text, a: _check_width(b, text, a[0]))
_SEARCHES = dict.fromkeys(
    ("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"),
    lambda b, text, a: _check_search(b, text, a[0] if a else ""),
)
# Before a method of a text is called: by its name, with its positional arguments.
METHODS: Mapping[str, Callable[[Budget, str, Sequence[Any]], None]] = {
    **_WIDTHS,
    **_SEARCHES,
    "join": lambda b, text, a: _check_join(b, a[0], text),
    "replace": lambda b, text, a: _check_replace(b, text, a[0], a[1]),
    "striptags": lambda b, text, a: _require_short(text),
    "unescape": lambda b, text, a: _require_short(text),
}
# Methods of texts and numbers that templates do not get: few need them, and each would need a bound here.
REMOVED_METHODS = frozenset("encode expandtabs from_bytes maketrans to_bytes translate".split())
