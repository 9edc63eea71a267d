"""One encoding of plain values as bytes: equal values have equal bytes, different values never do.

A digest says "the same" only if its input says it. JSON with `default=str` does not: the text "1" and a path
`1` become the same characters, and so do the keys 1 and "1". Here every value carries its type and length:

    value       tag   length (8 bytes, little-endian)   payload
    None        n     0
    False       o     1                                 0
    3           i     1                                 the integer in two's complement, as short as possible
    0.5         f     8                                 the bits of the float64
    "ab"        s     2                                 UTF-8; a lone surrogate has three bytes of its own
    b"ab"       b     2                                 the bytes
    [3, "ab"]   l     ...                               its items, encoded, one after the other
    {"k": 3}    m     ...                               its keys and values, encoded, in the order of the keys

From the bytes the value could be decoded again, so no two values share them, however they are nested. Nothing
depends on the order of a dict, the hash seed or the process. A list and a tuple of the same items are equal.
0.0 and -0.0 differ, because their bits do. 1, 1.0 and True differ, because their types do.

`prefix_cache.encode` is the same idea for the flat keys of blocks, where speed counts.

Left out: values of any other type. They are refused, subclasses too: a subclass can mean more than its value.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

from minillm.errors import EncodingError


def digest(value: Any) -> str:
    """The SHA-256 of the encoded value, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    """Encode None, bool, int, float, str, bytes, and lists, tuples and dicts with text keys of these.

    Raises:
        EncodingError: any other type, NaN, a value that contains itself.
    """
    try:
        return _encoded(value)
    except RecursionError:
        raise EncodingError("the value is nested too deeply, or contains itself") from None


def _encoded(value: Any) -> bytes:
    if type(value) in (list, tuple):
        return _frame(b"l", b"".join(map(_encoded, value)))
    if type(value) is dict:
        pairs = sorted((_key(key), _encoded(item)) for key, item in value.items())
        return _frame(b"m", b"".join(key + item for key, item in pairs))
    tag, payload = _scalar(value)
    return _frame(tag, payload)


def _frame(tag: bytes, payload: bytes) -> bytes:
    return tag + len(payload).to_bytes(8, "little") + payload


def _key(key: Any) -> bytes:
    if type(key) is not str:
        raise EncodingError(f"a key of type {type(key).__name__} cannot be encoded", "use text")
    return _encoded(key)


def _scalar(value: Any) -> tuple[bytes, bytes]:
    kind = type(value)
    if value is None:
        return b"n", b""
    if kind is bool:
        return b"o", bytes([value])
    if kind is int:
        return b"i", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if kind is float:
        return b"f", _float_bits(value)
    if kind is str:
        return b"s", value.encode("utf-8", "surrogatepass")
    if kind is bytes:
        return b"b", value
    raise EncodingError(f"a value of type {kind.__name__} cannot be encoded", "turn it into plain values")


def _float_bits(value: float) -> bytes:
    if math.isnan(value):
        raise EncodingError("NaN cannot be encoded", "it is equal to nothing, not even to itself")
    return struct.pack("<d", value)
