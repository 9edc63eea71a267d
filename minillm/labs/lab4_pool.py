"""Lab 4: the block pool. Who owns which block, and how many the samples of a prompt need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minillm.labs.lab import Case, Lab, Mistake, Part, Task
from minillm.labs.owners import (
    ALLOCATE_CASES,
    ALLOCATE_MISTAKES,
    CHECK_CASES,
    CHECK_MISTAKES,
    FREE_CASES,
    FREE_MISTAKES,
    SHARE_CASES,
    SHARE_MISTAKES,
)
from minillm.labs.serving import Ask, serve
from minillm.memory.block_table import blocks_for

POOL = "minillm.memory.block_pool"

# --- 4.5 samples of one prompt ------------------------------------------------------------------------

GROUP_CASES = tuple(
    Case(
        f"{n} x {total} tokens, {prompt} of them the prompt, blocks of {size}",
        partial(lambda arguments, blocks: blocks(*arguments), (prompt, total, n, size)),
    )
    for prompt, total, n, size in (
        (8, 16, 1, 4),
        (8, 16, 3, 4),
        (10, 17, 3, 4),
        (3, 4, 5, 4),
        (33, 100, 4, 16),
    )
)


def blocks_if_shared(shared: Callable[[int, int, int], int]) -> Callable[..., int]:
    """`group_blocks` with another idea of what is shared, from (prompt, total, block size)."""

    def blocks(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
        common = shared(prompt_len, total_len, block_size)
        return common + n * (blocks_for(total_len, block_size) - common)

    return blocks


GROUP_MISTAKES = (
    Mistake("the samples share the full blocks of their prompt", blocks_if_shared(lambda *_: 0)),
    Mistake(
        "the prompt's partly full block is counted as shared: every sample writes to its own",
        blocks_if_shared(lambda prompt, total, size: blocks_for(prompt, size)),
    ),
    Mistake(
        "the shared blocks are counted once more for every sample",
        lambda prompt, total, n, size: prompt // size + n * blocks_for(total, size),
    ),
    Mistake(
        "the answers are counted as shared too: they part with the first token",
        blocks_if_shared(lambda prompt, total, size: blocks_for(total, size)),
    ),
)

# --- 4.6 the engine -----------------------------------------------------------------------------------


def serving_case(name: str, num_blocks: int, asks: Sequence[Ask], **config: Any) -> Case:
    """Serve `asks` with the file's pool: every step, the answers, and who owns the blocks at the end."""

    def run(parts: Any) -> list[Any]:
        pools = list[Any]()

        def make_pool(*size: int) -> Any:
            pools.append(parts.BlockPool(*size))
            return pools[0]

        served = serve({"block_pool": make_pool}, asks, num_blocks, **config)
        return [*served, [pools[0].ref_count(block) for block in range(num_blocks)], pools[0].num_free]

    return Case(name, run)


RAGGED = (Ask(10, 9), Ask(3, 20), Ask(17, 6, n=3), Ask(13, 5, at=3, n=2), Ask(17, 12, at=4, story=2))

LAB = Lab(
    4,
    "pool",
    "The block pool",
    (
        Task(
            "4.1",
            "all or nothing",
            20,
            Part(POOL, "BlockPool", ("allocate",)),
            ALLOCATE_CASES,
            ALLOCATE_MISTAKES,
        ),
        Task("4.2", "one more owner", 10, Part(POOL, "BlockPool", ("share",)), SHARE_CASES, SHARE_MISTAKES),
        Task(
            "4.3", "the last owner frees", 25, Part(POOL, "BlockPool", ("free",)), FREE_CASES, FREE_MISTAKES
        ),
        Task(
            "4.4",
            "refuse before anything changes",
            15,
            Part(POOL, "BlockPool", ("_require_owners",)),
            CHECK_CASES,
            CHECK_MISTAKES,
        ),
        Task(
            "4.5",
            "what n samples of a prompt need",
            15,
            Part("minillm.engine.request", "group_blocks"),
            GROUP_CASES,
            GROUP_MISTAKES,
        ),
        Task(
            "4.6",
            "your pool in the running engine",
            15,
            None,
            (
                serving_case("eight completions of five prompts", 60, RAGGED),
                serving_case("in a pool so small that blocks are evicted and requests preempted", 12, RAGGED),
                serving_case("without a prefix cache", 13, RAGGED, prefix_caching=False),
            ),
        ),
    ),
)
