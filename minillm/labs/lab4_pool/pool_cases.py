"""How a case of tasks 4.1 to 4.4 is made: a pool's methods called one after the other, or many times."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Case

SMALL, LARGE = 1 << 7, 1 << 17  # blocks
Call = tuple[str, Any]  # a method and its argument


def calls_case(name: str, num_blocks: int, *calls: Call) -> Case:
    """Call a new pool's methods; after each call: the result, each block's owners, and the free blocks."""

    def run(pool_class: Any) -> list[Any]:
        pool, seen = pool_class(num_blocks, 4), list[Any]()
        for method, argument in calls:
            came = outcome(partial(getattr(pool, method), argument))
            seen.append([came, [pool.ref_count(block) for block in range(num_blocks)], pool.num_free])
        return seen

    shown = ", ".join(f"{method}({argument})" for method, argument in calls)
    return Case(f"{name}: {num_blocks} blocks, {shown}", run)


def outcome(action: Callable[[], Any]) -> Any:
    """The result of `action`, or the name of the exception that it raises."""
    try:
        return action()
    except (OutOfBlocks, ValueError, IndexError) as error:
        return type(error).__name__


def speed_case(name: str, use: Callable[[Any], None]) -> Case:
    """Whether `use` is about as fast in a large pool as in a small one (a scan is 1,000 times slower)."""

    def seconds(pool: Any) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(20):
                use(pool)
            times.append(time.perf_counter() - started)
        return min(times)

    def run(pool_class: Any) -> bool:
        return seconds(pool_class(LARGE, 4)) < 20 * seconds(pool_class(SMALL, 4))

    return Case(f"{name} as quickly in a pool of {LARGE} blocks as in one of {SMALL}", run)
