"""Task 3.5, `grow` of a block table: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from random import Random
from typing import Any

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.grader.memory_state import error_name, memory_state
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for


class CountingPool(BlockPool):
    """A pool that counts the blocks it has given out."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.num_allocated = 0

    def allocate(self, count: int = 1) -> list[int]:
        blocks = super().allocate(count)
        self.num_allocated += len(blocks)
        return blocks


_KEPT: list[Any] = []  # tables stay alive, so that no two of them ever have the same `id`


def new_table(table_class: Any, pool: BlockPool) -> Any:
    """An empty table of the student's class."""
    table = table_class(pool)
    _KEPT.append(table)
    return table


def grow_case(name: str, num_blocks: int, sizes: Sequence[int]) -> Case:
    """Grow one table step by step; record the state after each step, and each OutOfBlocks."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, 4)
        table, seen = new_table(table_class, pool), []
        for size in sizes:
            seen.append([error_name(partial(table.grow, size)), *memory_state(pool, table)])
        return seen

    return Case(f"{name}: {num_blocks} blocks of 4, grow to {list(sizes)} tokens", run)


def in_turns(table_class: Any) -> list[Any]:
    """Two tables over one pool, then a third over another pool."""
    pool, other = BlockPool(12, 4), BlockPool(12, 2)
    tables, seen = [new_table(table_class, pool) for _ in range(2)], list[Any]()
    for size in (3, 5, 13):
        for table in tables:
            table.grow(size)
            seen.append(memory_state(pool, *tables))
    third = new_table(table_class, other)
    third.grow(5)
    return [*seen, memory_state(other, third)]


def changed_outside(table_class: Any) -> list[Any]:
    """The engine also changes the list itself: cached blocks at the start, a rollback, a release."""
    pool = BlockPool(12, 4)
    table, seen = new_table(table_class, pool), list[Any]()
    table.block_ids = pool.allocate(2)  # from the prefix cache
    table.grow(11)
    seen.append(memory_state(pool, table))
    table.truncate(4)
    table.grow(9)
    seen.append(memory_state(pool, table))
    table.release()
    table.grow(6)
    return [*seen, memory_state(pool, table)]


def shared(table_class: Any) -> list[Any]:
    """A table whose blocks have a second owner: they must stay in the table."""
    pool = BlockPool(8, 4)
    table = new_table(table_class, pool)
    table.grow(8)
    pool.share(table.block_ids)
    table.grow(10)
    return memory_state(pool, table)


def reused(table_class: Any) -> list[Any]:
    """Short-lived tables, one after the other, in the same blocks."""
    pool, seen = BlockPool(6, 4), list[Any]()
    for size in (7, 3, 12, 5):
        table = new_table(table_class, pool)
        table.grow(size)
        seen.append(memory_state(pool, table))
        table.release()
    return seen


def blocks_taken(table_class: Any) -> list[Words]:
    """The blocks taken from the pool in each step."""
    pool, seen = CountingPool(40, 4), list[Words]()
    table = new_table(table_class, pool)
    for size in (30, 31, 60, 60):
        before, owned = pool.num_allocated, len(table.block_ids)
        table.grow(size)
        taken, needed = pool.num_allocated - before, max(0, blocks_for(size, 4) - owned)
        seen.append(Words(f"{size} tokens: {taken} blocks taken, {needed} needed"))
    return seen


def more_grows(random: Random) -> Iterator[Case]:
    """Random sizes, some of them too large for the pool."""
    for _ in range(3):
        num_blocks = random.randrange(4, 12)
        sizes = [random.randrange(0, 5 * num_blocks) for _ in range(6)]
        yield grow_case("random sizes", num_blocks, sizes)


class GrowsByAll(BlockTable):
    """Allocates blocks for all tokens, in addition to the blocks it has."""

    def grow(self, num_tokens: int) -> None:
        self.block_ids += self._pool.allocate(blocks_for(num_tokens, self._pool.block_size))


class GrowsOneByOne(BlockTable):
    """Keeps the blocks that it got before the pool was empty."""

    def grow(self, num_tokens: int) -> None:
        while len(self.block_ids) < blocks_for(num_tokens, self._pool.block_size):
            self.block_ids += self._pool.allocate(1)


class GrowsPerToken(BlockTable):
    """Allocates a block for each token."""

    def grow(self, num_tokens: int) -> None:
        self.block_ids += self._pool.allocate(max(num_tokens - len(self.block_ids), 0))


class GrowsFull(BlockTable):
    """Allocates the next block as soon as the last one is full."""

    def grow(self, num_tokens: int) -> None:
        super().grow(num_tokens + 1)


class GrowsRoundedDown(BlockTable):
    """Leaves out a partly full last block."""

    def grow(self, num_tokens: int) -> None:
        super().grow(num_tokens - num_tokens % self._pool.block_size)


class NoGuard(BlockTable):
    """Does not expect a table that holds more already."""

    def grow(self, num_tokens: int) -> None:
        missing = blocks_for(num_tokens, self._pool.block_size) - len(self.block_ids)
        self.block_ids += self._pool.allocate(missing)


class AtLeastOne(BlockTable):
    """Takes a block in every call."""

    def grow(self, num_tokens: int) -> None:
        missing = blocks_for(num_tokens, self._pool.block_size) - len(self.block_ids)
        self.block_ids += self._pool.allocate(max(missing, 1))


class GrowsDistance(BlockTable):
    """Takes as many blocks as the difference, in either direction."""

    def grow(self, num_tokens: int) -> None:
        missing = blocks_for(num_tokens, self._pool.block_size) - len(self.block_ids)
        self.block_ids += self._pool.allocate(abs(missing))


class Shrinks(BlockTable):
    """Frees blocks if fewer tokens are asked for."""

    def grow(self, num_tokens: int) -> None:
        self.truncate(num_tokens)
        super().grow(num_tokens)


class Replaces(BlockTable):
    """Frees all blocks and allocates as many as are needed."""

    def grow(self, num_tokens: int) -> None:
        needed = blocks_for(num_tokens, self._pool.block_size)
        if needed > len(self.block_ids):
            self.release()
            self.block_ids = self._pool.allocate(needed)


class KeepsCount(BlockTable):
    """Counts its blocks itself, although others change the list too."""

    def __init__(self, pool: BlockPool) -> None:
        super().__init__(pool)
        self._count = 0

    def grow(self, num_tokens: int) -> None:
        missing = blocks_for(num_tokens, self._pool.block_size) - self._count
        if missing > 0:
            self.block_ids += self._pool.allocate(missing)
            self._count += missing


class LosesAll(BlockTable):
    """Frees the whole table if the pool has too few blocks."""

    def grow(self, num_tokens: int) -> None:
        try:
            super().grow(num_tokens)
        except OutOfBlocks:
            self.release()
            raise


class GrowsDouble(BlockTable):
    """Allocates twice the missing blocks, for later."""

    def grow(self, num_tokens: int) -> None:
        missing = blocks_for(num_tokens, self._pool.block_size) - len(self.block_ids)
        if missing > 0:
            self.block_ids += self._pool.allocate(2 * missing)


class SwallowsError(BlockTable):
    """Does nothing if the pool has too few blocks."""

    def grow(self, num_tokens: int) -> None:
        error_name(lambda: super(SwallowsError, self).grow(num_tokens))


GROW_CASES = (
    grow_case("token by token", 6, range(1, 10)),
    grow_case("at once, then less", 6, (9, 3, 12)),
    grow_case("a pool with too few blocks", 3, (5, 20, 6)),
    grow_case("nothing, then exactly full", 4, (0, 8, 8)),
    Case("two tables over one pool in turns, a third over another pool", in_turns, "aliasing"),
    Case("the list is changed outside: cached blocks, truncate, release", changed_outside, "aliasing"),
    Case("blocks that have a second owner", shared, "aliasing"),
    Case("four tables, one after the other, in the same blocks", reused, "aliasing"),
    Case("blocks of 4, grow to 30, 31, 60, 60 tokens", blocks_taken, "cost"),
)
GROW_MISTAKES = (
    Mistake("grow allocates blocks for all tokens again: allocate only the missing blocks", GrowsByAll),
    Mistake("a failed grow keeps some blocks: allocate all of them with one call", GrowsOneByOne),
    Mistake("one block for every token: a block holds block_size tokens", GrowsPerToken),
    Mistake("a block is allocated as soon as the last one is full: wait until a token needs it", GrowsFull),
    Mistake("a partly full last block is not allocated: round up", GrowsRoundedDown),
    Mistake("a table that holds enough already asks for a negative number of blocks: do nothing", NoGuard),
    Mistake("a block is taken in every call, also if the table holds enough already", AtLeastOne),
    Mistake("a table that holds more than enough takes even more blocks: do nothing", GrowsDistance),
    Mistake("grow frees blocks if fewer tokens are asked for: it never shrinks a table", Shrinks),
    Mistake(
        "the table's blocks are exchanged for new ones, and the keys and values in them are lost", Replaces
    ),
    Mistake(
        "the number of blocks is counted apart: others change `block_ids` too, use its length", KeepsCount
    ),
    Mistake("a failed grow frees the table's own blocks: the table must not change", LosesAll),
    Mistake("more blocks than needed are allocated: other sequences need them", GrowsDouble),
    Mistake("OutOfBlocks is caught: the caller must see it", SwallowsError),
)
