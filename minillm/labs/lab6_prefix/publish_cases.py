"""Task 6.5, a block becomes findable: cases and known mistakes of `publish`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import (
    FIRST,
    HOME,
    OTHER,
    SECOND,
    STORY,
    CacheUser,
    Chain,
    hash_name,
    walk_case,
)
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope


def publish_case(title: str, is_constant: bool, *chains: Chain) -> Case:
    """Publish chain after chain; show the returned blocks, the blocks found afterwards, and the state."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class, is_constant=is_constant)
        used = [[block.block_id for block in user.write(chain)] for chain in chains]
        return [used, [user.find(chain) for chain in chains], user.state()]

    return Case(f"{title}, {hash_name(is_constant)}", run)


def changed_case(cache_class: Any) -> list[Any]:
    """The caller changes its list of ids after the call."""
    user, ids = CacheUser(cache_class), list(FIRST)
    digest = user.cache.digest(HOME, None, ids)
    (mine,) = user.pool.allocate(1)
    block = user.cache.publish(HOME, None, ids, digest, mine)
    seen = list(ids)
    ids[:] = [0, 0, 0, 0]
    return [seen, list(block.token_ids), user.find([FIRST])]


def evicted_case(cache_class: Any) -> list[Any]:
    """Everything is evicted, published again by another tenant, and published by both in turns."""
    user, alice = CacheUser(cache_class), Scope("model", "alice")
    user.leave(user.write(STORY))
    user.cache.evict(3)
    seen = [[b.block_id for b in user.write(STORY[:1], scope)] for scope in (alice, HOME, alice, HOME)]
    return [seen, user.find(STORY), user.find(STORY, alice), user.state()]


def all_evicted_case(cache_class: Any) -> list[Any]:
    """Every block becomes unused and is evicted: the cache is empty, and no block is lost."""
    user = CacheUser(cache_class, is_constant=True)
    for blocks in [user.write(chain) for chain in (STORY, [OTHER, SECOND], STORY[:2])]:
        user.leave(blocks)
    before = user.state()
    return [before, user.cache.evict(9), user.state()]


# --- known mistakes ---------------------------------------------------------------------------------


class Publishes(PrefixCache):
    """The engine's `publish`; subclasses change one part of it."""

    def _known(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, ids: Sequence[int]
    ) -> CachedBlock | None:
        return self._find(digest, scope, parent, tuple(ids))

    def _made(
        self, block_id: int, scope: Scope, parent: CachedBlock | None, ids: Sequence[int], digest: bytes
    ) -> CachedBlock:
        return CachedBlock(block_id, scope, parent, tuple(ids), digest)

    def _store(self, block: CachedBlock) -> None:
        self._pool.share([block.block_id])
        self._index.setdefault(block.digest, []).append(block)
        self._by_block[block.block_id] = block

    def _again(self, known: CachedBlock, block: CachedBlock) -> CachedBlock:
        return known

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        known = self._known(digest, scope, parent, token_ids)
        block = self._made(block_id, scope, parent, token_ids, digest)
        if known is not None:
            return self._again(known, block)
        self._store(block)
        return block


class OwnsNothing(Publishes):
    """The cache is not an owner, so the block is free when its sequence ends."""

    def _store(self, block: CachedBlock) -> None:
        super()._store(block)
        self._pool.free([block.block_id])


class PublishesTwice(Publishes):
    """The same content is findable in two blocks."""

    def _known(self, *key: Any) -> CachedBlock | None:
        return None


class OnePerDigest(Publishes):
    """A block replaces all blocks with the same digest."""

    def _store(self, block: CachedBlock) -> None:
        super()._store(block)
        self._index[block.digest] = [block]


class ForgetsTheParent(Publishes):
    """Every block is stored without a parent."""

    def _made(self, block_id: int, scope: Scope, parent: CachedBlock | None, *rest: Any) -> CachedBlock:
        return super()._made(block_id, scope, None, *rest)


class SearchesNoParent(Publishes):
    """Searches an older copy without its parent."""

    def _known(self, digest: bytes, scope: Scope, parent: CachedBlock | None, *rest: Any) -> Any:
        return super()._known(digest, scope, None, *rest)


class SharesTheOlder(Publishes):
    """Counts the caller as an owner of the older copy."""

    def _again(self, known: CachedBlock, block: CachedBlock) -> CachedBlock:
        self._pool.share([known.block_id])
        return known


class SharesMine(Publishes):
    """Becomes an owner before it searches."""

    def _again(self, known: CachedBlock, block: CachedBlock) -> CachedBlock:
        self._pool.share([block.block_id])
        return known


class FreesMine(Publishes):
    """Frees the caller's block, which the caller frees too."""

    def _again(self, known: CachedBlock, block: CachedBlock) -> CachedBlock:
        self._pool.free([block.block_id])
        return known


class ReturnsMine(Publishes):
    """Stores nothing, but the caller continues with its own copy."""

    def _again(self, known: CachedBlock, block: CachedBlock) -> CachedBlock:
        return block


class KeepsTheList(Publishes):
    """Stores the caller's list."""

    def _made(
        self, block_id: int, scope: Scope, parent: CachedBlock | None, ids: Sequence[int], digest: bytes
    ) -> CachedBlock:
        block = super()._made(block_id, scope, parent, ids, digest)
        block.token_ids = ids  # type: ignore[assignment] # the mistake
        return block


class TrustsTheDigest(Publishes):
    """Any block with the digest is an older copy."""

    def _known(self, digest: bytes, *rest: Any) -> CachedBlock | None:
        return next(iter(self._index.get(digest, ())), None)


class UnusedAtOnce(Publishes):
    """The block is unused although its sequence owns it."""

    def _store(self, block: CachedBlock) -> None:
        super()._store(block)
        self._unused[block.block_id] = block


class NotByBlock(Publishes):
    """The block is in the index only."""

    def _store(self, block: CachedBlock) -> None:
        super()._store(block)
        del self._by_block[block.block_id]


class NotInTheIndex(Publishes):
    """The block is in `_by_block` only."""

    def _store(self, block: CachedBlock) -> None:
        super()._store(block)
        self._index[block.digest].remove(block)


class WalksOverAll(Publishes):
    """Searches an older copy among all blocks."""

    def _known(self, *key: Any) -> CachedBlock | None:
        list(self._by_block.values())
        return super()._known(*key)


PUBLISH_CASES = (
    publish_case("a chain", False, STORY),
    publish_case("two chains with a common beginning", False, STORY, [FIRST, OTHER]),
    publish_case("the same twice", False, STORY, STORY[:2]),
    publish_case("the same block after two parents", False, [FIRST, SECOND], [OTHER, SECOND]),
    publish_case("two chains", True, STORY, [OTHER, SECOND]),
    publish_case("a block that repeats itself", True, [OTHER, OTHER, OTHER], [OTHER, OTHER]),
    Case("all unused, then evicted", all_evicted_case),
    Case("the list of ids changes after the call", changed_case, "aliasing"),
    Case("published again after an eviction, by two tenants", evicted_case, "aliasing"),
    walk_case(lambda user, blocks: user.write([FIRST, OTHER])),
)
PUBLISH_MISTAKES = (
    Mistake(
        "the cache is not an owner of the block: it could be allocated again while it can be found",
        OwnsNothing,
    ),
    Mistake("content that is already cached is published again: return the older copy", PublishesTwice),
    Mistake("a block with the same digest is replaced: keep all of them", OnePerDigest),
    Mistake("the parent is not stored: it is a part of the key", ForgetsTheParent),
    Mistake("the older copy is searched without its parent", SearchesNoParent),
    Mistake("the older copy gets one more owner: the caller will `acquire` it", SharesTheOlder),
    Mistake(
        "the caller's copy gets one more owner, although it is not published: it is never free", SharesMine
    ),
    Mistake("the caller's copy is freed: the caller frees it too", FreesMine),
    Mistake("if the content is cached, return the older copy, not the caller's", ReturnsMine),
    Mistake(
        "the caller's list of ids is stored: it can change, and it never equals a tuple. Store a tuple",
        KeepsTheList,
    ),
    Mistake(
        "the digest is trusted: a block with the same digest is not yet the same content", TrustsTheDigest
    ),
    Mistake("the block is unused at once: its sequence still owns it", UnusedAtOnce),
    Mistake("the block is missing in `_by_block`, which `released` needs", NotByBlock),
    Mistake("the block is missing in the index: it is never found", NotInTheIndex),
    Mistake(
        "every block of the cache is looked at: `_find` needs only the blocks of one digest", WalksOverAll
    ),
)
