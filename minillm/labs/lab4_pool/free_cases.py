"""Task 4.3, `free`: cases and known mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab4_pool.pool_cases import IN_TURNS, calls_case, long_case, speed_case
from minillm.memory.block_pool import BlockPool


class FreesForAll(BlockPool):
    """The first owner that frees the block frees it for all."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), Counter(ids))
        for block_id in reversed(ids):
            self._ref_count[block_id] = 0
            self._free.append(block_id)


class FreesForAllOnce(BlockPool):
    """The same, but a block comes on the free list once."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), Counter(ids))
        for block_id in reversed(ids):
            if self._ref_count[block_id]:
                self._ref_count[block_id] = 0
                self._free.append(block_id)


class FreesNothing(BlockPool):
    """Lowers the count but never puts the block on the free list."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), Counter(ids))
        for block_id in ids:
            self._ref_count[block_id] -= 1


class FreesTooEarly(BlockPool):
    """A block with owners comes on the free list, and its count stays right."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), Counter(ids))
        for block_id in reversed(ids):
            self._ref_count[block_id] -= 1
            self._free.append(block_id)


class FreesForward(BlockPool):
    """The first block of a sequence is freed first."""

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(list(block_ids)[::-1])


class FreesBottom(BlockPool):
    """Puts the blocks at the bottom of the stack, as a queue would."""

    def free(self, block_ids: Iterable[int]) -> None:
        before = len(self._free)
        super().free(list(block_ids)[::-1])
        self._free[:] = self._free[before:][::-1] + self._free[:before]


class FreesDistinct(BlockPool):
    """A block that is listed twice loses one owner."""

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(list(dict.fromkeys(block_ids)))


class FreesAsItGoes(BlockPool):
    """Frees some blocks before it reaches a block without owners."""

    def free(self, block_ids: Iterable[int]) -> None:
        for block_id in reversed(list(block_ids)):
            super().free([block_id])


class FreesForwardAsItGoes(BlockPool):
    """The same from the first block on."""

    def free(self, block_ids: Iterable[int]) -> None:
        for block_id in list(block_ids):
            super().free([block_id])


class FreesUnchecked(BlockPool):
    """Checks nothing."""

    def free(self, block_ids: Iterable[int]) -> None:
        for block_id in reversed(list(block_ids)):
            self._ref_count[block_id] -= 1
            if self._ref_count[block_id] == 0:
                self._free.append(block_id)


class ChecksWithoutTimes(BlockPool):
    """Requires one owner of each block, however often it is listed."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), {})
        for block_id in reversed(ids):
            self._ref_count[block_id] -= 1
            if self._ref_count[block_id] == 0:
                self._free.append(block_id)


class EmptiesTheArgument(BlockPool):
    """Takes the blocks out of the caller's list."""

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(block_ids)
        if isinstance(block_ids, list):
            block_ids.clear()


class FreesSorted(BlockPool):
    """Keeps the free blocks in order of their ids."""

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(block_ids)
        self._free.sort(reverse=True)


class SearchesTheFree(BlockPool):
    """Searches the free list for a block that is already free."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        if any(block_id in self._free for block_id in ids):
            raise ValueError("double free")
        super().free(ids)


class SearchesBeforeItAppends(BlockPool):
    """Searches the free list for each block that becomes free."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), Counter(ids))
        for block_id in reversed(ids):
            self._ref_count[block_id] -= 1
            if self._ref_count[block_id] == 0 and block_id not in self._free:
                self._free.append(block_id)


class CountsEachTime(BlockPool):
    """For each block, counts it in the argument."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        super().free([block_id for block_id in ids if ids.count(block_id)])


def free_and_allocate(pool: BlockPool, ids: list[int]) -> None:
    """Free all blocks of a pool."""
    if pool.num_free:
        pool.allocate(pool.num_free)
    pool.free(list(ids))


FREE_CASES = (
    calls_case("one owner each", 4, ("allocate", 3), ("free", [0, 1, 2]), ("allocate", 4)),
    calls_case("a shared one", 3, ("allocate", 2), ("share", [0]), ("free", [0, 1]), ("free", [0])),
    calls_case("out of order", 4, ("allocate", 4), ("free", [2]), ("free", [0, 3]), ("allocate", 3)),
    calls_case("none", 2, ("allocate", 1), ("free", [])),
    calls_case("listed twice", 4, ("allocate", 3), ("share", [1, 1]), ("free", [1, 0, 1]), ("free", [1, 2])),
    calls_case("one of them is free", 3, ("allocate", 2), ("free", [2, 0]), ("free", [1, 2])),
    calls_case("listed more often than it has owners", 3, ("allocate", 3), ("free", [0, 1, 1])),
    calls_case("no such block", 3, ("allocate", 3), ("free", [0, 3]), ("free", [-1, 1])),
    *IN_TURNS,
    speed_case("a block is freed", lambda pool: pool.free(pool.allocate(1))),
    long_case("free", free_and_allocate),
)
FREE_MISTAKES = (
    Mistake(
        "a shared block becomes free with its first owner: it is free when its last owner frees it",
        FreesForAll,
    ),
    Mistake(
        "the count of a shared block becomes 0 with its first owner: subtract one owner", FreesForAllOnce
    ),
    Mistake("a block comes on the free list although it has owners: only at a count of 0", FreesTooEarly),
    Mistake("a block without owners does not become free: it can never be allocated again", FreesNothing),
    Mistake("the first block is freed first: free the last block first", FreesForward),
    Mistake("the blocks come to the bottom of the stack: put them on its top (its end)", FreesBottom),
    Mistake("a block that is listed twice loses one owner: it loses two", FreesDistinct),
    Mistake("owners are removed before all blocks are checked, so an error loses some", FreesAsItGoes),
    Mistake(
        "the first block is freed first, and owners are removed before all blocks are checked",
        FreesForwardAsItGoes,
    ),
    Mistake("nothing is checked: a free block is freed again, and -1 is the last block", FreesUnchecked),
    Mistake("a block that is listed twice needs two owners: pass `times`", ChecksWithoutTimes),
    Mistake("the caller's list is emptied: read it only", EmptiesTheArgument),
    Mistake(
        "the free blocks are sorted: put each on top of the stack, which costs the same in any pool",
        FreesSorted,
    ),
    Mistake("the free list is searched or copied: a block is free if its count is 0", SearchesTheFree),
    Mistake(
        "the free list is searched before a block is appended: a block with owners is never on it",
        SearchesBeforeItAppends,
    ),
    Mistake(
        "each block of a long call searches a list: count all blocks once, with a `Counter`", CountsEachTime
    ),
)
