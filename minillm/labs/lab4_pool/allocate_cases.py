"""Tasks 4.1 and 4.2, `allocate` and `share`: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Iterable

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab4_pool.pool_cases import calls_case, speed_case
from minillm.memory.block_pool import BlockPool

# --- 4.1 allocate -----------------------------------------------------------------------------------


class OneByOne(BlockPool):
    """Allocates block by block, and fails after some."""

    def allocate(self, count: int = 1) -> list[int]:
        return [super(OneByOne, self).allocate(1)[0] for _ in range(count)]


class GivesWhatItHas(BlockPool):
    """Returns fewer blocks instead of raising."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(min(count, self.num_free))


class KeepsTheLast(BlockPool):
    """Raises if exactly all free blocks are requested."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(count + (0 < count == self.num_free))


class ForgetsTheOwner(BlockPool):
    """Allocated blocks have no owner."""

    def allocate(self, count: int = 1) -> list[int]:
        taken = super().allocate(count)
        for block_id in taken:
            self._ref_count[block_id] = 0
        return taken


class Queue(BlockPool):
    """The block freed first is allocated first."""

    def allocate(self, count: int = 1) -> list[int]:
        self._free.reverse()
        try:
            return super().allocate(count)
        finally:
            self._free.reverse()


class SearchesForFree(BlockPool):
    """Counts the free blocks by reading every block's count."""

    def allocate(self, count: int = 1) -> list[int]:
        if count > self._ref_count.count(0):
            raise OutOfBlocks("too few are free")
        return super().allocate(count)


ALLOCATE_CASES = (
    calls_case("three, then two", 6, ("allocate", 3), ("allocate", 2)),
    calls_case("one, none, the rest", 4, ("allocate", 1), ("allocate", 0), ("allocate", 3)),
    calls_case("more than are free", 4, ("allocate", 3), ("allocate", 2), ("allocate", 1)),
    calls_case("freed blocks", 5, ("allocate", 3), ("free", [1]), ("free", [0]), ("allocate", 3)),
    speed_case("a block is allocated", lambda pool: pool.allocate(1)),
)
ALLOCATE_MISTAKES = (
    Mistake(
        "a failed allocation keeps some blocks: check that enough are free before you take the first",
        OneByOne,
    ),
    Mistake(
        "fewer blocks than requested are returned: the caller would write past its last block",
        GivesWhatItHas,
    ),
    Mistake("the last free block is never allocated: all free blocks may be allocated", KeepsTheLast),
    Mistake("the new blocks have no owner: each begins with a count of one", ForgetsTheOwner),
    Mistake("the block freed first is allocated first: the free list is a stack, not a queue", Queue),
    Mistake("every block is checked to find the free ones: use the free list", SearchesForFree),
)


# --- 4.2 share --------------------------------------------------------------------------------------


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


SHARE_CASES = (
    calls_case("two of three", 4, ("allocate", 3), ("share", [0, 2])),
    calls_case("a third owner", 3, ("allocate", 2), ("share", [1]), ("share", [1])),
    calls_case("listed twice", 3, ("allocate", 2), ("share", [1, 1])),
    calls_case("one of them is free", 3, ("allocate", 2), ("share", [0, 2, 1])),
)
SHARE_MISTAKES = (
    Mistake("the count is set to two: a third owner is lost, and its block is freed too early", SharesOnce),
    Mistake("a block that is listed twice gets only one owner", SharesDistinct),
    Mistake(
        "owners are added before all blocks are checked, so an error leaves some of them", SharesAsItGoes
    ),
    Mistake("a free block gets an owner: the pool will allocate it to another owner too", SharesAnything),
)
