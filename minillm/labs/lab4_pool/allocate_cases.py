"""Tasks 4.1 and 4.2, `allocate` and `share`: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Iterable

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab4_pool.pool_cases import calls_case, speed_case
from minillm.memory.block_pool import BlockPool

# --- 4.1 allocate -----------------------------------------------------------------------------------


class OneByOne(BlockPool):
    """Finds out on the way that there are too few."""

    def allocate(self, count: int = 1) -> list[int]:
        return [super(OneByOne, self).allocate(1)[0] for _ in range(count)]


class GivesWhatItHas(BlockPool):
    """Fewer blocks rather than a refusal."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(min(count, self.num_free))


class KeepsTheLast(BlockPool):
    """Refuses a request for exactly what there is."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(count + (0 < count == self.num_free))


class ForgetsTheOwner(BlockPool):
    """Handed out, and owned by nobody."""

    def allocate(self, count: int = 1) -> list[int]:
        taken = super().allocate(count)
        for block_id in taken:
            self._ref_count[block_id] = 0
        return taken


class Queue(BlockPool):
    """The block that has been free for longest goes first."""

    def allocate(self, count: int = 1) -> list[int]:
        self._free.reverse()
        try:
            return super().allocate(count)
        finally:
            self._free.reverse()


class SearchesForFree(BlockPool):
    """Looks through all blocks for those without owners."""

    def allocate(self, count: int = 1) -> list[int]:
        if count > self._ref_count.count(0):
            raise OutOfBlocks("too few are free")
        return super().allocate(count)


ALLOCATE_CASES = (
    calls_case("three, then two", 6, ("allocate", 3), ("allocate", 2)),
    calls_case("one, none, the rest", 4, ("allocate", 1), ("allocate", 0), ("allocate", 3)),
    calls_case("more than there are", 4, ("allocate", 3), ("allocate", 2), ("allocate", 1)),
    calls_case("those that came back", 5, ("allocate", 3), ("free", [1]), ("free", [0]), ("allocate", 3)),
    speed_case("a block is taken", lambda pool: pool.allocate(1)),
)
ALLOCATE_MISTAKES = (
    Mistake(
        "a failed allocation keeps what it got: look whether there are enough before any is taken", OneByOne
    ),
    Mistake(
        "fewer blocks than asked for are given: the caller would write past its last one", GivesWhatItHas
    ),
    Mistake("the last free block is refused: exactly as many as are free can be had", KeepsTheLast),
    Mistake("the new blocks have no owner: each begins with a count of one", ForgetsTheOwner),
    Mistake("the block that was freed first is handed out: the free list is a stack, not a queue", Queue),
    Mistake("every block is looked at to find the free ones: the free list knows them", SearchesForFree),
)


# --- 4.2 share --------------------------------------------------------------------------------------


class SharesOnce(BlockPool):
    """Two owners, however many there were."""

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
    """Has counted the first ones when it comes to one it must refuse."""

    def share(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            super().share([block_id])


class SharesAnything(BlockPool):
    """An owner for a block that is free, too."""

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
    Mistake("the count is set to two: a third owner is lost, and the block freed under it", SharesOnce),
    Mistake("a block that is listed twice gets one owner only", SharesDistinct),
    Mistake(
        "owners are counted before all blocks have been checked, so a refusal leaves some", SharesAsItGoes
    ),
    Mistake("a free block is given an owner: the pool will hand it to somebody else, too", SharesAnything),
)
