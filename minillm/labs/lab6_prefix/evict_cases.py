"""Task 6.7, make room: cases and known mistakes of `evict`."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.lab6_prefix.cache_user import (
    OTHER,
    SECOND,
    STORY,
    CacheUser,
    hash_name,
    walk_case,
)
from minillm.labs.lab6_prefix.release_cases import one_of_two_leaves, two_leave, used_again
from minillm.memory.prefix_cache import CachedBlock, PrefixCache


def evict_case(title: str, counts: tuple[int, ...], is_constant: bool, use: Any = two_leave) -> Case:
    """Sequences have ended; evict; show the blocks that are found and the state after each call."""

    def run(cache_class: Any) -> list[Any]:
        user, seen = CacheUser(cache_class, is_constant=is_constant), list[Any]()
        use(user)
        for count in counts:
            evicted = user.cache.evict(count)
            seen.append([evicted, user.find(STORY), user.find([OTHER, SECOND]), user.state()])
        return seen

    return Case(f"{title}, {hash_name(is_constant)}", run)


def again_case(cache_class: Any) -> list[Any]:
    """The memory of evicted blocks is used for the same text, and for others, by two caches in turns."""
    users = [CacheUser(cache_class, num_blocks=5, is_constant=is_constant) for is_constant in (True, False)]
    for user in users:
        two_leave(user)
    evicted = [user.cache.evict(count) for count in (2, 1) for user in users]
    written = [sorted(block.block_id for block in user.write(STORY)) for user in users]
    found = [[len(user.find(STORY)), user.find([OTHER, SECOND]), user.state()] for user in users]
    return [evicted, written, found]


def left_case(cache_class: Any) -> Words:
    """Digests that stay in the index when all blocks are evicted."""
    user = CacheUser(cache_class)
    two_leave(user)
    user.cache.evict(9)
    left = len(user.cache._index)
    return Words(f"{left} digests are left in an empty cache" if left else "no digest is left")


# --- known mistakes ---------------------------------------------------------------------------------


class Evicts(PrefixCache):
    """The engine's `evict`; subclasses change one part of it."""

    def _number(self, count: int) -> int:
        return min(count, len(self._unused))

    def _next(self) -> CachedBlock:
        return self._unused.popitem(last=False)[1]

    def _forget(self, block: CachedBlock) -> None:
        bucket = self._index[block.digest]
        bucket.remove(block)
        if not bucket:
            del self._index[block.digest]

    def _remove(self, block: CachedBlock) -> None:
        del self._by_block[block.block_id]
        self._forget(block)
        self._pool.free([block.block_id])

    def evict(self, count: int) -> int:
        number = self._number(count)
        for _ in range(number):
            self._remove(self._next())
        return number


class Newest(Evicts):
    """Evicts the most recently used block."""

    def _next(self) -> CachedBlock:
        return self._unused.popitem()[1]


class OldestPublished(Evicts):
    """Evicts in the order in which blocks were published."""

    def _next(self) -> CachedBlock:
        return self._unused.pop(next(b for b in self._by_block if b in self._unused))


class Smallest(Evicts):
    """Evicts the unused block with the smallest id."""

    def _next(self) -> CachedBlock:
        return self._unused.pop(min(self._unused))


class UsedToo(Evicts):
    """Evicts blocks that sequences use."""

    def _number(self, count: int) -> int:
        return min(count, len(self._by_block))

    def _next(self) -> CachedBlock:
        if self._unused:
            return super()._next()
        return next(iter(self._by_block.values()))


class StaysFindable(Evicts):
    """An evicted block can still be found."""

    def _forget(self, block: CachedBlock) -> None:
        pass


class EmptiesTheList(Evicts):
    """Removes every block that has the digest of the evicted one."""

    def _forget(self, block: CachedBlock) -> None:
        self._index.pop(block.digest, None)


class DeletesTheList(Evicts):
    """Deletes the digest, and expects it the next time too."""

    def _forget(self, block: CachedBlock) -> None:
        del self._index[block.digest]


class RemovesTheFirst(Evicts):
    """Removes the first block of the list, which may be another one."""

    def _forget(self, block: CachedBlock) -> None:
        bucket = self._index[block.digest]
        bucket.pop(0)
        if not bucket:
            del self._index[block.digest]


class KeepsTheList(Evicts):
    """Keeps an empty list for each digest."""

    def _forget(self, block: CachedBlock) -> None:
        self._index[block.digest].remove(block)


class KeepsTheBlock(Evicts):
    """An evicted block cannot be found, but it is not free either."""

    def _remove(self, block: CachedBlock) -> None:
        del self._by_block[block.block_id]
        self._forget(block)


class KeepsTheNumber(Evicts):
    """The block stays in `_by_block`."""

    def _remove(self, block: CachedBlock) -> None:
        self._forget(block)
        self._pool.free([block.block_id])


class SaysCount(Evicts):
    """Always returns the requested count."""

    def evict(self, count: int) -> int:
        super().evict(count)
        return count


class SaysNothing(Evicts):
    """Returns None."""

    def evict(self, count: int) -> Any:
        super().evict(count)


class All(Evicts):
    """Evicts all unused blocks."""

    def _number(self, count: int) -> int:
        return len(self._unused)


class OneOnly(Evicts):
    """Evicts one block in each call."""

    def _number(self, count: int) -> int:
        return min(count, 1, len(self._unused))


class RunsOut(Evicts):
    """Fails if fewer blocks are unused than requested."""

    def _number(self, count: int) -> int:
        return count


class Nothing(Evicts):
    """Evicts nothing if fewer blocks are unused than requested."""

    def _number(self, count: int) -> int:
        return count if count <= len(self._unused) else 0


class WalksOverAll(Evicts):
    """Searches the block in the lists of all digests."""

    def _forget(self, block: CachedBlock) -> None:
        for digest, bucket in list(self._index.items()):
            if block in bucket:
                bucket.remove(block)
            if not bucket:
                del self._index[digest]


EVICT_CASES = (
    evict_case("one", (1,), False),
    evict_case("three", (3,), False),
    evict_case("one", (1,), True),
    evict_case("one, two, and one", (1, 2, 1), True),
    evict_case("more than are unused", (9, 1), False),
    evict_case("none", (0,), False),
    evict_case("blocks that were used again", (1, 2, 9), False, used_again),
    evict_case("a sequence still uses two blocks", (1, 2), False, one_of_two_leaves),
    Case("the memory is used again, in two caches", again_case, "aliasing"),
    Case("what is left in the index", left_case, "cost"),
    walk_case(lambda user, blocks: user.cache.evict(1)),
)
EVICT_MISTAKES = (
    Mistake("the most recently used block is evicted: evict the least recently used one", Newest),
    Mistake(
        "the block that was published first is evicted: evict the one that has not been used for longest",
        OldestPublished,
    ),
    Mistake("the smallest id is evicted: `self._unused` begins with the least recently used", Smallest),
    Mistake("blocks that a sequence uses are evicted: only those in `self._unused`", UsedToo),
    Mistake("an evicted block can still be found, although its memory may be used again", StaysFindable),
    Mistake(
        "all blocks with the same digest are removed: remove only the evicted one from the list",
        EmptiesTheList,
    ),
    Mistake(
        "all blocks with the same digest are removed: remove only the evicted one from the list",
        DeletesTheList,
    ),
    Mistake("another block with the same digest is removed: remove the evicted one", RemovesTheFirst),
    Mistake("empty lists stay in the index for ever: remove a digest with its last block", KeepsTheList),
    Mistake("the evicted block is not freed in the pool: call `free`", KeepsTheBlock),
    Mistake("the evicted block is still in `_by_block`", KeepsTheNumber),
    Mistake("there may be fewer unused blocks than requested: return the number evicted", SaysCount),
    Mistake("return the number of evicted blocks", SaysNothing),
    Mistake("more blocks are evicted than requested", All),
    Mistake("only one block is evicted in each call", OneOnly),
    Mistake("there may be fewer unused blocks than requested: then evict these", RunsOut),
    Mistake("there may be fewer unused blocks than requested: then evict these", Nothing),
    Mistake("the lists of all digests are searched: the block knows its digest", WalksOverAll),
)
