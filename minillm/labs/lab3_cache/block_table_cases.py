"""Tasks 3.3 and 3.4, `grow` and `fork` of a block table: cases and known mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.grader.memory_state import error_name, memory_state
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for


def grow_case(name: str, num_blocks: int, sizes: Sequence[int]) -> Case:
    """Grow one table step by step; record the state after each step, and each OutOfBlocks."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, 4)
        table, seen = table_class(pool), []
        for size in sizes:
            seen.append([error_name(partial(table.grow, size)), *memory_state(pool, table)])
        return seen

    return Case(f"{name}: {num_blocks} blocks of 4, grow to {list(sizes)} tokens", run)


def fork_case(name: str, num_blocks: int, num_tokens: int) -> Case:
    """Fork a table, then free the source's blocks; the fork's blocks must stay in use."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, 4)
        source, forks = table_class(pool), list[Any]()
        source.block_ids = pool.allocate(blocks_for(num_tokens, 4))
        failure = error_name(lambda: forks.append(source.fork(num_tokens)))
        copies = [copy for _, copy in forks]
        before = memory_state(pool, source, *(fork for fork, _ in forks))
        pool.free(source.block_ids)
        return [failure, copies, before, memory_state(pool, *(fork for fork, _ in forks))]

    return Case(f"{name}: {num_tokens} tokens in blocks of 4, {num_blocks} blocks", run)


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


class SharesAll(BlockTable):
    """The partly full block is shared too."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        child = BlockTable(self._pool)
        self._pool.share(self.block_ids)
        child.block_ids = list(self.block_ids)
        return child, None


class ForgetsOwners(BlockTable):
    """The full blocks are in the table, but the pool does not count the new owner."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        child, copy = super().fork(num_tokens)
        self._pool.free(child.block_ids[: num_tokens // self._pool.block_size])
        return child, copy


class SharesFirst(BlockTable):
    """Shares before it has allocated the block for the copy."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        full = self.block_ids[: num_tokens // self._pool.block_size]
        self._pool.share(full)
        child, copy = super().fork(num_tokens)
        self._pool.free(full)
        return child, copy


class ForgetsCopy(BlockTable):
    """The fork has its own last block, but returns no copy."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        return super().fork(num_tokens)[0], None


class AlwaysCopies(BlockTable):
    """The fork gets its own last block even if that block is full."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        child, copy = super().fork(num_tokens)
        if copy is None:
            child.block_ids += self._pool.allocate(1)
            copy = self.block_ids[-1], child.block_ids[-1]
        return child, copy


GROW_CASES = (
    grow_case("token by token", 6, range(1, 10)),
    grow_case("at once, then less", 6, (9, 3, 12)),
    grow_case("a pool with too few blocks", 3, (5, 20, 6)),
)
GROW_MISTAKES = (
    Mistake("grow allocates blocks for all tokens again: allocate only the missing blocks", GrowsByAll),
    Mistake("a failed grow keeps some blocks: allocate all of them with one call", GrowsOneByOne),
    Mistake("one block for every token: a block holds block_size tokens", GrowsPerToken),
    Mistake("a block is allocated as soon as the last one is full: wait until a token needs it", GrowsFull),
)
FORK_CASES = (
    fork_case("a last block partly full", 6, 6),
    fork_case("all blocks full", 6, 8),
    fork_case("no block left for the copy", 2, 6),
)
FORK_MISTAKES = (
    Mistake("the last, partly full block is shared, and both sequences will write to it", SharesAll),
    Mistake("shared blocks get no second owner: call the pool's `share`", ForgetsOwners),
    Mistake("blocks are shared before the copy is allocated, so a failed fork leaks owners", SharesFirst),
    Mistake("the fork's own block is empty: return (source, destination) for the copy", ForgetsCopy),
    Mistake("a full last block needs no copy: no sequence will write to it", AlwaysCopies),
)
