"""Task 9.6, two branches of one sequence: cases and known mistakes of `branch` and `adopt`."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.grader.memory_state import error_name, memory_state
from minillm.labs.lab9_speculation.truncate_cases import SIZE, WatchedPool
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for


def branch_case(start: int, end: int, num_blocks: int = 10) -> Case:
    """A branch from `start` to `end`: its blocks, and the table and the pool afterwards."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, SIZE)
        table, own = table_class(pool), list[Any]()
        table.block_ids = pool.allocate(blocks_for(end, SIZE))
        failure = error_name(lambda: own.append(table.branch(start, end)))
        return [failure, own, *memory_state(pool, table)]

    return Case(f"branch from {start} to {end}, in blocks of {SIZE}, {num_blocks} blocks", run)


def cost_case(table_class: Any) -> list[Words]:
    """The blocks that the pool is asked for by two branches and an adoption."""
    pool, seen = WatchedPool(16, SIZE), list[Words]()
    table = table_class(pool)
    table.block_ids = pool.allocate(3)
    pool.asked()
    branches = [table.branch(6, end) for end in (10, 11)]
    seen.append(pool.asked())
    table.adopt(6, branches[1])
    seen.append(pool.asked())
    return seen


def turns_case(start: int) -> Case:
    """Two tables with two branches each; one branch is adopted, the table grows; the lists stay apart."""

    def run(table_class: Any) -> list[Any]:
        pool, seen = BlockPool(40, SIZE), list[Any]()
        tables = [table_class(pool) for _ in range(2)]
        for table in tables:
            table.block_ids = pool.allocate(blocks_for(start + 5, SIZE))
        branches = [[table.branch(start, start + 5) for table in tables] for _ in range(2)]
        seen.append(
            [len({b for pair in branches for own in pair for b in own}), *memory_state(pool, *tables)]
        )
        for table, own, other in zip(tables, *branches, strict=True):
            given = list(own)
            losers = table.adopt(start, own)
            lost = list(losers)
            table.grow(start + 14)
            seen.append([own == given, list(losers) == lost, table.block_ids[-1] in own])
            pool.free([*losers, *other])
        owners = [pool.ref_count(block) for table in tables for block in table.block_ids]
        return [*seen, owners, pool.num_free]

    return Case(f"two tables, each with two branches from {start}, in blocks of {SIZE}", run, "aliasing")


def adopt_case(start: int, end: int) -> Case:
    """A branch is adopted, and the replaced blocks are freed."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(12, SIZE)
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


class SharesInBranch(Branches):
    """Only `branch` shares the block of position `start`."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        size = self._pool.block_size
        return self._pool.allocate(blocks_for(num_tokens, size) - blocks_for(start, size))


class KeepsInAdopt(Branches):
    """Only `adopt` keeps the old block of position `start`."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        first = blocks_for(start, self._pool.block_size)
        before, self.block_ids = self.block_ids[first:], self.block_ids[:first] + own
        return before


class CopiesAllInBranch(Branches):
    """Only `branch` shares nothing."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        return self._pool.allocate(blocks_for(num_tokens, self._pool.block_size))


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


class CountsFromStart(Branches):
    """Counts the tokens from `start` on, as if a block began there."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        return self._pool.allocate(blocks_for(num_tokens - start, self._pool.block_size))


class ReturnsAll(Branches):
    """Returns the shared blocks too."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        return self.block_ids[: self._first(start)] + super().branch(start, num_tokens)


class OwnsTheShared(Branches):
    """The branch becomes an owner of the shared blocks."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        own = super().branch(start, num_tokens)
        self._pool.share(self.block_ids[: self._first(start)])
        return own


class OneByOne(Branches):
    """Allocates block after block, and keeps them if the pool becomes empty."""

    def branch(self, start: int, num_tokens: int) -> list[int]:
        number = blocks_for(num_tokens, self._pool.block_size) - self._first(start)
        return [block_id for _ in range(number) for block_id in self._pool.allocate(1)]


class Appends(Branches):
    """Adds the branch behind the old blocks."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        before = super().adopt(start, own)
        self.block_ids = self.block_ids[: self._first(start)] + before + own
        return before


class KeepsTheList(Branches):
    """The branch's list becomes the table."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        before = super().adopt(start, own)
        own[:] = self.block_ids
        self.block_ids = own
        return before


class KeepsTheListFromStart(Branches):
    """The branch's list becomes the table if nothing is shared."""

    def adopt(self, start: int, own: list[int]) -> list[int]:
        before = super().adopt(start, own)
        if self._first(start) == 0:
            self.block_ids = own
        return before


class ReturnsNothing(Branches):
    """Returns None, so the replaced blocks are lost."""

    def adopt(self, start: int, own: list[int]) -> Any:
        super().adopt(start, own)


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
    turns_case(6),
    turns_case(0),
    Case("what the pool is asked for", cost_case, "cost"),
)
BRANCH_MISTAKES = (
    Mistake(
        "the block of position `start` is shared, and both branches will write to it: it must be copied",
        SharesThePartlyFull,
    ),
    Mistake(
        "the block of position `start` is shared, and both branches will write to it: it must be copied",
        SharesInBranch,
    ),
    Mistake(
        "the old block of position `start` stays in the table: the branch has a copy of it", KeepsInAdopt
    ),
    Mistake("the full blocks before `start` are not shared: neither branch will write to them", CopiesAll),
    Mistake(
        "the full blocks before `start` are not shared: neither branch will write to them", CopiesAllInBranch
    ),
    Mistake("`start` is a position in tokens: the table counts blocks", CountsTokens),
    Mistake("a branch must not change the table until it is adopted", TakesTheBranchIn),
    Mistake("the caller frees the replaced blocks: freed here, they are freed twice", FreesItself),
    Mistake("return the replaced blocks, not the adopted ones", ReturnsTheWinner),
    Mistake(
        "a branch that begins inside a block needs that block too: count from the block's beginning",
        CountsFromStart,
    ),
    Mistake("a branch is the list of its own blocks, without the shared ones", ReturnsAll),
    Mistake("a branch does not become an owner of the shared blocks: nobody frees them", OwnsTheShared),
    Mistake(
        "if the pool has too few blocks, those allocated before are lost: allocate all at once", OneByOne
    ),
    Mistake("the branch's blocks are added behind the old ones: they replace them", Appends),
    Mistake(
        "the branch's list becomes the table's list: if the table grows, the branch's list grows too",
        KeepsTheList,
    ),
    Mistake(
        "the branch's list becomes the table's list: if the table grows, the branch's list grows too",
        KeepsTheListFromStart,
    ),
    Mistake("return the replaced blocks: the caller frees them", ReturnsNothing),
)


def random_branches(random: Random) -> Iterable[Case]:
    """Random cases: branches and adoptions at random positions."""
    for _ in range(3):
        start = random.randint(0, 12)
        end = start + random.randint(1, 8)
        yield branch_case(start, end, num_blocks=random.randint(6, 12))
        yield adopt_case(start, end)
