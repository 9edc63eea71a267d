"""Tasks 6.6 and 6.7, unused blocks: cases and known mistakes of `released` and `evict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab6_prefix.cache_user import OTHER, SECOND, STORY, CacheUser
from minillm.memory.prefix_cache import PrefixCache

# --- 6.6 released -----------------------------------------------------------------------------------


def release_case(title: str, use: Callable[[CacheUser], None]) -> Case:
    """The books after `use`, and what is still found after each eviction of one block."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class)
        use(user)
        seen = [user.books()]
        for _ in range(user.cache.num_unused):
            user.cache.evict(1)
            seen.append([user.find(STORY), user.find([OTHER, SECOND]), user.books()])
        return seen

    return Case(title, run)


def one_leaves(user: CacheUser) -> None:
    """A sequence of three blocks leaves."""
    user.leave(*(block.block_id for block in user.write(STORY)))


def two_leave(user: CacheUser) -> None:
    """Two sequences leave, the second first."""
    first, second = user.write([OTHER, SECOND]), user.write(STORY)
    for blocks in (second, first):
        user.leave(*(block.block_id for block in blocks))


def one_of_two_leaves(user: CacheUser) -> None:
    """A sequence leaves whose first two blocks another one reads."""
    blocks = user.write(STORY)
    user.cache.acquire(blocks[:2])
    user.leave(*(block.block_id for block in blocks))


def leaves_unpublished(user: CacheUser) -> None:
    """A sequence leaves whose last block is only partly full."""
    blocks = user.write(STORY)
    user.leave(*(block.block_id for block in blocks), *user.pool.allocate(1))


class ReleasesForward(PrefixCache):
    """The first block of a sequence has been unused for longest."""

    def released(self, block_ids: Sequence[int]) -> None:
        super().released(block_ids[::-1])


class ReleasesUsed(PrefixCache):
    """Whoever leaves, the block is unused."""

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in reversed(block_ids):
            if block_id in self._by_block:
                self._unused[block_id] = self._by_block[block_id]


class ReleasesUnknown(PrefixCache):
    """Expects every block to be known."""

    def released(self, block_ids: Sequence[int]) -> None:
        for block_id in reversed(block_ids):
            if self._pool.ref_count(block_id) <= 1:
                self._unused[block_id] = self._by_block[block_id]


class ReleasesNothing(PrefixCache):
    """Nothing is ever unused."""

    def released(self, block_ids: Sequence[int]) -> None:
        pass


RELEASE_CASES = (
    release_case("a sequence of three blocks leaves", one_leaves),
    release_case("two leave, the second first", two_leave),
    release_case("one leaves whose blocks another one reads", one_of_two_leaves),
    release_case("one leaves with a partly full block", leaves_unpublished),
)
RELEASE_MISTAKES = (
    Mistake(
        "parents go before children, and a child without its parent can never be found: last block first",
        ReleasesForward,
    ),
    Mistake(
        "a block that somebody still reads is unused: ask the pool whether the cache is its only owner",
        ReleasesUsed,
    ),
    Mistake("not every block is known to the cache: the last one is often partly full", ReleasesUnknown),
    Mistake("nothing becomes unused, so nothing can be evicted: the pool will run dry", ReleasesNothing),
)


# --- 6.7 evict --------------------------------------------------------------------------------------


def evict_case(title: str, count: int, is_constant: bool) -> Case:
    """Two sequences have left; evict, and see what is found, and what the pool has back."""

    def run(cache_class: Any) -> list[Any]:
        user = CacheUser(cache_class, is_constant=is_constant)
        two_leave(user)
        evicted = user.cache.evict(count)
        return [evicted, user.find(STORY), user.find([OTHER, SECOND]), user.books()]

    return Case(f"{title}, {'constant hash' if is_constant else 'SHA-256'}", run)


class EvictsNewest(PrefixCache):
    """The block that was used last goes."""

    def evict(self, count: int) -> int:
        for block_id in reversed(list(self._unused)):
            self._unused.move_to_end(block_id)
        return super().evict(count)


class StaysFindable(PrefixCache):
    """A block that is somebody else's by now can still be found."""

    def evict(self, count: int) -> int:
        index = {digest: list(bucket) for digest, bucket in self._index.items()}
        evicted = super().evict(count)
        self._index = index
        return evicted


class EmptiesTheBucket(PrefixCache):
    """Forgets every block with the digest of the evicted one."""

    def evict(self, count: int) -> int:
        digests = [block.digest for block in list(self._unused.values())[:count]]
        evicted = super().evict(count)
        for digest in digests:
            self._index.pop(digest, None)
        return evicted


class KeepsTheBlock(PrefixCache):
    """Not findable, and not free."""

    def evict(self, count: int) -> int:
        ids = list(self._unused)[:count]
        self._pool.share(ids)
        return super().evict(count)


class SaysCount(PrefixCache):
    """Claims to have given back what was asked for."""

    def evict(self, count: int) -> int:
        super().evict(count)
        return count


class EvictsAll(PrefixCache):
    """Makes a clean sweep."""

    def evict(self, count: int) -> int:
        return super().evict(self.num_unused)


EVICT_CASES = (
    evict_case("one", 1, False),
    evict_case("three", 3, False),
    evict_case("one", 1, True),
    evict_case("three", 3, True),
    evict_case("more than there are", 9, False),
    evict_case("none", 0, False),
)
EVICT_MISTAKES = (
    Mistake(
        "the most recently used block goes; it is the least recently used one that is missed least",
        EvictsNewest,
    ),
    Mistake("an evicted block can still be found, though its memory is somebody else's now", StaysFindable),
    Mistake(
        "blocks with the same digest are forgotten with it: take this one out of its list", EmptiesTheBucket
    ),
    Mistake("the cache gives up its share of the block, but the pool is not told: `free`", KeepsTheBlock),
    Mistake("there may be fewer unused blocks than asked for: return how many went", SaysCount),
    Mistake("more is evicted than asked for", EvictsAll),
)
