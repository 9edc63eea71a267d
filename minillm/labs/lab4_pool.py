"""Lab 4: the block pool. Who owns which block, how many requests share one, and what fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from minillm.errors import OutOfBlocks
from minillm.labs.lab import Case, Lab, Mistake, Part, Task
from minillm.labs.serving import Ask, serve
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import blocks_for

POOL = "minillm.memory.block_pool"
SMALL, LARGE = 1 << 7, 1 << 17  # blocks

# --- 4.1 to 4.4 the pool ------------------------------------------------------------------------------

Call = tuple[str, Any]  # a method, and what it is given


def calls_case(name: str, num_blocks: int, *calls: Call) -> Case:
    """Call a new pool's methods; after each: what came back, each block's owners, and how many are free."""

    def run(pool_class: Any) -> list[Any]:
        pool, seen = pool_class(num_blocks, 4), list[Any]()
        for method, argument in calls:
            came = outcome(partial(getattr(pool, method), argument))
            seen.append([came, [pool.ref_count(block) for block in range(num_blocks)], pool.num_free])
        return seen

    shown = ", ".join(f"{method}({argument})" for method, argument in calls)
    return Case(f"{name}: {num_blocks} blocks, {shown}", run)


def outcome(action: Callable[[], Any]) -> Any:
    """What `action` returns, or the name of the refusal it raises."""
    try:
        return action()
    except (OutOfBlocks, ValueError, IndexError) as error:
        return type(error).__name__


def speed_case(name: str, use: Callable[[Any], None]) -> Case:
    """Whether `use` is about as quick in a large pool as in a small one (a scan: 1,000 times slower)."""

    def seconds(pool: Any) -> float:
        times = []
        for _ in range(5):
            started = time.process_time()
            for _ in range(20):
                use(pool)
            times.append(time.process_time() - started)
        return min(times)

    def run(pool_class: Any) -> bool:
        return seconds(pool_class(LARGE, 4)) < 20 * seconds(pool_class(SMALL, 4))

    return Case(f"{name} as quickly in a pool of {LARGE} blocks as in one of {SMALL}", run)


class OneByOne(BlockPool):
    """Finds out on the way that there are too few."""

    def allocate(self, count: int = 1) -> list[int]:
        return [super(OneByOne, self).allocate(1)[0] for _ in range(count)]


class GivesWhatItHas(BlockPool):
    """Fewer blocks rather than a refusal."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(min(count, self.num_free))


class KeepsTheLast(BlockPool):
    """Refuses a request for exactly what there is."""

    def allocate(self, count: int = 1) -> list[int]:
        return super().allocate(count + (0 < count == self.num_free))


class ForgetsTheOwner(BlockPool):
    """Handed out, and owned by nobody."""

    def allocate(self, count: int = 1) -> list[int]:
        taken = super().allocate(count)
        for block_id in taken:
            self._ref_count[block_id] = 0
        return taken


class Queue(BlockPool):
    """The block that has been free for longest goes first."""

    def allocate(self, count: int = 1) -> list[int]:
        self._free.reverse()
        try:
            return super().allocate(count)
        finally:
            self._free.reverse()


class SearchesForFree(BlockPool):
    """Looks through all blocks for those without owners."""

    def allocate(self, count: int = 1) -> list[int]:
        if count > self._ref_count.count(0):
            raise OutOfBlocks("too few are free")
        return super().allocate(count)


class SharesOnce(BlockPool):
    """Two owners, however many there were."""

    def share(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        super().share(ids)
        for block_id in ids:
            self._ref_count[block_id] = 2


class SharesDistinct(BlockPool):
    """A block listed twice counts once."""

    def share(self, block_ids: Iterable[int]) -> None:
        super().share(sorted(set(block_ids)))


class SharesAsItGoes(BlockPool):
    """Has counted the first ones when it comes to one it must refuse."""

    def share(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            super().share([block_id])


class SharesAnything(BlockPool):
    """An owner for a block that is free, too."""

    def share(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._ref_count[block_id] += 1


class FreesForAll(BlockPool):
    """The first owner to leave takes the block from the others."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), {})
        for block_id in reversed(ids):
            self._ref_count[block_id] = 0
            self._free.append(block_id)


class FreesNothing(BlockPool):
    """Counts down and leaves the block where it is."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        self._require_owners(set(ids), {})
        for block_id in ids:
            self._ref_count[block_id] -= 1


class FreesForward(BlockPool):
    """The first block of a sequence goes first."""

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(list(block_ids)[::-1])


class FreesAsItGoes(BlockPool):
    """Has given back the last ones when it comes to one it must refuse."""

    def free(self, block_ids: Iterable[int]) -> None:
        for block_id in reversed(list(block_ids)):
            super().free([block_id])


class FreesSorted(BlockPool):
    """Keeps the free blocks in order of their ids."""

    def free(self, block_ids: Iterable[int]) -> None:
        super().free(block_ids)
        self._free.sort(reverse=True)


class SearchesTheFree(BlockPool):
    """Looks through the free blocks for one that is free already."""

    def free(self, block_ids: Iterable[int]) -> None:
        ids = list(block_ids)
        if any(block_id in self._free for block_id in ids):
            raise ValueError("double free")
        super().free(ids)


class ChecksNothing(BlockPool):
    """Lets everything through that is a block at all."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            self._checked(block_id)


class ChecksOnce(BlockPool):
    """One owner is enough for any number of frees."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners(ids, {})


class ChecksTimesOnly(BlockPool):
    """Where no number is given, any block will do."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners(ids & times.keys(), times)


class ChecksPythonsWay(BlockPool):
    """-1 is the last block, as it is the last item of a list."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners({i % self.num_blocks for i in ids}, times)


ALLOCATE_CASES = (
    calls_case("three, then two", 6, ("allocate", 3), ("allocate", 2)),
    calls_case("one, none, the rest", 4, ("allocate", 1), ("allocate", 0), ("allocate", 3)),
    calls_case("more than there are", 4, ("allocate", 3), ("allocate", 2), ("allocate", 1)),
    calls_case("those that came back", 5, ("allocate", 3), ("free", [1]), ("free", [0]), ("allocate", 3)),
    speed_case("a block is taken", lambda pool: pool.allocate(1)),
)
ALLOCATE_MISTAKES = (
    Mistake(
        "a failed allocation keeps what it got: look whether there are enough before any is taken", OneByOne
    ),
    Mistake(
        "fewer blocks than asked for are given: the caller would write past its last one", GivesWhatItHas
    ),
    Mistake("the last free block is refused: exactly as many as are free can be had", KeepsTheLast),
    Mistake("the new blocks have no owner: each begins with a count of one", ForgetsTheOwner),
    Mistake("the block that was freed first is handed out: the free list is a stack, not a queue", Queue),
    Mistake("every block is looked at to find the free ones: the free list knows them", SearchesForFree),
)
SHARE_CASES = (
    calls_case("two of three", 4, ("allocate", 3), ("share", [0, 2])),
    calls_case("a third owner", 3, ("allocate", 2), ("share", [1]), ("share", [1])),
    calls_case("listed twice", 3, ("allocate", 2), ("share", [1, 1])),
    calls_case("one of them is free", 3, ("allocate", 2), ("share", [0, 2, 1])),
)
SHARE_MISTAKES = (
    Mistake("the count is set to two: a third owner is lost, and the block freed under it", SharesOnce),
    Mistake("a block that is listed twice gets one owner only", SharesDistinct),
    Mistake(
        "owners are counted before all blocks have been checked, so a refusal leaves some", SharesAsItGoes
    ),
    Mistake("a free block is given an owner: the pool will hand it to somebody else, too", SharesAnything),
)
FREE_CASES = (
    calls_case("one owner each", 4, ("allocate", 3), ("free", [0, 1, 2]), ("allocate", 4)),
    calls_case("a shared one", 3, ("allocate", 2), ("share", [0]), ("free", [0, 1]), ("free", [0])),
    calls_case("out of order", 4, ("allocate", 4), ("free", [2]), ("free", [0, 3]), ("allocate", 3)),
    calls_case("one of them is free", 3, ("allocate", 2), ("free", [2, 0])),
    speed_case("a block comes back", lambda pool: pool.free(pool.allocate(1))),
)
FREE_MISTAKES = (
    Mistake(
        "a shared block becomes free when its first owner leaves: only the last one frees it", FreesForAll
    ),
    Mistake("a block without owners is not free again: nobody will ever get it", FreesNothing),
    Mistake("first block first: give them back last block first", FreesForward),
    Mistake("owners are removed before all blocks have been checked, so a refusal loses some", FreesAsItGoes),
    Mistake(
        "the free blocks are sorted: put each on top of the stack, which costs the same in any pool",
        FreesSorted,
    ),
    Mistake("the free list is searched: the count alone says whether a block is free", SearchesTheFree),
)
CHECK_CASES = (
    calls_case("freed twice", 3, ("allocate", 2), ("free", [1]), ("free", [1]), ("allocate", 2)),
    calls_case(
        "freed twice in one call", 3, ("allocate", 2), ("free", [1, 1]), ("share", [1]), ("free", [1, 1])
    ),
    calls_case("shared, and free", 3, ("allocate", 1), ("share", [0, 2])),
    calls_case("no such block", 3, ("allocate", 3), ("free", [3]), ("free", [-1]), ("share", [-1])),
)
CHECK_MISTAKES = (
    Mistake(
        "a block without owners passes: it will be in the free list twice, and have two tenants",
        ChecksNothing,
    ),
    Mistake("a block freed twice in one call needs two owners: look at `times`", ChecksOnce),
    Mistake("a block that is not in `times` needs one owner", ChecksTimesOnly),
    Mistake("a negative id counts from the end of a Python list: ask `_checked`", ChecksPythonsWay),
)

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
