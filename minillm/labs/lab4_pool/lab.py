"""Lab 4: the block pool: the owners of each block, and the blocks that the samples of a prompt need."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from minillm.labs.grader.lab import Case, Lab, Part, Task, Words
from minillm.labs.grader.serving import Ask, serve
from minillm.labs.lab4_pool.allocate_cases import ALLOCATE_CASES, ALLOCATE_MISTAKES
from minillm.labs.lab4_pool.check_cases import CHECK_CASES, CHECK_MISTAKES
from minillm.labs.lab4_pool.free_cases import FREE_CASES, FREE_MISTAKES
from minillm.labs.lab4_pool.pool_cases import MUCH, more_calls
from minillm.labs.lab4_pool.sample_cases import GROUP_CASES, GROUP_MISTAKES, more_groups
from minillm.labs.lab4_pool.share_cases import SHARE_CASES, SHARE_MISTAKES

POOL = "minillm.memory.block_pool"


def serving_case(name: str, num_blocks: int, asks: Sequence[Ask], **config: Any) -> Case:
    """Serve `asks` with the file's pool: every step, the answers, and the owners of each block at the end."""

    def run(parts: Any) -> list[Any]:
        pools = list[Any]()

        def make_pool(*size: int) -> Any:
            pools.append(parts.BlockPool(*size))
            return pools[0]

        served = serve({"block_pool": make_pool}, asks, num_blocks, **config)
        return [*served, [pools[0].ref_count(block) for block in range(num_blocks)], pools[0].num_free]

    return Case(name, run)


def pool_seconds(parts: Any, num_blocks: int) -> float:
    """The time in the pool's methods while an engine without a model serves RAGGED."""
    spent = [0.0]

    def timed(method: Any) -> Any:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent[0] += time.perf_counter() - started

        return run

    methods = {name: timed(getattr(parts.BlockPool, name)) for name in ("allocate", "share", "free")}
    timed_pool = type("BlockPool", (parts.BlockPool,), methods)
    serve({"block_pool": timed_pool}, RAGGED, num_blocks, dry=True)
    return spent[0]


def speed(parts: Any) -> Words:
    """Whether the pool is about as fast in a large engine as in a small one."""
    large, small = (min(pool_seconds(parts, size) for _ in range(3)) for size in (1 << 15, 60))
    return Words("as fast in a large pool" if large < MUCH * small else "much slower in a large pool")


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
            more_calls,
        ),
        Task(
            "4.2",
            "one more owner",
            10,
            Part(POOL, "BlockPool", ("share",)),
            SHARE_CASES,
            SHARE_MISTAKES,
            more_calls,
        ),
        Task(
            "4.3",
            "the last owner frees",
            25,
            Part(POOL, "BlockPool", ("free",)),
            FREE_CASES,
            FREE_MISTAKES,
            more_calls,
        ),
        Task(
            "4.4",
            "check before anything changes",
            15,
            Part(POOL, "BlockPool", ("_require_owners",)),
            CHECK_CASES,
            CHECK_MISTAKES,
            more_calls,
        ),
        Task(
            "4.5",
            "what n samples of a prompt need",
            15,
            Part("minillm.engine.request", "group_blocks", engine_calls=True),
            GROUP_CASES,
            GROUP_MISTAKES,
            more_groups,
        ),
        Task(
            "4.6",
            "your pool in the running engine",
            15,
            None,
            (
                serving_case("eight completions of five prompts", 60, RAGGED),
                serving_case("a small pool, with evictions and preemptions", 12, RAGGED),
                serving_case("without a prefix cache", 13, RAGGED, prefix_caching=False),
                Case("the time in a pool of 32,768 blocks and in one of 60", speed, "cost"),
            ),
        ),
    ),
)
