"""Task 9.5, roll back: cases and known mistakes of `BlockTable.truncate`."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.grader.memory_state import memory_state
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for

SIZE = 4


class WatchedPool(BlockPool):
    """A pool that counts the blocks it is asked for."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.num_allocated = self.num_shared = 0

    def allocate(self, count: int = 1) -> list[int]:
        """Allocate and count."""
        self.num_allocated += count
        return super().allocate(count)

    def share(self, block_ids: Iterable[int]) -> None:
        """Share and count."""
        ids = list(block_ids)
        self.num_shared += len(ids)
        super().share(ids)

    def asked(self) -> Words:
        """What was asked since the last call."""
        text = f"{self.num_allocated} blocks allocated, {self.num_shared} shared"
        self.num_allocated = self.num_shared = 0
        return Words(text)


def cost_case(table_class: Any) -> list[Words]:
    """A truncated table asks the pool for nothing."""
    pool, seen = WatchedPool(8, SIZE), list[Words]()
    table = table_class(pool)
    table.block_ids = pool.allocate(4)
    pool.asked()
    for tokens in (13, 9, 9, 2):
        table.truncate(tokens)
        seen.append(pool.asked())
    return seen


def shared_case(table_class: Any) -> list[Any]:
    """Two tables share their first blocks; they are truncated in turns, and one grows again."""
    pool = BlockPool(12, SIZE)
    one, two = table_class(pool), table_class(pool)
    one.block_ids = pool.allocate(4)
    pool.share(one.block_ids[:3])
    two.block_ids = [*one.block_ids[:3], *pool.allocate(1)]
    seen = [[two.truncate(6), *memory_state(pool, one, two)]]
    seen.append([one.truncate(9), *memory_state(pool, one, two)])
    two.grow(15)
    seen.append([len(set(two.block_ids)), len(one.block_ids), pool.num_free])
    seen.append([two.truncate(0), one.truncate(0), *memory_state(pool, one, two)])
    return seen


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


class FreesForAll(Cuts):
    """Removes the other owners too."""

    def _give_back(self, behind: list[int]) -> None:
        for block_id in behind:
            while self._pool.ref_count(block_id):
                self._pool.free([block_id])


class KeepsShared(Cuts):
    """Does not free a block that has another owner."""

    def _give_back(self, behind: list[int]) -> None:
        self._pool.free([block_id for block_id in behind if self._pool.ref_count(block_id) == 1])


class CutsFromTheEnd(Cuts):
    """Cuts `-number:`, which is everything if the number is 0."""

    def truncate(self, num_tokens: int) -> int:
        number = max(len(self.block_ids) - self._kept(num_tokens), 0)
        behind, self.block_ids = self.block_ids[-number:], self.block_ids[:-number]
        self._give_back(behind)
        return len(behind)


class SaysLess(Cuts):
    """Returns a negative number for a shorter table."""

    def truncate(self, num_tokens: int) -> int:
        number = len(self.block_ids) - self._kept(num_tokens)
        super().truncate(num_tokens)
        return number


class SaysNothing(Cuts):
    """Returns None."""

    def truncate(self, num_tokens: int) -> Any:
        super().truncate(num_tokens)


class SaysIds(Cuts):
    """Returns the freed blocks."""

    def truncate(self, num_tokens: int) -> Any:
        behind = self.block_ids[self._kept(num_tokens) :]
        super().truncate(num_tokens)
        return behind


class CutsTokens(Cuts):
    """Uses a number of tokens as an index into the table."""

    def _kept(self, num_tokens: int) -> int:
        return num_tokens


class StartsAgain(Cuts):
    """Frees all blocks and allocates new ones."""

    def truncate(self, num_tokens: int) -> int:
        before = len(self.block_ids)
        keep = min(self._kept(num_tokens), before)
        self._pool.free(self.block_ids)
        self.block_ids = self._pool.allocate(keep)
        return before - keep


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
    truncate_case(6, 0),
    Case("two tables with common blocks, in turns", shared_case, "aliasing"),
    Case("what the pool is asked for", cost_case, "cost"),
)
TRUNCATE_MISTAKES = (
    Mistake("the last block that is still needed is partly full, and it was freed: round up", RoundsDown),
    Mistake("one block too many stays if the last one is exactly full", OneTooMany),
    Mistake("the blocks are not freed in the pool: rejected drafts leak memory", Leaks),
    Mistake("the freed blocks are still in the table: another sequence will write to them", StaysLong),
    Mistake("return the number of freed blocks, not of the blocks that stay", CountsWhatStays),
    Mistake("a shared block is freed for all of its owners: free it once", FreesForAll),
    Mistake("a shared block is not freed: this table is one of its owners", KeepsShared),
    Mistake("if no block is too many, all are freed: `-0:` is the whole list", CutsFromTheEnd),
    Mistake("a table that is already shorter frees no block: return 0", SaysLess),
    Mistake("return the number of freed blocks", SaysNothing),
    Mistake("return the number of freed blocks, not their ids", SaysIds),
    Mistake("`num_tokens` is used as an index: the table counts blocks", CutsTokens),
    Mistake("all blocks are freed and new ones allocated: the keys in the old ones are lost", StartsAgain),
)


def random_cuts(random: Random) -> Iterable[Case]:
    """Random cases: a table is truncated several times."""
    for _ in range(4):
        owned = random.randint(1, 32)
        yield truncate_case(owned, *sorted((random.randint(0, owned) for _ in range(3)), reverse=True))
