"""Task 6.5, a block becomes findable: cases and known mistakes of `publish`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import FIRST, OTHER, SECOND, STORY, CacheUser, Chain
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope


def publish_case(title: str, is_constant: bool, *chains: Chain) -> Case:
    """Publish chain after chain; show the returned blocks, the blocks found afterwards, and the state."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class, is_constant=is_constant)
        used = [[block.block_id for block in user.write(chain)] for chain in chains]
        return [used, [user.find(chain) for chain in chains], user.state()]

    return Case(f"{title}, {'constant hash' if is_constant else 'SHA-256'}", run)


class OwnsNothing(PrefixCache):
    """The cache is not an owner, so the block is free when its sequence ends."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = super().publish(scope, parent, token_ids, digest, block_id)
        if block.block_id == block_id:
            self._pool.free([block_id])
        return block


class PublishesTwice(PrefixCache):
    """The same content is findable in two blocks."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = CachedBlock(block_id, scope, parent, tuple(token_ids), digest)
        self._pool.share([block_id])
        self._index.setdefault(digest, []).append(block)
        self._by_block[block_id] = block
        return block


class OnePerDigest(PrefixCache):
    """A block replaces all blocks with the same digest."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = super().publish(scope, parent, token_ids, digest, block_id)
        self._index[digest] = [block]
        return block


class ForgetsTheParent(PrefixCache):
    """Every block is published without a parent."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        return super().publish(scope, None, token_ids, digest, block_id)


class SharesTheOlder(PrefixCache):
    """Counts the caller as an owner of the older copy."""

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        block = super().publish(scope, parent, token_ids, digest, block_id)
        if block.block_id != block_id:
            self._pool.share([block.block_id])
        return block


PUBLISH_CASES = (
    publish_case("a chain", False, STORY),
    publish_case("two chains with a common beginning", False, STORY, [FIRST, OTHER]),
    publish_case("the same twice", False, STORY, STORY[:2]),
    publish_case("two chains", True, STORY, [OTHER, SECOND]),
)
PUBLISH_MISTAKES = (
    Mistake(
        "the cache is not an owner of the block: it could be allocated again while it can be found",
        OwnsNothing,
    ),
    Mistake("content that is already cached is published again: return the older copy", PublishesTwice),
    Mistake("a block with the same digest is replaced: keep all of them", OnePerDigest),
    Mistake("the parent is not stored: it is a part of the key", ForgetsTheParent),
    Mistake("the older copy gets one more owner: the caller will `acquire` it", SharesTheOlder),
)
