"""Tasks 4.3 and 4.4, `free` and the check before it: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab4_pool.pool_cases import calls_case, speed_case
from minillm.memory.block_pool import BlockPool

# --- 4.3 free ---------------------------------------------------------------------------------------


class FreesForAll(BlockPool):
    """The first owner that frees the block frees it for all."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), {})
        for block_id in reversed(ids):
            self._ref_count[block_id] = 0
            self._free.append(block_id)


class FreesNothing(BlockPool):
    """Lowers the count but never puts the block on the free list."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), {})
        for block_id in ids:
            self._ref_count[block_id] -= 1


class FreesForward(BlockPool):
    """The first block of a sequence is freed first."""

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(list(block_ids)[::-1])


class FreesAsItGoes(BlockPool):
    """Frees some blocks before it reaches a block without owners."""

    def free(self, block_ids: Iterable[int]) -> None:
        for block_id in reversed(list(block_ids)):
            super().free([block_id])


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


FREE_CASES = (
    calls_case("one owner each", 4, ("allocate", 3), ("free", [0, 1, 2]), ("allocate", 4)),
    calls_case("a shared one", 3, ("allocate", 2), ("share", [0]), ("free", [0, 1]), ("free", [0])),
    calls_case("out of order", 4, ("allocate", 4), ("free", [2]), ("free", [0, 3]), ("allocate", 3)),
    calls_case("one of them is free", 3, ("allocate", 2), ("free", [2, 0])),
    speed_case("a block is freed", lambda pool: pool.free(pool.allocate(1))),
)
FREE_MISTAKES = (
    Mistake(
        "a shared block becomes free with its first owner: it is free when its last owner frees it",
        FreesForAll,
    ),
    Mistake("a block without owners does not become free: it can never be allocated again", FreesNothing),
    Mistake("the first block is freed first: free the last block first", FreesForward),
    Mistake("owners are removed before all blocks are checked, so an error loses some", FreesAsItGoes),
    Mistake(
        "the free blocks are sorted: put each on top of the stack, which costs the same in any pool",
        FreesSorted,
    ),
    Mistake("the free list is searched: a block is free if its count is 0", SearchesTheFree),
)


# --- 4.4 refuse before anything changes -------------------------------------------------------------


class ChecksNothing(BlockPool):
    """Accepts every existing block."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            self._checked(block_id)


class ChecksOnce(BlockPool):
    """One owner is enough for any number of frees."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners(ids, {})


class ChecksTimesOnly(BlockPool):
    """Accepts any block that is not in `times`."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners(ids & times.keys(), times)


class ChecksPythonsWay(BlockPool):
    """-1 is the last block, like the last item of a list."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners({i % self.num_blocks for i in ids}, times)


CHECK_CASES = (
    calls_case("freed twice", 3, ("allocate", 2), ("free", [1]), ("free", [1]), ("allocate", 2)),
    calls_case(
        "freed twice in one call", 3, ("allocate", 2), ("free", [1, 1]), ("share", [1]), ("free", [1, 1])
    ),
    calls_case("one used, one free", 3, ("allocate", 1), ("share", [0, 2])),
    calls_case("no such block", 3, ("allocate", 3), ("free", [3]), ("free", [-1]), ("share", [-1])),
)
CHECK_MISTAKES = (
    Mistake(
        "a block without owners is accepted: it will be in the free list twice, and two requests get it",
        ChecksNothing,
    ),
    Mistake("a block freed twice in one call needs two owners: look at `times`", ChecksOnce),
    Mistake("a block that is not in `times` needs one owner", ChecksTimesOnly),
    Mistake("a negative id counts from the end of a Python list: call `_checked`", ChecksPythonsWay),
)
