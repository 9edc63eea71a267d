"""How a case of tasks 4.1 to 4.4 is made: a pool's methods called one after the other, or many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Case, Words

SMALL, LARGE = 1 << 7, 1 << 19  # blocks
FEW, MANY = 8, 1 << 12  # blocks in one call
REPEATS = 10
MUCH = 20  # so many times slower is another order of cost; a scan or a moved list is 100 times slower
Call = tuple[str, Any]  # a method and its argument


def calls_case(name: str, num_blocks: int, *calls: Call) -> Case:
    """Call a new pool's methods; after each call: the result, each block's owners, and the free blocks."""
    shown = ", ".join(f"{method}({argument})" for method, argument in calls)
    return Case(f"{name}: {num_blocks} blocks, {shown}", partial(after_calls, num_blocks, calls))


def after_calls(num_blocks: int, calls: Iterable[Call], pool_class: Any) -> list[Any]:
    """What `calls_case` compares. At the end all free blocks are allocated, which shows their order."""
    pool, seen = pool_class(num_blocks, 4), list[Any]()
    for method, argument in calls:
        given = list(argument) if isinstance(argument, list) else argument  # the pool may change it
        came = outcome(partial(getattr(pool, method), given))
        seen.append([came, *state(pool)])
    return [seen, rest(pool)]


def rest(pool: Any) -> Any:
    """Allocate all blocks that are free."""
    return outcome(partial(pool.allocate, pool.num_free))


def state(pool: Any) -> list[Any]:
    """The owners of each block, and the number of free blocks."""
    return [[pool.ref_count(block) for block in range(pool.num_blocks)], pool.num_free]


def outcome(action: Callable[[], Any]) -> Any:
    """The result of `action`, or the kind of the exception that it raises."""
    try:
        return action()
    except OutOfBlocks:
        return "OutOfBlocks"
    except IndexError:
        return "IndexError"
    except ValueError:
        return "ValueError"


def two_pools(pool_class: Any) -> list[Any]:
    """Two pools in turns, and a third one after them: each has its own blocks."""
    one, other, seen = pool_class(4, 4), pool_class(3, 4), list[Any]()
    seen += [one.allocate(2), other.allocate(3), outcome(partial(other.allocate, 1))]
    one.share([0, 1])
    other.free([0, 2])
    one.free([1, 0])
    seen += [outcome(partial(one.share, [2])), other.allocate(1), one.allocate(2)]
    for _ in range(3):  # pools that end with blocks in use; the next may lie where they were
        seen.append(pool_class(4, 4).allocate(2))
    third = pool_class(4, 4)
    return [seen, state(one), state(other), state(third), third.allocate(3)]


def kept_lists(pool_class: Any) -> list[Any]:
    """The caller changes a list that it got from the pool, and reads lists that it gave to the pool."""
    pool = pool_class(6, 4)
    first, second = pool.allocate(2), pool.allocate(2)
    got, none = [list(first), list(second)], pool.allocate(0)
    first += [5, 5]
    none += [5]
    second.clear()
    shared, freed = [0, 3], [3, 0, 1]
    pool.share(shared)
    pool.free(freed)
    return [got, shared, freed, state(pool), pool.allocate(0), pool.allocate(3)]


def iterators(pool_class: Any) -> list[Any]:
    """Arguments that can be read only once, and tuples."""
    pool = pool_class(5, 4)
    pool.allocate(4)
    pool.share(iter([0, 2]))
    pool.share(block for block in (2, 3))
    pool.free((3, 0))
    pool.free(reversed([0, 2, 1]))
    return [*state(pool), rest(pool)]


IN_TURNS = (
    Case("two pools in turns, then a third", two_pools, "aliasing"),
    Case("lists that the caller keeps", kept_lists, "aliasing"),
    Case("iterators and tuples as arguments", iterators, "aliasing"),
)


def more_calls(random: Random) -> Iterable[Case]:
    """Random calls, right and wrong ones; blocks may be listed twice."""
    for _ in range(5):
        size = random.randint(3, 9)
        yield calls_case("random calls", size, *(random_call(random, size) for _ in range(25)))


def random_call(random: Random, size: int) -> Call:
    """A call that often succeeds. A block that does not exist stands alone: two faults have no order."""
    method = random.choice(["allocate", "share", "free", "free"])
    if method == "allocate":
        return method, random.randint(0, size // 2 + 1)
    if random.random() < 0.1:
        return method, [random.choice([-1, size, size + 3])]
    return method, [random.randrange(size) for _ in range(random.randint(1, 3))]


# --- cost ---------------------------------------------------------------------------------------------


def speed_case(name: str, use: Callable[[Any], None]) -> Case:
    """Whether `use` is about as fast in a large pool as in a small one."""

    def run(pool_class: Any) -> Words:
        large, small = (pool_class(size, 4) for size in (LARGE, SMALL))
        same = seconds(partial(use, large)) < MUCH * seconds(partial(use, small))
        return Words("as fast in a large pool" if same else "much slower in a large pool")

    return Case(f"{name} in a pool of {LARGE:,} blocks and in one of {SMALL}", run, "cost")


def seconds(action: Callable[[], None], times: int = 8, repeats: int = REPEATS) -> float:
    """The shortest time of an action: other processes can only make it longer.

    Not CPU time, which some systems count in steps longer than this.
    """
    best = []
    for _ in range(times):
        started = time.perf_counter()
        for _ in range(repeats):
            action()
        best.append(time.perf_counter() - started)
    return min(best)


def long_case(name: str, use: Callable[[Any, list[int]], None]) -> Case:
    """Whether a block costs about the same in a call with many blocks as in a call with few."""

    def run(pool_class: Any) -> Words:
        many, few = (pool_class(count, 4) for count in (MANY, FEW))
        many_ids, few_ids = list(range(MANY)), list(range(FEW))
        long = seconds(partial(use, many, many_ids), times=3, repeats=1) / MANY
        short = seconds(partial(use, few, few_ids)) / (REPEATS * FEW)
        return Words("a block costs the same" if long < MUCH * short else "a block of a long call costs more")

    return Case(f"{name} {MANY:,} blocks in one call, and {FEW}", run, "cost")
