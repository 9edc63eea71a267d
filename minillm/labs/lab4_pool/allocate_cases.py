"""Task 4.1, `allocate`: cases and known mistakes."""

from __future__ import annotations

from typing import Any

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab4_pool.pool_cases import IN_TURNS, calls_case, speed_case
from minillm.memory.block_pool import BlockPool


class OneByOne(BlockPool):
    """Allocates block by block, and fails after some."""

    def allocate(self, count: int = 1) -> list[int]:
        if count < 0:
            raise ValueError("negative")
        return [super(OneByOne, self).allocate(1)[0] for _ in range(count)]


class GivesWhatItHas(BlockPool):
    """Returns fewer blocks instead of raising."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(min(count, self.num_free))


class ReturnsNothing(BlockPool):
    """Returns an empty list instead of raising."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(count if count <= self.num_free else 0)


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


class AddsAnOwner(BlockPool):
    """Leaves the blocks on the free list, so they are allocated again."""

    def allocate(self, count: int = 1) -> list[int]:
        taken = super().allocate(count)
        self._free += reversed(taken)
        return taken


class Queue(BlockPool):
    """The block freed first is allocated first."""

    def allocate(self, count: int = 1) -> list[int]:
        if not 0 <= count <= len(self._free):
            return super().allocate(count)
        taken, self._free[:count] = self._free[:count], []
        for block_id in taken:
            self._ref_count[block_id] = 1
        return taken


class Reversed(BlockPool):
    """The blocks of one call come in the order of the list, not of the stack."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(count)[::-1]


class AcceptsNegative(BlockPool):
    """A negative count is taken for 0."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(max(count, 0))


class RaisesIndexError(BlockPool):
    """The error of Python's empty list reaches the caller, before anything has changed."""

    def allocate(self, count: int = 1) -> list[int]:
        if count > self.num_free:
            raise IndexError("pop from empty list")
        return super().allocate(count)


class PopsUntilEmpty(BlockPool):
    """The error of Python's empty list reaches the caller; the blocks are lost."""

    def allocate(self, count: int = 1) -> list[int]:
        if count > self.num_free:
            self._free.clear()
            raise IndexError("pop from empty list")
        return super().allocate(count)


class SearchesForFree(BlockPool):
    """Counts the free blocks by reading every block's count."""

    def allocate(self, count: int = 1) -> list[int]:
        if count > self._ref_count.count(0):
            raise OutOfBlocks("too few are free")
        return super().allocate(count)


class LowestFirst(BlockPool):
    """Takes the free blocks with the lowest ids."""

    def allocate(self, count: int = 1) -> list[int]:
        self._free.sort(reverse=True)
        return super().allocate(count)


class Remembers(BlockPool):
    """Returns a list that the pool itself keeps and fills again."""

    taken: list[int]

    def __init__(self, *size: Any) -> None:
        super().__init__(*size)
        self.taken = []

    def allocate(self, count: int = 1) -> list[int]:
        self.taken[:] = super().allocate(count)
        return self.taken


ALLOCATE_CASES = (
    calls_case("three, then two", 6, ("allocate", 3), ("allocate", 2)),
    calls_case("one, none, the rest", 4, ("allocate", 1), ("allocate", 0), ("allocate", 3)),
    calls_case("more than are free", 4, ("allocate", 3), ("allocate", 2), ("allocate", 1)),
    calls_case("freed blocks", 5, ("allocate", 3), ("free", [1]), ("free", [0]), ("allocate", 3)),
    calls_case("shared blocks", 4, ("allocate", 2), ("share", [0]), ("free", [1, 0]), ("allocate", 3)),
    calls_case("a negative number", 4, ("allocate", 2), ("allocate", -1), ("allocate", 1)),
    calls_case("an empty pool", 0, ("allocate", 0), ("allocate", 1)),
    *IN_TURNS,
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
    Mistake("a list without blocks is returned if too few are free: raise OutOfBlocks", ReturnsNothing),
    Mistake("if too few are free, Python's IndexError is raised: raise OutOfBlocks", RaisesIndexError),
    Mistake(
        "blocks are popped until the list is empty, and are lost: compare `count` with what is free first",
        PopsUntilEmpty,
    ),
    Mistake("a negative `count` is accepted: it is a ValueError", AcceptsNegative),
    Mistake("the last free block is never allocated: all free blocks may be allocated", KeepsTheLast),
    Mistake("the new blocks have no owner: each begins with a count of one", ForgetsTheOwner),
    Mistake("the new blocks stay on the free list, so other calls get them too", AddsAnOwner),
    Mistake("the block freed first is allocated first: the free list is a stack, not a queue", Queue),
    Mistake("the block freed last comes last in the result: it comes first", Reversed),
    Mistake(
        "the whole pool is read or copied to find free blocks: take them from the end of the free list",
        SearchesForFree,
    ),
    Mistake("the lowest ids are allocated first: take the block that was freed last", LowestFirst),
    Mistake("every call returns the same list object: a caller keeps its list", Remembers),
)
