"""Task 6.1, keys as bytes: cases and known mistakes of `encode`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.memory.prefix_cache import encode


def encode_case(title: str, *keys: tuple[Any, ...]) -> Case:
    """Which of these keys have the same bytes as an earlier one; none of the given ones should."""

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
    """Whether two fields can be read as two others, where one holds what stands between two fields."""
    left, right = b"XYX", b"ZYZ"
    between = bytes(function(left, right)).partition(left)[2].partition(right)[0]
    return function(left + between + right, b"!") == function(left, right + between + b"!")


def same_case(function: Callable[..., bytes]) -> list[bool]:
    """Equal fields have equal bytes, in whichever kind of sequence the ids come."""
    return [function("m", None, [1, 2]) == function("m", None, other) for other in ([1, 2], (1, 2))]


def joined(between: bytes, show: Callable[[Any], bytes]) -> Callable[..., bytes]:
    """An encoding that joins what `show` makes of the fields."""
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
    """Ids in two bytes each."""
    return encode(*([i % (1 << 16) for i in f] if isinstance(f, list | tuple) else f for f in fields))


ENCODE_CASES = (
    encode_case("moved to the next field", ("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")),
    encode_case("with a comma in it", ("a,b", "c"), ("a", "b,c")),
    encode_case("nothing, in many ways", (None,), ("",), (b"",), ([],), (0,), ("None",)),
    encode_case("one, in many ways", (1,), ("1",), (b"1",), ([1],), ((49,),)),
    encode_case("ids in two fields", ([1], [2, 3]), ([1, 2], [3]), ([1, 2, 3], []), ([], [1, 2, 3])),
    encode_case("large ids", ([70_000],), ([70_000 - 65_536],), ([112, 17, 1],), ([1, 70_000],)),
    Case("a field that holds what stands between two fields", smuggle_case),
    Case("the same key twice, its ids in a list and in a tuple", same_case),
)
ENCODE_MISTAKES = (
    Mistake("fields run into each other: give each its length", joined(b"", payload)),
    Mistake("fields have no type: None, an empty text and no ids are different keys", joined(b"", sized)),
    Mistake("a separator or a tag is no length: it can occur in a field, too", joined(b"|", tagged)),
    Mistake("ids are cut to 16 bits: a vocabulary can be larger", narrow_ids),
    Mistake(
        "the kind of sequence is encoded: a list and a tuple of the same ids are the same key",
        lambda *fields: repr(fields).encode(),
    ),
    Mistake(
        "Python's `hash` is no encoding: different keys can have one hash",
        lambda *fields: b"%d" % hash(str(fields[0])),
    ),
)
