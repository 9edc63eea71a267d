"""Tasks 3.3 and 3.4, rows of keys and values in the paged cache: cases of `write_cache` and `read_cache`.

The cache is filled with numbers before a case, so a row at a wrong slot and a slot that should not have
changed both show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.cost import Work, counted_work
from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.tiny_model import random_tensor

BLOCK_SIZE, ROW = 4, (2, 3)  # slots of a block; heads and numbers of a row
MANY_BLOCKS = 1000
ALLOWED = 8  # times the bytes that are needed; a copy of the whole cache is 400 times as much

Write = Callable[[Tensor, Tensor, Tensor], Any]
Read = Callable[[Tensor, Tensor, int], Any]


def cache_of(seed: int, num_blocks: int = 10, dtype: torch.dtype = torch.float32) -> Tensor:
    """A cache of one layer, filled with numbers."""
    return random_tensor(seed, num_blocks, BLOCK_SIZE, *ROW).to(dtype)


def rows_of(seed: int, count: int) -> Tensor:
    """New rows [count, heads, numbers]."""
    return random_tensor(seed, count, *ROW)


def moved(work: Work) -> int:
    """The bytes read or written, whichever are more."""
    return max(work.bytes_written, work.bytes_read)


def within(work: Work, needed: int, free: int = 0) -> Words:
    """The bytes moved, in words; a number only if they are far more than needed, and `free` ones."""
    if moved(work) <= ALLOWED * needed + free:
        return Words("moves a few times the bytes of the rows at most")
    return Words(f"moves {moved(work):,} bytes, needs {needed:,}")


# --- 3.3 write_cache --------------------------------------------------------------------------------


def write_case(
    name: str, slots: Sequence[int], seed: int, num_blocks: int = 10, dtype: torch.dtype = torch.float32
) -> Case:
    """The whole cache after the write."""

    def run(write: Write) -> Tensor:
        cache = cache_of(seed, num_blocks, dtype)
        write(cache, torch.tensor(slots, dtype=torch.int64), rows_of(seed + 1, len(slots)))
        return cache

    return Case(name, run)


def strided(write: Write) -> list[Tensor]:
    """K and V are parts of one matrix, as the model's fused projection computes them."""
    keys, values = rows_of(31, 6).view(3, 2, *ROW).unbind(1)
    caches = cache_of(32), cache_of(33)
    for cache, rows in zip(caches, (keys, values), strict=True):
        write(cache, torch.tensor([17, 2, 30]), rows)
    return list(caches)


def write_again(write: Write) -> list[Tensor]:
    """The same slots again with other rows: blocks are reused. The arguments must not change."""
    cache, slots = cache_of(41), torch.tensor([6, 7, 21])
    rows = rows_of(42, 3)
    write(cache, slots, rows)
    seen = [cache.clone(), slots.clone(), rows.clone()]
    rows.zero_()  # the caller uses this memory again
    seen.append(cache.clone())
    write(cache, slots, rows_of(43, 3))
    return [*seen, cache]


def two_caches(write: Write) -> list[Tensor]:
    """Two layers in turns, one row each time."""
    caches = cache_of(51), cache_of(52)
    for step, slot in enumerate((11, 12)):
        for layer, cache in enumerate(caches):
            write(cache, torch.tensor([slot]), rows_of(53 + 2 * step + layer, 1))
    return list(caches)


def write_cost(dtype: torch.dtype) -> Case:
    """The bytes moved to write nine rows to a cache of many blocks."""

    def run(write: Write) -> Words:
        cache, rows = cache_of(61, MANY_BLOCKS, dtype), rows_of(62, 9)
        slots = torch.arange(9) * 401
        with counted_work() as work:
            write(cache, slots, rows)
        return within(work, rows.nbytes)

    return Case(f"nine rows, a cache of {MANY_BLOCKS} blocks in {str(dtype)[6:]}", run, "cost")


def more_writes(random: Random) -> Iterator[Case]:
    """Random slots."""
    for i in range(3):
        slots = random.sample(range(80), random.randrange(1, 30))
        yield write_case(f"{len(slots)} rows to random slots", slots, 100 + 10 * i, 20)


WRITE_CASES = (
    write_case("a chunk in two blocks that are not neighbours", [22, 23, 8, 9, 10], 11),
    write_case("one row, as in decode", [37], 13),
    write_case("two sequences, the rows of the second before those of the first", [33, 34, 3, 12], 15),
    write_case("no row", [], 17),
    write_case("a cache in bfloat16, rows in float32", [30, 0, 18], 19, dtype=torch.bfloat16),
    Case("rows of K and V that are parts of one matrix", strided),
    Case("the same slots again, other rows", write_again, "aliasing"),
    Case("two layers in turns", two_caches, "aliasing"),
    write_cost(torch.float32),
    write_cost(torch.bfloat16),
)


# --- 3.4 read_cache ---------------------------------------------------------------------------------


def table_of(*blocks: int) -> Tensor:
    """A sequence's block table, as the engine passes it."""
    return torch.tensor(blocks, dtype=torch.int32)


def read_case(
    name: str,
    blocks: Sequence[int],
    num_tokens: int,
    seed: int,
    num_blocks: int = 10,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """The rows of the first `num_tokens` tokens."""
    return Case(name, lambda read: read(cache_of(seed, num_blocks, dtype), table_of(*blocks), num_tokens))


def read_again(read: Read) -> list[Tensor]:
    """Read, then write to the cache and read again. A result is a copy: neither changes the other."""
    seen: list[Tensor] = []
    for table, count in ((table_of(1, 2), 7), (table_of(2), 3)):
        cache = cache_of(71 + count)
        first = read(cache, table, count)
        seen.append(first.clone())
        cache[2] = 0.5
        seen += [first.clone(), read(cache, table, count)]
        before = first.clone()
        first.zero_()
        seen += [cache.clone(), table]
        first.copy_(before)  # a result that is kept must be the same in the next run
    return seen


def read_longer(read: Read) -> list[Tensor]:
    """One sequence at several lengths, in one table object; the last block is exchanged at the end."""
    cache, table = cache_of(73), table_of(9, 3, 6, 0)
    seen = [read(cache, table, length) for length in (3, 4, 5, 9)]
    table[2] = 8
    return [*seen, read(cache, table, 9)]


def read_in_turns(read: Read) -> list[Tensor]:
    """K and V of two sequences of the same length, in turns."""
    caches, tables = (cache_of(75), cache_of(76)), (table_of(4, 7), table_of(6, 2))
    return [read(cache, table, 6) for table in tables for cache in caches]


def read_cost(dtype: torch.dtype) -> Case:
    """The bytes moved for nine tokens: a cache of many blocks, a table padded for a long sequence beside.

    The table may be converted to int64: its ids are few bytes beside the rows of a real model.
    """

    def run(read: Read) -> Words:
        cache, table = cache_of(77, MANY_BLOCKS, dtype), table_of(900, 5, 400, *[0] * 253)
        with counted_work() as work:
            read(cache, table, 9)
        return within(work, 9 * cache[0, 0].nbytes, free=4 * table.nbytes)

    title = f"nine tokens, a cache of {MANY_BLOCKS} blocks in {str(dtype)[6:]}, a table of 256 entries"
    return Case(title, run, "cost")


def full_block(read: Read) -> Words:
    """The bytes moved for a block that is exactly full, beside those for one with a free slot."""
    cache, table, work = random_tensor(79, 6, 64, *ROW), table_of(3, 5, 2), list[int]()
    for num_tokens in (63, 64):
        with counted_work() as counted:
            read(cache, table, num_tokens)
        work.append(moved(counted))
    if work[1] <= 1.2 * work[0]:
        return Words("64 tokens in a block of 64 cost as much as 63")
    return Words(f"64 tokens in a block of 64 move {work[1]:,} bytes, and 63 tokens {work[0]:,}")


def more_reads(random: Random) -> Iterator[Case]:
    """Random tables, some with room for later tokens."""
    for i in range(3):
        blocks = random.sample(range(20), random.randrange(1, 12))
        count = random.randrange(1, len(blocks) * BLOCK_SIZE + 1)
        title = f"{count} tokens, a table of {len(blocks)} random blocks"
        yield read_case(title, blocks, count, 200 + i, 20)


READ_CASES = (
    read_case("blocks that are not neighbours, the last one partly full", [5, 2, 7], 10, 21),
    read_case("all blocks full", [8, 1], 8, 22),
    read_case("one token", [6], 1, 23),
    read_case("a table that is filled up with zeros", [3, 9, 0, 0, 0], 7, 24),
    read_case("a table with blocks for later tokens", [2, 4, 8, 1, 9], 5, 25),
    read_case("a cache in bfloat16", [7, 0, 5], 9, 26, dtype=torch.bfloat16),
    Case("read, write, read again", read_again, "aliasing"),
    Case("one table, several lengths, then another block", read_longer, "aliasing"),
    Case("K and V of two sequences in turns", read_in_turns, "aliasing"),
    read_cost(torch.float32),
    read_cost(torch.bfloat16),
    Case("a block that is exactly full", full_block, "cost"),
)
