"""Tasks 9.5 and 9.6, blocks for tokens that may be rejected: cases and known mistakes of a block table."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.memory_state import error_name, memory_state
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for

SIZE = 4


# --- 9.5 truncate -----------------------------------------------------------------------------------


def truncate_case(owned: int, *kept: int) -> Case:
    """A table for `owned` tokens, truncated once or several times: the results, the table and the pool."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(8, SIZE)
        table, seen = table_class(pool), list[Any]()
        table.block_ids = pool.allocate(blocks_for(owned, SIZE))
        for tokens in kept:
            seen.append([table.truncate(tokens), *memory_state(pool, table)])
        return seen

    return Case(f"{owned} tokens in blocks of {SIZE}, keep {' then '.join(map(str, kept))}", run)


class Cuts(BlockTable):
    """The engine's `truncate`; subclasses change one part of it."""

    def _kept(self, num_tokens: int) -> int:
        return blocks_for(num_tokens, self._pool.block_size)

    def _give_back(self, behind: list[int]) -> None:
        self._pool.free(behind)

    def truncate(self, num_tokens: int) -> int:
        keep = self._kept(num_tokens)
        behind, self.block_ids = self.block_ids[keep:], self.block_ids[:keep]
        self._give_back(behind)
        return len(behind)


class RoundsDown(Cuts):
    """Frees the partly full block too."""

    def _kept(self, num_tokens: int) -> int:
        return num_tokens // self._pool.block_size


class OneTooMany(Cuts):
    """Keeps one block too many."""

    def _kept(self, num_tokens: int) -> int:
        return num_tokens // self._pool.block_size + 1


class Leaks(Cuts):
    """Shortens the table but frees no blocks."""

    def _give_back(self, behind: list[int]) -> None:
        pass


class StaysLong(BlockTable):
    """Frees the blocks but leaves them in the table."""

    def truncate(self, num_tokens: int) -> int:
        behind = self.block_ids[blocks_for(num_tokens, self._pool.block_size) :]
        self._pool.free(behind)
        return len(behind)


class CountsWhatStays(Cuts):
    """Returns the number of blocks that are left."""

    def truncate(self, num_tokens: int) -> int:
        super().truncate(num_tokens)
        return len(self.block_ids)


TRUNCATE_CASES = (
    truncate_case(14, 9),
    truncate_case(14, 8),
    truncate_case(14, 14),
    truncate_case(14, 13, 5, 4, 1),
    truncate_case(5, 20),
)
TRUNCATE_MISTAKES = (
    Mistake("the last block that is still needed is partly full, and it was freed: round up", RoundsDown),
    Mistake("one block too many stays if the last one is exactly full", OneTooMany),
    Mistake("the blocks are not freed in the pool: rejected drafts leak memory", Leaks),
    Mistake("the freed blocks are still in the table: another sequence will write to them", StaysLong),
    Mistake("return the number of freed blocks, not of the blocks that stay", CountsWhatStays),
)


# --- 9.6 branch and adopt ---------------------------------------------------------------------------


def branch_case(start: int, end: int, num_blocks: int = 10) -> Case:
    """A branch from `start` to `end`: its blocks, and the table and the pool afterwards."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, SIZE)
        table, own = table_class(pool), list[Any]()
        table.block_ids = pool.allocate(blocks_for(end, SIZE))
        failure = error_name(lambda: own.append(table.branch(start, end)))
        return [failure, own, *memory_state(pool, table)]

    return Case(f"branch from {start} to {end}, in blocks of {SIZE}, {num_blocks} blocks", run)


def adopt_case(start: int, end: int) -> Case:
    """A branch is adopted, and the replaced blocks are freed."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(10, SIZE)
        table = table_class(pool)
        table.block_ids = pool.allocate(blocks_for(end, SIZE))
        losers = table.adopt(start, pool.allocate(blocks_for(end, SIZE) - start // SIZE))
        adopted = [list(losers), *memory_state(pool, table)]
        pool.free(losers)
        return [*adopted, memory_state(pool, table)]

    return Case(f"adopt a branch from {start} to {end}, in blocks of {SIZE}", run)


class Branches(BlockTable):
    """The engine's `branch` and `adopt`; subclasses change one part of them."""

    def _first(self, start: int) -> int:
        """Index of the first block that the branch does not share."""
        return start // self._pool.block_size

    def branch(self, start: int, num_tokens: int) -> list[int]:
        return self._pool.allocate(blocks_for(num_tokens, self._pool.block_size) - self._first(start))

    def adopt(self, start: int, own: list[int]) -> list[int]:
        first = self._first(start)
        before, self.block_ids = self.block_ids[first:], self.block_ids[:first] + own
        return before


class SharesThePartlyFull(Branches):
    """Both branches write to the block of position `start`."""

    def _first(self, start: int) -> int:
        return blocks_for(start, self._pool.block_size)


class CopiesAll(Branches):
    """Nothing is shared."""

    def _first(self, start: int) -> int:
        return 0


class CountsTokens(Branches):
    """Uses a position as an index into the table."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        before, self.block_ids = self.block_ids[start:], self.block_ids[:start] + own
        return before


class TakesTheBranchIn(Branches):
    """Adds the branch's blocks to the table at once."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        own = super().branch(start, num_tokens)
        self.block_ids += own
        return own


class FreesItself(Branches):
    """Frees the replaced blocks and also returns them, so they are freed twice."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        before = super().adopt(start, own)
        self._pool.free(before)
        return before


class ReturnsTheWinner(Branches):
    """Returns the adopted blocks."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        super().adopt(start, own)
        return own


BRANCH_CASES = (
    branch_case(6, 10),
    branch_case(8, 10),
    branch_case(5, 17),
    branch_case(0, 3),
    branch_case(6, 10, num_blocks=4),
    adopt_case(6, 10),
    adopt_case(8, 10),
    adopt_case(5, 17),
    adopt_case(0, 3),
)
BRANCH_MISTAKES = (
    Mistake(
        "the block of position `start` is shared, and both branches will write to it: it must be copied",
        SharesThePartlyFull,
    ),
    Mistake("the full blocks before `start` are not shared: neither branch will write to them", CopiesAll),
    Mistake("`start` is a position in tokens: the table counts blocks", CountsTokens),
    Mistake("a branch must not change the table until it is adopted", TakesTheBranchIn),
    Mistake("the caller frees the replaced blocks: freed here, they are freed twice", FreesItself),
    Mistake("return the replaced blocks, not the adopted ones", ReturnsTheWinner),
)
