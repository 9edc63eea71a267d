"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import math
import re

from minillm.config.checks import as_float, require_int, shown
from minillm.errors import UsageError

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_bytes(size: int | str, name: str = "kv_memory") -> int:
    """Bytes of `256MiB`, `1.5 GB`, `4096` (text or number). KiB is 1024, KB 1000, K 1024."""
    if not isinstance(size, str):
        return require_int(name, size, minimum=1)
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*", size)
    if not match or match[2].upper() not in _UNITS:
        raise UsageError(f"{name}={shown(size)} is not a size", 'write bytes or text such as "256MiB"')
    number = float(match[1]) * _UNITS[match[2].upper()]
    if number == math.inf:
        raise UsageError(f"{name}={shown(size)} is not a size", "no memory has so many bytes")
    return require_int(name, int(number), minimum=1)


def format_bytes(count: float) -> str:
    """`count` bytes for people: 3.2 MiB."""
    count = as_float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_apart(*counts: float) -> list[str]:
    """Sizes for people that stand in one sentence: in bytes where different ones would look the same."""
    texts = [format_bytes(count) for count in counts]
    if len(set(texts)) == len(set(counts)):
        return texts
    return [f"{count:,.0f} B" for count in counts]
