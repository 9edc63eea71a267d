"""Task 6.1, keys as bytes: cases and known mistakes of `encode`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.memory.prefix_cache import encode


def encode_case(title: str, *keys: tuple[Any, ...]) -> Case:
    """The keys that have the same bytes as an earlier key; there should be none."""

    def run(function: Callable[..., bytes]) -> list[str]:
        seen: dict[bytes, tuple[Any, ...]] = {}
        clashes = []
        for key in keys:
            first = seen.setdefault(bytes(function(*key)), key)
            if first is not key:
                clashes.append(f"{first} = {key}")
        return clashes

    return Case(f"{title}: {', '.join(map(str, keys))}", run)


def smuggle_case(function: Callable[..., bytes]) -> bool:
    """Whether two fields can look like two others, if a field contains the separator between fields."""
    left, right = b"XYX", b"ZYZ"
    between = bytes(function(left, right)).partition(left)[2].partition(right)[0]
    return function(left + between + right, b"!") == function(left, right + between + b"!")


def same_case(function: Callable[..., bytes]) -> list[bool]:
    """Equal fields have equal bytes, also if the ids are in another type of sequence."""
    return [function("m", None, [1, 2]) == function("m", None, other) for other in ([1, 2], (1, 2))]


def joined(between: bytes, show: Callable[[Any], bytes]) -> Callable[..., bytes]:
    """An encoding that joins `show(field)` of all fields."""
    return lambda *fields: between.join(show(field) for field in fields)


def payload(field: Any) -> bytes:
    """A field's bytes, without its type and its length."""
    if isinstance(field, list | tuple):
        return b"".join(i.to_bytes(8, "little") for i in field)
    return field if isinstance(field, bytes) else b"" if field is None else str(field).encode()


def sized(field: Any) -> bytes:
    """A field's length and bytes."""
    return len(payload(field)).to_bytes(8, "little") + payload(field)


def tagged(field: Any) -> bytes:
    """A field's type and bytes."""
    kind = list if isinstance(field, tuple) else type(field)
    return kind.__name__.encode() + b":" + payload(field)


def narrow_ids(*fields: Any) -> bytes:
    """Encodes each id in two bytes."""
    return encode(*([i % (1 << 16) for i in f] if isinstance(f, list | tuple) else f for f in fields))


ENCODE_CASES = (
    encode_case("moved to the next field", ("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")),
    encode_case("with a comma in it", ("a,b", "c"), ("a", "b,c")),
    encode_case("nothing, in many ways", (None,), ("",), (b"",), ([],), (0,), ("None",)),
    encode_case("one, in many ways", (1,), ("1",), (b"1",), ([1],), ((49,),)),
    encode_case("ids in two fields", ([1], [2, 3]), ([1, 2], [3]), ([1, 2, 3], []), ([], [1, 2, 3])),
    encode_case("large ids", ([70_000],), ([70_000 - 65_536],), ([112, 17, 1],), ([1, 70_000],)),
    Case("a field that contains the separator between two fields", smuggle_case),
    Case("the same key twice, with its ids in a list and in a tuple", same_case),
)
ENCODE_MISTAKES = (
    Mistake(
        "the border between two fields is not encoded: add the length of each field", joined(b"", payload)
    ),
    Mistake("fields have no type: None, an empty text and no ids are different keys", joined(b"", sized)),
    Mistake("a separator or a tag can also occur in a field: add the length", joined(b"|", tagged)),
    Mistake("ids are cut to 16 bits: a vocabulary can be larger", narrow_ids),
    Mistake(
        "the type of sequence is encoded: a list and a tuple of the same ids are the same key",
        lambda *fields: repr(fields).encode(),
    ),
    Mistake(
        "Python's `hash` is not an encoding: different keys can have the same hash",
        lambda *fields: b"%d" % hash(str(fields[0])),
    ),
)
