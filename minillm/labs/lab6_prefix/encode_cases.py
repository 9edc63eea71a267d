"""Task 6.1, keys as bytes: cases and known mistakes of `encode`."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.memory.prefix_cache import encode, sha256

Encode = Callable[..., bytes]


def bytes_of(answer: Any) -> bytes:
    """The answer, which must be bytes: `bytes(7)` would accept a number."""
    return bytes(memoryview(answer))


def encode_case(title: str, *keys: tuple[Any, ...]) -> Case:
    """The keys that have the same bytes as an earlier key; there should be none."""

    def run(function: Encode) -> list[str]:
        seen: dict[bytes, tuple[Any, ...]] = {}
        clashes = []
        for key in keys:
            first = seen.setdefault(bytes_of(function(*key)), key)
            if first is not key:
                clashes.append(f"{first} = {key}")
        return clashes

    return Case(f"{title}: {', '.join(map(str, keys))}", run)


def smuggle_case(function: Encode) -> bool:
    """Whether two fields can look like two others, if a field contains the separator between fields."""
    left, right = b"XYX", b"ZYZ"
    between = bytes_of(function(left, right)).partition(left)[2].partition(right)[0]
    return bytes_of(function(left + between + right, b"!")) == bytes_of(
        function(left, right + between + b"!")
    )


def nested_case(function: Encode) -> list[Words]:
    """Whether an encoding, as a field, looks like its fields after an empty one: its length is cut."""
    if _looks_nested(function, b"x"):
        return []  # there is no length at all: the case before shows that
    found = []
    for size in (256, 65_536):
        start = size - len(bytes_of(function("m", b"")))
        fields = (b"x" * count for count in range(max(0, start - 8), start + 1))
        if any(len(bytes_of(function("m", f))) == size and _looks_nested(function, f) for f in fields):
            found.append(Words(f"a field of {size:,} bytes looks like an empty one and two others"))
    return found


def _looks_nested(function: Encode, field: bytes) -> bool:
    """Whether ("m", field) encoded, as one field, equals an empty field and these two."""
    inner = bytes_of(function("m", field))
    try:
        return bytes_of(function(inner)) == bytes_of(function(b"", "m", field))
    except (OverflowError, struct.error):
        return False  # too long for this encoding, but no collision


def same_case(function: Encode) -> list[bool]:
    """Equal fields have equal bytes, also if the ids are in another type of sequence, or one object twice."""
    once = bytes_of(function("m", None, [1, 2]))
    text = "".join(["al", "ice"])
    pairs = [(text, text), (text, "".join(["ali", "ce"]))]
    return [
        *(once == bytes_of(function("m", None, other)) for other in ([1, 2], (1, 2))),
        bytes_of(function(*pairs[0])) == bytes_of(function(*pairs[1])),
    ]


def changed_case(function: Encode) -> list[bool]:
    """A list of ids that changes between two calls, and is not changed by them."""
    ids = [1, 2]
    before = bytes_of(function("m", ids))
    ids[1] = 3
    after = bytes_of(function("m", ids))
    return [before != after, after == bytes_of(function("m", [1, 3])), ids == [1, 3]]


def long_case(function: Encode) -> bool:
    """Whether every id of a long list is in the bytes, also the last."""
    ids = list(range(3000))
    changed = [[*ids[:at], at + 2**30, *ids[at + 1 :]] for at in (0, 1500, 2999)]
    return len({bytes_of(function("m", listed)) for listed in (ids, ids[:-1], *changed)}) == 5


def length_case(function: Encode) -> Words:
    """The bytes of 1000 ids of 16 bits: 2000 bytes are needed."""
    ids = [i * 64_123 % 65_536 for i in range(1000)]
    size = len(bytes_of(function("model", ids)))
    if size < 2000:
        return Words("less than 2000 bytes, which 1000 ids of 16 bits need")
    return Words("2000 to 64,000 bytes" if size <= 64_000 else "more than 64,000 bytes for 1000 ids")


# --- known mistakes ---------------------------------------------------------------------------------


def joined(between: bytes, show: Callable[[Any], bytes]) -> Encode:
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
    return (b"l" if isinstance(field, tuple) else type(field).__name__[:1].encode()) + payload(field)


def shown(field: Any) -> bytes:
    """A field as text."""
    return str(list(field) if isinstance(field, tuple) else field).encode()


def narrow_ids(*fields: Any) -> bytes:
    """Encodes each id in two bytes."""
    return encode(*([i % (1 << 16) for i in f] if isinstance(f, list | tuple) else f for f in fields))


def byte_ids(*fields: Any) -> bytes:
    """Encodes each id in one byte."""
    return encode(*([i % (1 << 8) for i in f] if isinstance(f, list | tuple) else f for f in fields))


def one_byte_ids(*fields: Any) -> bytes:
    """Encodes each id in one byte, so it cannot encode one above 255."""
    for field in fields:
        if isinstance(field, list | tuple):
            bytes(field)
    return encode(*fields)


def digits_of_ids(*fields: Any) -> bytes:
    """Writes the ids of a list one after the other as text; type and length of the field are there."""
    texts = ("".join(map(str, f)) if isinstance(f, list | tuple) else f for f in fields)
    return b"".join(tagged(f)[:1] + sized(text) for f, text in zip(fields, texts, strict=True))


def cut_length(*fields: Any) -> bytes:
    """Writes the length of a field in one byte, modulo 256."""
    return b"".join(tagged(f)[:1] + bytes([len(payload(f)) % 256]) + payload(f) for f in fields)


def hashed(*fields: Any) -> bytes:
    """Python's hash of the fields."""
    return b"%d" % hash(tuple(tuple(f) if isinstance(f, list) else f for f in fields))


def as_json(*fields: Any) -> bytes:
    """JSON with bytes as text."""
    return json.dumps([f.decode("latin-1") if isinstance(f, bytes) else f for f in fields]).encode()


ENCODE_CASES = (
    encode_case("moved to the next field", ("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("abc",)),
    encode_case("with a separator in it", *((f"a{s}b", "c") for s in ",|"), *(("a", f"b{s}c") for s in ",|")),
    encode_case("nothing, in many ways", (None,), ("",), (b"",), ([],), (0,), ("None",), ("[]",), ()),
    encode_case("nothing, more than once", ("",), ("", ""), (None, None), ([], []), (b"", b"")),
    encode_case("one, in many ways", (1,), ("1",), (b"1",), ([1],), ((49,),), ("[1]",), ("b'1'",)),
    encode_case("ids in two fields", ([1], [2, 3]), ([1, 2], [3]), ([1, 2, 3], []), ([], [1, 2, 3])),
    encode_case("the digits of ids", ([1, 23],), ([12, 3],), ([123],), ([1, 2, 3],), ([1, 20], "3")),
    encode_case("the order of ids and of fields", ([1, 2], "m"), ([2, 1], "m"), ("m", [1, 2]), ([1, 12],)),
    encode_case("large ids", ([70_000],), ([70_000 - 65_536],), ([112, 17, 1],), ([1, 70_000],), ([112],)),
    encode_case("large numbers", (2**61 - 1,), (0,), (2**32,), (1,)),
    encode_case("letters of other languages", ("é",), ("è",), ("?",), ("",), ("鳥",), ("魚",)),
    Case("a field that contains the separator between two fields", smuggle_case),
    Case("a field that is itself an encoding", nested_case),
    Case("the same key twice, with its ids in a list and in a tuple", same_case),
    Case("a list of ids that changes after a call", changed_case, "aliasing"),
    Case("long lists that differ in one id", long_case),
    Case("how many bytes", length_case, "cost"),
)
ENCODE_MISTAKES = (
    Mistake(
        "the border between two fields is not encoded: add the length of each field", joined(b"", payload)
    ),
    Mistake("fields have no type: None, an empty text and no ids are different keys", joined(b"", sized)),
    Mistake("a separator or a tag can also occur in a field: add the length", joined(b"|", tagged)),
    Mistake("text, bytes and numbers look alike, and a field can contain `|`", joined(b"|", shown)),
    Mistake("text, bytes and numbers look alike, and a field can contain `,`", joined(b",", shown)),
    Mistake("the fields are written one after the other as text, without a border", joined(b"", shown)),
    Mistake("the ids of a list have no border: [1, 23] and [12, 3] look alike", digits_of_ids),
    Mistake("the length of a field is cut to one byte: a field can be longer than 255 bytes", cut_length),
    Mistake("ids are cut to 16 bits: a vocabulary can be larger", narrow_ids),
    Mistake("ids are written in one byte each: a vocabulary is larger", one_byte_ids),
    Mistake("ids are cut to 8 bits: a vocabulary is larger", byte_ids),
    Mistake(
        "the type of sequence is encoded: a list and a tuple of the same ids are the same key",
        lambda *fields: repr(fields).encode(),
    ),
    Mistake("bytes become text, so `b'1'` and `'1'` are one key: write the type", as_json),
    Mistake(
        "pickle writes which fields are one object: equal keys can have different bytes",
        lambda *fields: pickle.dumps([list(f) if isinstance(f, tuple) else f for f in fields]),
    ),
    Mistake(
        "Python's `hash` is not an encoding: different keys can have the same hash, and the hash of a text "
        "is another one in the next run",
        hashed,
    ),
    Mistake(
        "a hash is not an encoding: it is too short to hold the fields. `digest` hashes",
        lambda *fields: sha256(encode(*fields)),
    ),
)


def random_keys(random: Random) -> Iterable[Case]:
    """Random cases: keys whose fields were moved, split or joined."""
    for number in range(4):
        text = "".join(random.choice("ab,|:\0\\'\"é") for _ in range(8))
        at, ids = random.randint(1, 7), [random.randrange(200_000) for _ in range(4)]
        keys: list[tuple[Any, ...]] = [(text,), (text[:at], text[at:]), (text.encode(), ""), (text, "")]
        keys += [(ids,), (ids[:2], ids[2:]), (ids[:1], ids[1:]), (ids[::-1] + [0],), (str(ids),), (ids[0],)]
        yield encode_case(f"random keys {number + 1}", *keys)
