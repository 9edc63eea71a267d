"""Task 6.2, the key of a block: cases and known mistakes of `digest`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.lab6_prefix.cache_user import FIRST, HOME, SECOND
from minillm.memory import prefix_cache
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import PrefixCache, Scope, encode, sha256

Key = tuple[Scope, bytes | None, Sequence[int]]


def new_cache(cache_class: Any, hash_function: Callable[[bytes], bytes] = sha256) -> Any:
    """A cache over a small pool."""
    return cache_class(BlockPool(8, 4), hash_function)


def changes_case(title: str, whole: Key, changes: dict[str, Key]) -> Case:
    """The names of the single changes that do not change a block's digest."""

    def run(cache_class: Any) -> list[str]:
        cache = new_cache(cache_class)
        own = cache.digest(*whole)
        return [name for name, key in changes.items() if cache.digest(*key) == own]

    return Case(title, run)


WHOLE: Key = (Scope("model", "alice", "image"), b"parent", FIRST)
CHANGES: dict[str, Key] = {
    "envelope": (Scope("other", "alice", "image"), b"parent", FIRST),
    "tenant": (Scope("model", "bob", "image"), b"parent", FIRST),
    "no tenant": (Scope("model", None, "image"), b"parent", FIRST),
    "a tenant with the name None": (Scope("model", "None", "image"), b"parent", FIRST),
    "conditioning": (Scope("model", "alice", "sound"), b"parent", FIRST),
    "no conditioning": (Scope("model", "alice"), b"parent", FIRST),
    "parent": (WHOLE[0], b"another", FIRST),
    "no parent": (WHOLE[0], None, FIRST),
    "token ids": (WHOLE[0], b"parent", SECOND),
    "the last id": (WHOLE[0], b"parent", (*FIRST[:-1], 9)),
    "the first id": (WHOLE[0], b"parent", (9, *FIRST[1:])),
    "order of the ids": (WHOLE[0], b"parent", FIRST[::-1]),
    "a large id": (WHOLE[0], b"parent", (FIRST[0] + 65_536, *FIRST[1:])),
    "tenant and envelope exchanged": (Scope("alice", "model", "image"), b"parent", FIRST),
    "a letter moved from envelope to tenant": (Scope("mode", "lalice", "image"), b"parent", FIRST),
    "tenant moved to conditioning": (Scope("model", None, "aliceimage"), b"parent", FIRST),
}

FIRST_CHANGES: dict[str, Key] = {
    "empty parent": (HOME, b"", FIRST),
    "parent": (HOME, b"parent", FIRST),
    "empty tenant": (Scope("model", ""), None, FIRST),
}


@contextmanager
def another_schema(cache_class: Any) -> Iterator[None]:
    """Another version of the format, for the engine and for the module that defines `digest`."""
    places = [vars(prefix_cache), getattr(cache_class.digest, "__globals__", {})]
    saved = [(place, place["SCHEMA"]) for place in places if "SCHEMA" in place]
    try:
        for place, value in saved:
            place["SCHEMA"] = value + 1
        yield
    finally:
        for place, value in saved:
            place["SCHEMA"] = value


def schema_case(cache_class: Any) -> Words:
    """Does the digest change with the version of the format?"""
    cache = new_cache(cache_class)
    before = cache.digest(*WHOLE)
    with another_schema(cache_class):
        is_same = cache.digest(*WHOLE) == before
    return Words("the digest does not change with SCHEMA" if is_same else "the digest changes with SCHEMA")


def used_hash_case(cache_class: Any) -> list[Any]:
    """The digest is what the cache's hash function returns; equal keys in other objects are equal."""
    cache = new_cache(cache_class, lambda data: b"digest of the cache")
    is_used = cache.digest(*WHOLE) == b"digest of the cache"
    cache = new_cache(cache_class)
    again = [cache.digest(HOME, b"parent", ids) for ids in (list(FIRST), FIRST, list(FIRST))]
    return [Words("the cache's hash function" if is_used else "another hash"), len(set(again)) == 1]


def twice_case(cache_class: Any) -> list[bool]:
    """One list that changes between two calls, and two caches in turns."""
    one, two = (new_cache(cache_class, hash_function) for hash_function in (sha256, lambda data: data))
    ids = list(FIRST)
    before = one.digest(HOME, None, ids), two.digest(HOME, None, ids)
    ids[0] = 77
    after = one.digest(HOME, None, ids), two.digest(HOME, None, ids)
    fresh = one.digest(HOME, None, [77, *FIRST[1:]])
    return [before[0] != after[0], before[1] != after[1], after[0] == fresh, ids == [77, *FIRST[1:]]]


def cost_case(cache_class: Any) -> Words:
    """Bytes that are hashed for block 2 and for block 40 of one text."""
    inputs: list[int] = []

    def watched(data: bytes) -> bytes:
        inputs.append(len(data))
        return sha256(data)

    cache, parent, sizes = new_cache(cache_class, watched), None, list[int]()
    for i in range(40):
        inputs.clear()
        parent = cache.digest(HOME, parent, [i, i + 1, i + 2, i + 3])
        sizes.append(sum(inputs))
    if sizes[-1] > 2 * sizes[1]:
        return Words("more than twice as many bytes hashed for block 40 as for block 2")
    return Words("as many bytes hashed for block 40 as for block 2")


# --- known mistakes ---------------------------------------------------------------------------------


class Digests(PrefixCache):
    """The engine's digest; subclasses change one field of the key."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(prefix_cache.SCHEMA, *scope, parent, token_ids)

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return self._hash(self._key(scope, parent, token_ids))


Fields = Callable[[Scope, bytes | None, Sequence[int]], Sequence[Any]]


def with_fields(fields: Fields, has_schema: bool = True) -> type[Digests]:
    """A cache whose key has these fields after the version of the format."""

    class Keyed(Digests):
        def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
            first = [prefix_cache.SCHEMA] if has_schema else []
            return encode(*first, *fields(scope, parent, token_ids))

    return Keyed


class OwnHash(Digests):
    """Does not use the function that the cache was created with."""

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return hashlib.sha256(self._key(scope, parent, token_ids)).digest()


class WholeText(Digests):
    """Hashes all tokens from the beginning of the text on."""

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        texts = vars(self).setdefault("texts", {})
        text = [*texts.get(parent, ()), *token_ids]
        digest = self._hash(encode(prefix_cache.SCHEMA, *scope, parent, text))
        texts[digest] = text
        return digest


class ByObject(Digests):
    """Remembers the digest of a list by the list's address."""

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        known: dict[Any, bytes] = vars(self).setdefault("known", {})
        key = (prefix_cache.SCHEMA, scope, parent, id(token_ids))
        if key not in known or isinstance(token_ids, tuple):
            known[key] = super().digest(scope, parent, token_ids)
        return known[key]


def glued(scope: Scope, parent: bytes | None, ids: Sequence[int]) -> Sequence[Any]:
    """The scope as one text."""
    return "".join(str(field) for field in scope), parent, ids


DIGEST_CASES = (
    changes_case("changes that do not change the digest", WHOLE, CHANGES),
    changes_case("changes of a first block", (HOME, None, FIRST), FIRST_CHANGES),
    Case("the version of the format", schema_case),
    Case("the hash function", used_hash_case),
    Case("a list of ids that changes after a call, and two caches", twice_case, "aliasing"),
    Case("bytes hashed for each block of a long text", cost_case, "cost"),
)
DIGEST_MISTAKES = (
    Mistake(
        "the parent is missing: the same tokens after another beginning have other keys and values",
        with_fields(lambda scope, parent, ids: (*scope, ids)),
    ),
    Mistake(
        "the scope is missing: blocks are shared only within equal scopes",
        with_fields(lambda scope, parent, ids: (parent, ids)),
    ),
    Mistake(
        "only the envelope of the scope is in the key: add tenant and conditioning",
        with_fields(lambda scope, parent, ids: (scope.envelope, parent, ids)),
    ),
    Mistake(
        "the tenant is missing: one tenant finds the blocks of another",
        with_fields(lambda scope, parent, ids: (scope.envelope, scope.conditioning, parent, ids)),
    ),
    Mistake(
        "the conditioning is missing: it changes keys and values",
        with_fields(lambda scope, parent, ids: (scope.envelope, scope.tenant, parent, ids)),
    ),
    Mistake(
        "the envelope is missing: another model computes other keys and values",
        with_fields(lambda scope, parent, ids: (scope.tenant, scope.conditioning, parent, ids)),
    ),
    Mistake(
        "the scope is joined to one text, so its fields run into each other: encode each as a field",
        with_fields(glued),
    ),
    Mistake("the token ids are missing", with_fields(lambda scope, parent, ids: (*scope, parent))),
    Mistake(
        "an absent parent and an empty one are the same key: pass None to `encode`",
        with_fields(lambda scope, parent, ids: (*scope, parent or b"", ids)),
    ),
    Mistake(
        "the digest does not change with the version of the format: SCHEMA is a field of the key too",
        with_fields(lambda scope, parent, ids: (*scope, parent, ids), has_schema=False),
    ),
    Mistake(
        "the ids are sorted: their order is a part of the key",
        with_fields(lambda scope, parent, ids: (*scope, parent, sorted(ids))),
    ),
    Mistake("the hash function given to the cache is not used: call `self._hash`", OwnHash),
    Mistake(
        "the whole text is hashed for each block: the parent's digest stands for everything before",
        WholeText,
    ),
    Mistake("a digest is remembered by the address of a list, whose ids can change", ByObject),
)


def random_changes(random: Random) -> Iterable[Case]:
    """Random cases: a key, and one change in each of its fields."""
    names = ["".join(random.choice("abc") for _ in range(3)) for _ in range(4)]
    parent, ids = random.randbytes(8), [random.randrange(100_000) for _ in range(4)]
    scope = Scope(*names[:3])
    changes: dict[str, Key] = {
        **{f: (scope._replace(**{f: getattr(scope, f) + names[3]}), parent, ids) for f in Scope._fields},
        "parent": (scope, random.randbytes(8), ids),
        "ids": (scope, parent, [ids[0] + 1, *ids[1:]]),
        "number of ids": (scope, parent, ids[:-1]),
    }
    yield changes_case(f"random changes of {scope}", (scope, parent, ids), changes)
