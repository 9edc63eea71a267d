"""What a line of a trace may hold: the fields of each kind of event, and a check for each.

A trace that is read may come from anywhere, and its numbers end in a page that a browser runs. So nothing is
taken from a line that is not listed here. A kind or a field that `events.py` gets is listed here, too; a test
reads back every event of real runs. Fields of one line must also agree: a draft has no more accepted tokens
than it has tokens. What two lines must agree in is in `trace_order.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from minillm.config.engine import MAX_DRAFT_TOKENS

LARGEST = (1 << 53) - 1  # the integers that JavaScript can tell apart
MAX_TEXT = 64  # characters of a name in a header
Check = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """An integer from 0 up to `LARGEST`."""
    return type(value) is int and 0 <= value <= LARGEST


def is_number(value: Any) -> bool:
    """A finite number."""
    return type(value) in (int, float) and abs(value) <= LARGEST and math.isfinite(value)


def is_duration(value: Any) -> bool:
    """A finite number that is not negative: seconds."""
    return is_number(value) and value >= 0


def is_request(value: Any) -> bool:
    """A request id, or "": no request."""
    return _matches(value, r"[\w-]{0,64}")


def is_label(value: Any) -> bool:
    """The keyed label of a tenant; "" if it is not known."""
    return _matches(value, "([0-9a-f]{16})?")


def is_digest(value: Any) -> bool:
    """A keyed digest."""
    return _matches(value, "[0-9a-f]{64}")


def is_name(value: Any) -> bool:
    """A reason, a phase: a Python name."""
    return _matches(value, r"[A-Za-z_]\w{0,63}")


def is_some(value: Any) -> bool:
    """An integer from 1 up to `LARGEST`."""
    return is_count(value) and value > 0


def is_phase(value: Any) -> bool:
    """What a `warmup` event marks."""
    return isinstance(value, str) and value in ("begin", "end")


def is_outcome(value: Any) -> bool:
    """Of a draft: its tokens, the depth of its longest branch, the accepted ones: never more and more."""
    return _THREE_COUNTS(value) and value[2] <= value[1] <= min(value[0], MAX_DRAFT_TOKENS)


def is_blocks(value: Any) -> bool:
    """A list of block ids."""
    return isinstance(value, list) and all(map(is_count, value))


def _matches(value: Any, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _all(*checks: Check) -> Check:
    """A list with one value for each check."""
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(checks)
        and all(c(v) for c, v in zip(checks, value, strict=True))
    )


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _named(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(is_name(k) and check(v) for k, v in value.items())


_THREE_COUNTS = _all(is_count, is_count, is_count)
_BLOCKS = {"blocks": is_count}
_SEQUENCES = {"requests": _list(_all(is_request, is_count))}
_STEP = (
    *("prefill_tokens", "decode_rows", "context", "waiting", "running", "used", "cached", "free"),
    *("slots", "waste"),
)
FIELDS: Mapping[str, Mapping[str, Check]] = {
    "queue": {"prompt_tokens": is_count, "n": is_some, "prompt": is_digest, "tenant": is_label},
    "refuse": {"reason": is_name, "tenant": is_label},
    "admit": {"cached_tokens": is_count, "waited": is_duration},
    "share": _BLOCKS,
    "prefill_chunk": {"start": is_count, "end": is_count, "tokens": is_count},
    "decode_step": {"rows": is_count},
    "sample": _SEQUENCES,
    "speculate": {
        **_SEQUENCES,
        "outcomes": _list(is_outcome),
        "rows": is_count,
        "draft_seconds": is_duration,
        "verify_seconds": is_duration,
    },
    "alloc": _BLOCKS,
    "free": _BLOCKS,
    "copy_on_write": _BLOCKS,
    "publish": _BLOCKS,
    "evict": {**_BLOCKS, "cause": is_name},
    "preempt": {"tokens": is_count},
    "resume": {"cached_tokens": is_count},
    "cancel": {"reason": is_name},
    "finish": {"index": is_count, "reason": is_name, "answer": is_digest},
    "warmup": {"phase": is_phase},
    "step": {
        "seconds": is_duration,
        **{name: is_count for name in _STEP},
        "phases": _named(is_duration),
        "held": _named(is_count),
    },
    "blocks": {
        "tables": _list(_all(is_request, is_count, is_blocks)),
        "cached": is_blocks,
        "uncached": is_blocks,
    },
}

# Pairs of fields of a kind: the first is at most the second.
AT_MOST: Mapping[str, tuple[str, str]] = {"prefill_chunk": ("start", "end"), "step": ("waste", "slots")}

# Fields that not every event of the kind has.
OPTIONAL: Mapping[str, Mapping[str, Check]] = {
    "warmup": {
        **{name: is_duration for name in ("load", "compile", "allocation", "first", "again")},
        "requests": is_count,
    }
}


def wrong_field(kind: str, data: Mapping[str, Any]) -> str | None:
    """The name of a field of an event that is wrong, missing or too much; None if all are right."""
    fields, optional = FIELDS[kind], OPTIONAL.get(kind, {})
    if missing := [name for name in fields if name not in data]:
        return missing[0]
    checks = {**fields, **optional}
    wrong = next((name for name in data if name not in checks or not checks[name](data[name])), None)
    if wrong is None and kind in AT_MOST:
        low, high = AT_MOST[kind]
        return low if data[low] > data[high] else None
    if wrong is None and kind == "speculate" and len(data["requests"]) != len(data["outcomes"]):
        return "outcomes"
    return wrong


def is_plain(value: Any) -> bool:
    """A value of a header: a number, a short text, a truth value, None, or an object of these."""
    if isinstance(value, dict):
        return all(is_name(key) and not isinstance(v, dict) and is_plain(v) for key, v in value.items())
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value.isprintable()
    return value is None or isinstance(value, bool) or is_number(value)


def wrong_shape(model: Mapping[str, Any]) -> list[str]:
    """The names of what the page says about a model, if it is missing or wrong."""
    sizes = ("num_hidden_layers", "hidden_size", "parameters", "max_model_len")
    wrong = [name for name in sizes if not is_some(model.get(name))]
    return wrong if isinstance(model.get("dtype"), str) else [*wrong, "dtype"]
