"""Lab 3: the paged cache and the two loops. Address translation, block tables, prefill, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minillm.config import SamplingParams
from minillm.errors import MinillmError
from minillm.labs.lab import Case, Lab, Mistake, Part, Task
from minillm.labs.loops import DECODE_CASES, DECODE_MISTAKES, PREFILL_CASES, PREFILL_MISTAKES
from minillm.labs.tiny import tiny_llm
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for

TABLE = "minillm.memory.block_table"

# --- 3.1, 3.2 addresses -------------------------------------------------------------------------------

COUNT_CASES = tuple(
    Case(f"{tokens} tokens, blocks of {size}", partial(lambda tokens, size, f: f(tokens, size), tokens, size))
    for tokens, size in ((10, 4), (8, 4), (1, 16), (0, 4), (17, 16), (5, 1))
)
COUNT_MISTAKES = (
    Mistake("rounded down: a last block that is partly full is a block too", lambda n, size: n // size),
    Mistake("one block too many when the last one is exactly full", lambda n, size: n // size + 1),
)
SLOT_CASES = (
    Case("the whole sequence of the module's picture", lambda slots: slots([5, 2, 7], range(10), 4)),
    Case("one token, as in decode", lambda slots: slots([5, 2, 7], [9], 4)),
    Case("a chunk from the middle", lambda slots: slots([3, 0, 9, 1], range(6, 13), 4)),
    Case("no token", lambda slots: slots([3], [], 4)),
    Case("blocks of one slot", lambda slots: slots([4, 2, 6], range(3), 1)),
)
SLOT_MISTAKES = (
    Mistake(
        "slot ignores the block table (treats blocks as contiguous): position is not slot",
        lambda table, positions, size: list(positions),
    ),
    Mistake(
        "slot takes the first block's address and counts on: blocks need not be neighbours",
        lambda table, positions, size: [table[0] * size + pos for pos in positions],
    ),
    Mistake(
        "the offset in the block is missing: add pos % block_size",
        lambda table, positions, size: [table[pos // size] * size for pos in positions],
    ),
    Mistake(
        "the block id is not multiplied by block_size: a slot is a token's place, not a block's",
        lambda table, positions, size: [table[pos // size] + pos % size for pos in positions],
    ),
    Mistake(
        "// and % are exchanged: pos // block_size is the entry of the table, pos % block_size the offset",
        lambda table, positions, size: [table[pos % size] * size + pos // size for pos in positions],
    ),
    Mistake(
        "positions are counted from the start of the chunk; they are positions in the sequence",
        lambda table, positions, size: [table[i // size] * size + i % size for i in range(len(positions))],
    ),
)

# --- 3.3, 3.4 block tables ----------------------------------------------------------------------------


def state(pool: BlockPool, *tables: BlockTable) -> list[Any]:
    """Each table's blocks, the owners of every block, and how many are free."""
    owners = [pool.ref_count(block) for block in range(pool.num_blocks)]
    return [[list(table.block_ids) for table in tables], owners, pool.num_free]


def grow_case(name: str, num_blocks: int, sizes: Sequence[int]) -> Case:
    """Grow one table step by step; an OutOfBlocks is noted, and what it left behind."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, 4)
        table, seen = table_class(pool), []
        for size in sizes:
            seen.append([caught(partial(table.grow, size)), *state(pool, table)])
        return seen

    return Case(f"{name}: {num_blocks} blocks of 4, grow to {list(sizes)} tokens", run)


def fork_case(name: str, num_blocks: int, num_tokens: int) -> Case:
    """Fork a table; then release the source, which must leave the fork's blocks alone."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, 4)
        source, forks = table_class(pool), list[Any]()
        source.block_ids = pool.allocate(blocks_for(num_tokens, 4))
        failure = caught(lambda: forks.append(source.fork(num_tokens)))
        copies = [copy for _, copy in forks]
        before = state(pool, source, *(fork for fork, _ in forks))
        pool.free(source.block_ids)
        return [failure, copies, before, state(pool, *(fork for fork, _ in forks))]

    return Case(f"{name}: {num_tokens} tokens in blocks of 4, {num_blocks} blocks", run)


def caught(action: Callable[[], Any]) -> str | None:
    """The name of the typed error that `action` raises."""
    try:
        action()
    except MinillmError as error:
        return type(error).__name__
    return None


class GrowsByAll(BlockTable):
    """Takes as many blocks as the tokens need, on top of those it has."""

    def grow(self, num_tokens: int) -> None:
        self.block_ids += self._pool.allocate(blocks_for(num_tokens, self._pool.block_size))


class GrowsOneByOne(BlockTable):
    """Keeps what it got before the pool ran dry."""

    def grow(self, num_tokens: int) -> None:
        while len(self.block_ids) < blocks_for(num_tokens, self._pool.block_size):
            self.block_ids += self._pool.allocate(1)


class GrowsPerToken(BlockTable):
    """Takes a block for each token."""

    def grow(self, num_tokens: int) -> None:
        self.block_ids += self._pool.allocate(max(num_tokens - len(self.block_ids), 0))


class GrowsFull(BlockTable):
    """Has a spare block whenever the last one is full."""

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
    """The full blocks are listed, but the pool is not told."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        child, copy = super().fork(num_tokens)
        self._pool.free(child.block_ids[: num_tokens // self._pool.block_size])
        return child, copy


class SharesFirst(BlockTable):
    """Shares before it knows that a block for the copy can be had."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        full = self.block_ids[: num_tokens // self._pool.block_size]
        self._pool.share(full)
        child, copy = super().fork(num_tokens)
        self._pool.free(full)
        return child, copy


class ForgetsCopy(BlockTable):
    """An own last block, but nobody is asked to fill it."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        return super().fork(num_tokens)[0], None


class AlwaysCopies(BlockTable):
    """A block of its own even where the last one is full."""

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        child, copy = super().fork(num_tokens)
        if copy is None:
            child.block_ids += self._pool.allocate(1)
            copy = self.block_ids[-1], child.block_ids[-1]
        return child, copy


GROW_CASES = (
    grow_case("token by token", 6, range(1, 10)),
    grow_case("at once, then less", 6, (9, 3, 12)),
    grow_case("a pool that runs dry", 3, (5, 20, 6)),
)
GROW_MISTAKES = (
    Mistake("grow allocates for all tokens again: only the blocks that are missing", GrowsByAll),
    Mistake("a failed grow keeps the blocks it got: ask the pool for all of them at once", GrowsOneByOne),
    Mistake("one block for every token: a block holds block_size tokens", GrowsPerToken),
    Mistake("a new block is taken as soon as the last one is full: take it when a token needs it", GrowsFull),
)
FORK_CASES = (
    fork_case("a last block partly full", 6, 6),
    fork_case("all blocks full", 6, 8),
    fork_case("no block left for the copy", 2, 6),
)
FORK_MISTAKES = (
    Mistake("the last, partly full block is shared, and both sequences will write to it", SharesAll),
    Mistake("shared blocks get no second owner: call the pool's `share`", ForgetsOwners),
    Mistake("blocks are shared before the copy's block is had, so a failed fork leaks owners", SharesFirst),
    Mistake("the fork's own block is empty: return (source, destination) for the copy", ForgetsCopy),
    Mistake("a last block that is full needs no copy: nobody will write to it", AlwaysCopies),
)

# --- 3.7 the engine -----------------------------------------------------------------------------------


def in_engine(parts: Any) -> list[Any]:
    """Tokens of ragged requests, one of them forked, made with the file's loops, slots and tables."""

    def prefill_loop(runner: Any, chunks: Any) -> Any:
        for chunk in chunks:  # block tables have no seam of their own: swap them before their first use
            if chunk.start == 0:
                chunk.request.block_table = parts.BlockTable(llm.engine.pool)
        return parts.prefill(runner, chunks)

    loops = {"prefill_loop": prefill_loop, "decode_loop": parts.decode, "slot_mapping": parts.slot_mapping}
    llm = tiny_llm(parts=loops)
    prompts = ["A", "Once upon", "There was a small town by the sea"]
    params = [SamplingParams(max_tokens=size, seed=size, n=n) for size, n in ((9, 1), (14, 3), (20, 1))]
    outputs = llm.generate(prompts, params)
    return [[[c.token_ids for c in output.outputs] for output in outputs], llm.engine.stats()["used_blocks"]]


LAB = Lab(
    3,
    "cache",
    "The paged cache and the two loops",
    (
        Task("3.1", "blocks for so many tokens", 5, Part(TABLE, "blocks_for"), COUNT_CASES, COUNT_MISTAKES),
        Task("3.2", "position to slot", 15, Part(TABLE, "slot_mapping"), SLOT_CASES, SLOT_MISTAKES),
        Task("3.3", "own enough blocks", 15, Part(TABLE, "BlockTable", ("grow",)), GROW_CASES, GROW_MISTAKES),
        Task("3.4", "share a prompt", 15, Part(TABLE, "BlockTable", ("fork",)), FORK_CASES, FORK_MISTAKES),
        Task(
            "3.5",
            "many known tokens in one pass",
            20,
            Part("minillm.engine.prefill", "prefill"),
            PREFILL_CASES,
            PREFILL_MISTAKES,
        ),
        Task(
            "3.6",
            "one token for every request",
            20,
            Part("minillm.engine.decode", "decode"),
            DECODE_CASES,
            DECODE_MISTAKES,
        ),
        Task(
            "3.7",
            "your cache and loops in the running engine",
            10,
            None,
            (Case("five completions of three prompts", in_engine),),
        ),
    ),
)
