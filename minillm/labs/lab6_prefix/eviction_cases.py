"""Tasks 6.6 and 6.7, unused blocks: cases and known mistakes of `released` and `evict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import OTHER, SECOND, STORY, CacheUser
from minillm.memory.prefix_cache import PrefixCache

# --- 6.6 released -----------------------------------------------------------------------------------


def release_case(title: str, use: Callable[[CacheUser], None]) -> Case:
    """The state after `use`, and the blocks that are found after each eviction of one block."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class)
        use(user)
        seen = [user.state()]
        for _ in range(user.cache.num_unused):
            user.cache.evict(1)
            seen.append([user.find(STORY), user.find([OTHER, SECOND]), user.state()])
        return seen

    return Case(title, run)


def one_leaves(user: CacheUser) -> None:
    """A sequence of three blocks ends."""
    user.leave(*(block.block_id for block in user.write(STORY)))


def two_leave(user: CacheUser) -> None:
    """Two sequences end, the second first."""
    first, second = user.write([OTHER, SECOND]), user.write(STORY)
    for blocks in (second, first):
        user.leave(*(block.block_id for block in blocks))


def one_of_two_leaves(user: CacheUser) -> None:
    """A sequence ends; another one still uses its first two blocks."""
    blocks = user.write(STORY)
    user.cache.acquire(blocks[:2])
    user.leave(*(block.block_id for block in blocks))


def leaves_unpublished(user: CacheUser) -> None:
    """A sequence ends; its last block is partly full."""
    blocks = user.write(STORY)
    user.leave(*(block.block_id for block in blocks), *user.pool.allocate(1))


class ReleasesForward(PrefixCache):
    """The first block of a sequence is evicted first."""

    def released(self, block_ids: Sequence[int]) -> None:
        super().released(block_ids[::-1])


class ReleasesUsed(PrefixCache):
    """A block becomes unused when any owner frees it."""

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in reversed(block_ids):
            if block_id in self._by_block:
                self._unused[block_id] = self._by_block[block_id]


class ReleasesUnknown(PrefixCache):
    """Expects every block to be in the cache."""

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in reversed(block_ids):
            if self._pool.ref_count(block_id) <= 1:
                self._unused[block_id] = self._by_block[block_id]


class ReleasesNothing(PrefixCache):
    """No block ever becomes unused."""

    def released(self, block_ids: Sequence[int]) -> None:
        pass


RELEASE_CASES = (
    release_case("a sequence of three blocks ends", one_leaves),
    release_case("two sequences end, the second first", two_leave),
    release_case("a sequence ends, another one still uses its blocks", one_of_two_leaves),
    release_case("a sequence with a partly full block ends", leaves_unpublished),
)
RELEASE_MISTAKES = (
    Mistake(
        "parents are evicted before children, which can then never be found: last block first",
        ReleasesForward,
    ),
    Mistake(
        "a block becomes unused while a sequence still uses it: check that the cache is its only owner",
        ReleasesUsed,
    ),
    Mistake("not every block is in the cache: the last one is often partly full", ReleasesUnknown),
    Mistake("no block becomes unused, so no block can be evicted: the pool becomes empty", ReleasesNothing),
)


# --- 6.7 evict --------------------------------------------------------------------------------------


def evict_case(title: str, count: int, is_constant: bool) -> Case:
    """Two sequences have ended; evict, then show the blocks that are found and the state."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class, is_constant=is_constant)
        two_leave(user)
        evicted = user.cache.evict(count)
        return [evicted, user.find(STORY), user.find([OTHER, SECOND]), user.state()]

    return Case(f"{title}, {'constant hash' if is_constant else 'SHA-256'}", run)


class EvictsNewest(PrefixCache):
    """Evicts the most recently used block."""

    def evict(self, count: int) -> int:
        for block_id in reversed(list(self._unused)):
            self._unused.move_to_end(block_id)
        return super().evict(count)


class StaysFindable(PrefixCache):
    """An evicted block can still be found."""

    def evict(self, count: int) -> int:
        index = {digest: list(bucket) for digest, bucket in self._index.items()}
        evicted = super().evict(count)
        self._index = index
        return evicted


class EmptiesTheBucket(PrefixCache):
    """Removes every block that has the digest of the evicted one."""

    def evict(self, count: int) -> int:
        digests = [block.digest for block in list(self._unused.values())[:count]]
        evicted = super().evict(count)
        for digest in digests:
            self._index.pop(digest, None)
        return evicted


class KeepsTheBlock(PrefixCache):
    """An evicted block cannot be found, but it is not free either."""

    def evict(self, count: int) -> int:
        ids = list(self._unused)[:count]
        self._pool.share(ids)
        return super().evict(count)


class SaysCount(PrefixCache):
    """Always returns the requested count."""

    def evict(self, count: int) -> int:
        super().evict(count)
        return count


class EvictsAll(PrefixCache):
    """Evicts all unused blocks."""

    def evict(self, count: int) -> int:
        return super().evict(self.num_unused)


EVICT_CASES = (
    evict_case("one", 1, False),
    evict_case("three", 3, False),
    evict_case("one", 1, True),
    evict_case("three", 3, True),
    evict_case("more than are unused", 9, False),
    evict_case("none", 0, False),
)
EVICT_MISTAKES = (
    Mistake(
        "the most recently used block is evicted: evict the least recently used one",
        EvictsNewest,
    ),
    Mistake("an evicted block can still be found, although its memory may be used again", StaysFindable),
    Mistake(
        "all blocks with the same digest are removed: remove only the evicted one from the list",
        EmptiesTheBucket,
    ),
    Mistake("the evicted block is not freed in the pool: call `free`", KeepsTheBlock),
    Mistake("there may be fewer unused blocks than requested: return the number evicted", SaysCount),
    Mistake("more blocks are evicted than requested", EvictsAll),
)
