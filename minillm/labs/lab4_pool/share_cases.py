"""Task 4.2, `share`: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Iterable

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab4_pool.pool_cases import IN_TURNS, calls_case, long_case, speed_case
from minillm.memory.block_pool import BlockPool


class SharesOnce(BlockPool):
    """Always sets two owners."""

    def share(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        super().share(ids)
        for block_id in ids:
            self._ref_count[block_id] = 2


class SharesDistinct(BlockPool):
    """A block listed twice counts once."""

    def share(self, block_ids: Iterable[int]) -> None:
        super().share(sorted(set(block_ids)))


class SharesAsItGoes(BlockPool):
    """Adds owners to the first blocks before it reaches a free block."""

    def share(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            super().share([block_id])


class SharesAnything(BlockPool):
    """Adds an owner to a free block too."""

    def share(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._ref_count[block_id] += 1


class SharesAnyOfThePool(BlockPool):
    """Adds an owner to a free block too, but finds ids that do not exist."""

    def share(self, block_ids: Iterable[int]) -> None:
        ids = [self._checked(block_id) for block_id in block_ids]
        for block_id in ids:
            self._ref_count[block_id] += 1


class SkipsFree(BlockPool):
    """Skips free blocks silently."""

    def share(self, block_ids: Iterable[int]) -> None:
        super().share([block_id for block_id in block_ids if self._ref_count[self._checked(block_id)]])


class ReadsTwice(BlockPool):
    """Reads its argument twice, so an iterator is empty at the second time."""

    def share(self, block_ids: Iterable[int]) -> None:
        self._require_owners(set(block_ids), {})
        super().share(block_ids)


class SharesWithTwo(BlockPool):
    """Requires as many owners as the block is listed times."""

    def share(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), {block_id: ids.count(block_id) for block_id in ids[:9]})
        super().share(ids)


class AddsTwo(BlockPool):
    """Every block gets two more owners."""

    def share(self, block_ids: Iterable[int]) -> None:
        super().share([block_id for block_id in block_ids for _ in range(2)])


class SearchesTheList(BlockPool):
    """For each block, searches the argument."""

    def share(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        super().share([block_id for block_id in ids if ids.count(block_id)])


class SharesNotFree(BlockPool):
    """Searches the free list."""

    def share(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        if any(block_id in self._free for block_id in ids):
            raise ValueError("free")
        super().share(ids)


def share_first(pool: BlockPool) -> None:
    """Share the first block; it is in use after the first call."""
    if pool.num_used == 0:
        pool.allocate(1)
    pool.share([0])


def share_all(pool: BlockPool, ids: list[int]) -> None:
    """Share all blocks; they are in use after the first call."""
    if pool.num_free:
        pool.allocate(pool.num_free)
    pool.share(list(ids))


SHARE_CASES = (
    calls_case("two of three", 4, ("allocate", 3), ("share", [0, 2])),
    calls_case("a third owner", 3, ("allocate", 2), ("share", [1]), ("share", [1])),
    calls_case("listed twice", 3, ("allocate", 2), ("share", [1, 1])),
    calls_case("none", 2, ("allocate", 1), ("share", [])),
    calls_case("one of them is free", 3, ("allocate", 2), ("share", [0, 2, 1]), ("share", [2])),
    calls_case("no such block", 3, ("allocate", 3), ("share", [0, 3]), ("share", [1, -1]), ("share", [2])),
    *IN_TURNS,
    speed_case("a block is shared", share_first),
    long_case("share", share_all),
)
SHARE_MISTAKES = (
    Mistake("the count is set to two: a third owner is lost, and its block is freed too early", SharesOnce),
    Mistake("every block gets two more owners: one is added", AddsTwo),
    Mistake("a block that is listed twice gets only one owner", SharesDistinct),
    Mistake("a block that is listed twice must have two owners already: it needs one", SharesWithTwo),
    Mistake(
        "owners are added before all blocks are checked, so an error leaves some of them", SharesAsItGoes
    ),
    Mistake("nothing is checked: a free block gets an owner, and -1 is the last block", SharesAnything),
    Mistake("a free block gets an owner: the pool will allocate it to another owner too", SharesAnyOfThePool),
    Mistake("free blocks are skipped silently: sharing one is a ValueError", SkipsFree),
    Mistake("the argument is read twice: an iterator is empty at the second time, make a list", ReadsTwice),
    Mistake("each block of a long call searches a list: read each block once", SearchesTheList),
    Mistake("the free list is searched or copied: a block is free if its count is 0", SharesNotFree),
)
