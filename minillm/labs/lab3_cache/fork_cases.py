"""Task 3.6, `fork` of a block table: cases."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.memory_state import error_name, memory_state
from minillm.labs.lab3_cache.grow_cases import CountingPool, new_table
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import blocks_for


def fork_case(name: str, num_blocks: int, num_tokens: int, held: int | None = None) -> Case:
    """Fork a table of `held` tokens, then free the source's blocks; the fork's blocks must stay in use."""
    held = num_tokens if held is None else held

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(num_blocks, 4)
        source, forks = new_table(table_class, pool), list[Any]()
        source.block_ids = pool.allocate(blocks_for(held, 4))
        failure = error_name(lambda: forks.append(source.fork(num_tokens)))
        copies = [copy for _, copy in forks]
        before = memory_state(pool, source, *(fork for fork, _ in forks))
        pool.free(source.block_ids)
        return [failure, copies, before, memory_state(pool, *(fork for fork, _ in forks))]

    holds = "" if held == num_tokens else f" of {held}"
    return Case(f"{name}: {num_tokens}{holds} tokens in blocks of 4, {num_blocks} blocks", run)


def both_grow(num_tokens: int) -> Case:
    """After the fork both sequences write more tokens, in turns; then the source is preempted."""

    def run(table_class: Any) -> list[Any]:
        pool = BlockPool(16, 4)
        source = new_table(table_class, pool)
        source.grow(num_tokens)
        child, copy = source.fork(num_tokens)
        seen = [copy, memory_state(pool, source, child)]
        for length in (num_tokens + 2, num_tokens + 7):
            for table in (child, source):
                table.grow(length)
                seen.append(memory_state(pool, source, child))
        source.release()
        return [*seen, memory_state(pool, source, child)]

    return Case(f"{num_tokens} tokens, then both tables grow", run, "aliasing")


def forks_of_forks(table_class: Any) -> list[Any]:
    """Two forks of one prompt and a fork of the second one, each at another length."""
    pool = BlockPool(20, 4)
    source = new_table(table_class, pool)
    source.grow(10)
    first, copy = source.fork(10)
    second, other = source.fork(10)
    second.grow(15)
    third, last = second.fork(14)
    tables = source, first, second, third
    seen = [copy, other, last, memory_state(pool, *tables)]
    for table in tables:
        table.release()
        seen.append(memory_state(pool, *tables))
    return seen


def in_turns(table_class: Any) -> list[Any]:
    """Two sources over one pool: fork one, then the other, then the first again."""
    pool = BlockPool(20, 4)
    sources, seen = [new_table(table_class, pool) for _ in range(2)], list[Any]()
    for i in (0, 1, 0):
        sources[i].grow(6)
        child, copy = sources[i].fork(6)
        seen.append([copy, memory_state(pool, *sources, child)])
    return seen


def reused(table_class: Any) -> list[Any]:
    """Sequences one after the other get the blocks of the one before."""
    pool, seen = BlockPool(8, 4), list[Any]()
    for held, num_tokens in ((6, 6), (9, 7), (6, 6), (12, 3)):
        source = new_table(table_class, pool)
        source.grow(held)
        child, copy = source.fork(num_tokens)
        seen.append([copy, memory_state(pool, source, child)])
        child.release()
        source.release()
    return seen


def blocks_taken(table_class: Any) -> list[Words]:
    """The blocks taken from the pool for a fork of a long prompt."""
    seen = []
    for num_tokens in (402, 400):
        pool = CountingPool(400, 4)
        source = new_table(table_class, pool)
        source.block_ids = pool.allocate(blocks_for(num_tokens, 4))
        before = pool.num_allocated
        source.fork(num_tokens)
        taken, needed = pool.num_allocated - before, 1 if num_tokens % 4 else 0
        seen.append(Words(f"{num_tokens} tokens: {taken} blocks taken, {needed} needed"))
    return seen


def more_forks(random: Random) -> Iterator[Case]:
    """Random lengths of the table and of the fork."""
    for _ in range(4):
        held = random.randrange(1, 40)
        yield fork_case("random lengths", 24, random.randrange(0, held + 1), held)
    yield both_grow(random.randrange(1, 20))


FORK_CASES = (
    fork_case("a last block partly full", 6, 6),
    fork_case("all blocks full", 6, 8),
    fork_case("no block left for the copy", 2, 6),
    fork_case("the table holds more, the block to copy is not the last", 8, 6, held=14),
    fork_case("the table holds more, the fork ends with a full block", 8, 8, held=14),
    fork_case("less than one block", 4, 3),
    fork_case("no token", 4, 0, held=5),
    both_grow(6),
    both_grow(8),
    Case("two forks, and a fork of a fork", forks_of_forks, "aliasing"),
    Case("two sources in turns", in_turns, "aliasing"),
    Case("four sequences, one after the other, in the same blocks", reused, "aliasing"),
    Case("forks of 402 and 400 tokens", blocks_taken, "cost"),
)
