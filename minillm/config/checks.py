"""Numbers that come from outside, checked: the right kind, in range, and an error that names them."""

from __future__ import annotations

import math

from minillm.errors import UsageError


def require_int(name: str, value: object, minimum: int | None = None) -> int:
    """Return `value` if it is an integer of at least `minimum`; a bool is not an integer here."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be an integer, not {value!r}")
    if minimum is not None and value < minimum:
        raise UsageError(f"{name} must be at least {minimum}, not {value}")
    return value


def require_number(
    name: str, value: object, low: float, high: float = math.inf, low_open: bool = False
) -> float:
    """Return `value` if it is a finite number in [low, high], or in (low, high] with `low_open`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise UsageError(f"{name} must be finite, not {value}")
    if value < low or (low_open and value == low) or value > high:
        bounds = f"{'above' if low_open else 'at least'} {low:g}"
        bounds += f" and at most {high:g}" if math.isfinite(high) else ""
        raise UsageError(f"{name} must be {bounds}, not {value}")
    return float(value)
