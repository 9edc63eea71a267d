"""The keys of the prefix cache, for lab 6: cases and known mistakes of `encode` and `digest`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minillm.labs.lab import Case, Mistake
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import SCHEMA, PrefixCache, Scope, encode, sha256

HOME = Scope("model")
FIRST, SECOND, OTHER = (1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9)  # token ids of a block

# --- 6.1 the encoding ---------------------------------------------------------------------------------


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

# --- 6.2 the digest -----------------------------------------------------------------------------------


def digest_case(cache_class: Any) -> list[str]:
    """Which one changes leave a block's digest as it was."""
    cache = cache_class(BlockPool(8, 4))
    whole = (Scope("model", "alice", "image"), b"parent", FIRST)
    changes: dict[str, tuple[Scope, bytes | None, Sequence[int]]] = {
        "envelope": (Scope("other", "alice", "image"), b"parent", FIRST),
        "tenant": (Scope("model", "bob", "image"), b"parent", FIRST),
        "no tenant": (Scope("model", None, "image"), b"parent", FIRST),
        "conditioning": (Scope("model", "alice", "sound"), b"parent", FIRST),
        "parent": (whole[0], b"another", FIRST),
        "no parent": (whole[0], None, FIRST),
        "token ids": (whole[0], b"parent", SECOND),
        "order of the ids": (whole[0], b"parent", FIRST[::-1]),
        "tenant and envelope exchanged": (Scope("alice", "model", "image"), b"parent", FIRST),
        "tenant moved to conditioning": (Scope("model", None, "aliceimage"), b"parent", FIRST),
    }
    own = cache.digest(*whole)
    return [*(name for name, key in changes.items() if cache.digest(*key) == own)]


def used_hash_case(cache_class: Any) -> list[Any]:
    """Equal keys agree, the cache's own hash function is asked, and the schema is in what it is given."""
    hashed: list[bytes] = []

    def watched(data: bytes) -> bytes:
        hashed.append(data)
        return b"digest"

    cache = cache_class(BlockPool(8, 4), watched)
    found = [cache.digest(HOME, b"parent", ids) for ids in (list(FIRST), FIRST)]
    return [found, [encode(SCHEMA) in data for data in hashed]]


class Digests(PrefixCache):
    """The engine's digest of a key with one field exchanged."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent, token_ids)

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return self._hash(self._key(scope, parent, token_ids))


class NoChain(Digests):
    """The same tokens anywhere."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, None, token_ids)


class NoScope(Digests):
    """The same tokens of anybody."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, parent, token_ids)


class NoTenant(Digests):
    """Of the scope, the model's part alone."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, scope.envelope, parent, token_ids)


class NoTokens(Digests):
    """Who and where, but not what."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent)


class NoSchema(Digests):
    """As if the format would never change."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(*scope, parent, token_ids)


class AnyOrder(Digests):
    """A set of tokens."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent, sorted(token_ids))


class OwnHash(Digests):
    """Not the function that the cache was made with."""

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return sha256(self._key(scope, parent, token_ids))


DIGEST_CASES = (
    Case("a change that leaves the digest as it was", digest_case),
    Case("what is hashed, and by whom", used_hash_case),
)
DIGEST_MISTAKES = (
    Mistake(
        "the parent is missing: the same tokens behind another beginning have other keys and values", NoChain
    ),
    Mistake("the scope is missing: who may share is a part of the key", NoScope),
    Mistake("only the envelope of the scope is in the key: tenant and conditioning belong to it", NoTenant),
    Mistake("the token ids are missing", NoTokens),
    Mistake("the version of the format is missing: SCHEMA is a field, too", NoSchema),
    Mistake("the ids are sorted: their order is what was read", AnyOrder),
    Mistake("the hash function given to the cache is not used", OwnHash),
)
