"""Tasks 9.5 and 9.6, blocks for tokens that may never be: cases and known mistakes of a block table."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.memory_state import error_name, memory_state
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for

SIZE = 4


# --- 9.5 truncate -----------------------------------------------------------------------------------


def truncate_case(owned: int, *kept: int) -> Case:
    """A table for `owned` tokens, cut back once or several times: what is returned, and the books."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(8, SIZE)
        table, seen = table_class(pool), list[Any]()
        table.block_ids = pool.allocate(blocks_for(owned, SIZE))
        for tokens in kept:
            seen.append([table.truncate(tokens), *memory_state(pool, table)])
        return seen

    return Case(f"{owned} tokens in blocks of {SIZE}, keep {' then '.join(map(str, kept))}", run)


class Cuts(BlockTable):
    """The engine's `truncate` with one idea exchanged."""

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
    """The partly full block goes."""

    def _kept(self, num_tokens: int) -> int:
        return num_tokens // self._pool.block_size


class OneTooMany(Cuts):
    """A spare block stays."""

    def _kept(self, num_tokens: int) -> int:
        return num_tokens // self._pool.block_size + 1


class Leaks(Cuts):
    """The table is shorter, the pool does not know."""

    def _give_back(self, behind: list[int]) -> None:
        pass


class StaysLong(BlockTable):
    """The blocks are free and still in the table."""

    def truncate(self, num_tokens: int) -> int:
        behind = self.block_ids[blocks_for(num_tokens, self._pool.block_size) :]
        self._pool.free(behind)
        return len(behind)


class CountsWhatStays(Cuts):
    """Says how many are left."""

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
    Mistake("the last kept block is partly full and was given back: round up", RoundsDown),
    Mistake("a block stays behind a last one that is exactly full: kept tokens need no more", OneTooMany),
    Mistake("the blocks are not given back to the pool: rejected drafts leak memory", Leaks),
    Mistake("the blocks are free, and still in the table: somebody else will write to them", StaysLong),
    Mistake("return how many blocks went, not how many stay", CountsWhatStays),
)


# --- 9.6 branch and adopt ---------------------------------------------------------------------------


def branch_case(start: int, end: int, num_blocks: int = 10) -> Case:
    """A second future from `start` to `end`, and what it leaves of table and pool."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, SIZE)
        table, own = table_class(pool), list[Any]()
        table.block_ids = pool.allocate(blocks_for(end, SIZE))
        failure = error_name(lambda: own.append(table.branch(start, end)))
        return [failure, own, *memory_state(pool, table)]

    return Case(f"branch from {start} to {end}, in blocks of {SIZE}, {num_blocks} blocks", run)


def adopt_case(start: int, end: int) -> Case:
    """A second future is chosen, and the blocks of the first are given back."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(10, SIZE)
        table = table_class(pool)
        table.block_ids = pool.allocate(blocks_for(end, SIZE))
        losers = table.adopt(start, pool.allocate(blocks_for(end, SIZE) - start // SIZE))
        adopted = [list(losers), *memory_state(pool, table)]
        pool.free(losers)
        return [*adopted, memory_state(pool, table)]

    return Case(f"adopt what parted at {start} and goes to {end}, in blocks of {SIZE}", run)


class Branches(BlockTable):
    """The engine's `branch` and `adopt` with one idea exchanged."""

    def _first(self, start: int) -> int:
        """Index of the first block that the branch has for itself."""
        return start // self._pool.block_size

    def branch(self, start: int, num_tokens: int) -> list[int]:
        return self._pool.allocate(blocks_for(num_tokens, self._pool.block_size) - self._first(start))

    def adopt(self, start: int, own: list[int]) -> list[int]:
        first = self._first(start)
        before, self.block_ids = self.block_ids[first:], self.block_ids[:first] + own
        return before


class SharesThePartlyFull(Branches):
    """Both futures write into the block where they part."""

    def _first(self, start: int) -> int:
        return blocks_for(start, self._pool.block_size)


class CopiesAll(Branches):
    """Nothing is shared."""

    def _first(self, start: int) -> int:
        return 0


class CountsTokens(Branches):
    """A position is taken for an index into the table."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        before, self.block_ids = self.block_ids[start:], self.block_ids[:start] + own
        return before


class TakesTheBranchIn(Branches):
    """The branch's blocks are in the table at once."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        own = super().branch(start, num_tokens)
        self.block_ids += own
        return own


class FreesItself(Branches):
    """The other future's blocks are freed, and returned to be freed once more."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        before = super().adopt(start, own)
        self._pool.free(before)
        return before


class ReturnsTheWinner(Branches):
    """Returns the blocks that were chosen."""

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
        "the block in which the futures part is shared, and both will write to it: it is copied",
        SharesThePartlyFull,
    ),
    Mistake("full blocks in front are not shared: nobody will write to them", CopiesAll),
    Mistake("`start` is a position in tokens: the table counts blocks", CountsTokens),
    Mistake("a branch leaves the table as it is, until it is adopted", TakesTheBranchIn),
    Mistake("the caller gives the other future's blocks back: freed here, they are freed twice", FreesItself),
    Mistake("return the blocks of the future that was not chosen", ReturnsTheWinner),
)
