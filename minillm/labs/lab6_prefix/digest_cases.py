"""Task 6.2, the key of a block: cases and known mistakes of `digest`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import FIRST, HOME, SECOND
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import SCHEMA, PrefixCache, Scope, encode, sha256


def digest_case(cache_class: Any) -> list[str]:
    """The names of the single changes that do not change a block's digest."""
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
    """Equal keys have equal digests; the cache's hash function is called, and its input has the schema."""
    hashed: list[bytes] = []

    def watched(data: bytes) -> bytes:
        hashed.append(data)
        return b"digest"

    cache = cache_class(BlockPool(8, 4), watched)
    found = [cache.digest(HOME, b"parent", ids) for ids in (list(FIRST), FIRST)]
    return [found, [encode(SCHEMA) in data for data in hashed]]


class Digests(PrefixCache):
    """The engine's digest; subclasses change one field of the key."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent, token_ids)

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return self._hash(self._key(scope, parent, token_ids))


class NoChain(Digests):
    """Ignores the tokens before the block."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, None, token_ids)


class NoScope(Digests):
    """Ignores the scope."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, parent, token_ids)


class NoTenant(Digests):
    """Uses only the envelope of the scope."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, scope.envelope, parent, token_ids)


class NoTokens(Digests):
    """Ignores the token ids."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent)


class NoSchema(Digests):
    """Leaves out the version of the format."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(*scope, parent, token_ids)


class AnyOrder(Digests):
    """Ignores the order of the tokens."""

    def _key(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return encode(SCHEMA, *scope, parent, sorted(token_ids))


class OwnHash(Digests):
    """Does not use the function that the cache was created with."""

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        return sha256(self._key(scope, parent, token_ids))


DIGEST_CASES = (
    Case("changes that do not change the digest", digest_case),
    Case("the hash function and its input", used_hash_case),
)
DIGEST_MISTAKES = (
    Mistake(
        "the parent is missing: the same tokens after another beginning have other keys and values", NoChain
    ),
    Mistake("the scope is missing: blocks are shared only within equal scopes", NoScope),
    Mistake("only the envelope of the scope is in the key: add tenant and conditioning", NoTenant),
    Mistake("the token ids are missing", NoTokens),
    Mistake("the version of the format is missing: SCHEMA is a field too", NoSchema),
    Mistake("the ids are sorted: their order is a part of the key", AnyOrder),
    Mistake("the hash function given to the cache is not used", OwnHash),
)
