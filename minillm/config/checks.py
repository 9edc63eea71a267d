"""Numbers that come from outside, checked: the right kind, in range, and an error that names them."""

from __future__ import annotations

import math

from minillm.errors import UsageError

_MOST_SHOWN = 200  # characters of a value
_MOST_BITS = 1024  # of an integer without a limit of its own


def shown(value: object) -> str:
    """`value` for an error message: its repr, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits, a list inside itself a thousand times
        return f"a value of type {type(value).__name__}"
    return shortened(text)


def shortened(text: str) -> str:
    """`text`, cut where it is long."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"


def require_int(name: str, value: object, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` if it is an integer in [minimum, maximum]; a bool is not an integer here."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be an integer, not {shown(value)}")
    if minimum is not None and value < minimum:
        raise UsageError(f"{name} must be at least {minimum}, not {shown(value)}")
    if maximum is not None and value > maximum:
        raise UsageError(f"{name} must be at most {maximum}, not {shown(value)}")
    if value.bit_length() > _MOST_BITS:  # Python itself does not write such numbers out
        raise UsageError(f"{name} must be an integer of at most {_MOST_BITS} bits, not {shown(value)}")
    return value


def require_number(
    name: str, value: object, low: float, high: float = math.inf, low_open: bool = False
) -> float:
    """Return `value` if it is a finite number in [low, high], or in (low, high] with `low_open`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, not {shown(value)}")
    number = as_float(value)
    if not math.isfinite(number):
        raise UsageError(f"{name} must be finite, not {shown(value)}")
    if number < low or (low_open and number == low) or number > high:
        bounds = f"{'above' if low_open else 'at least'} {low:g}"
        bounds += f" and at most {high:g}" if math.isfinite(high) else ""
        raise UsageError(f"{name} must be {bounds}, not {shown(value)}")
    return number


def as_float(value: int | float) -> float:
    """`value` as a float; infinite where an integer is beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
