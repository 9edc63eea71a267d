"""Task 4.4, the check before anything changes: cases and known mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab4_pool.pool_cases import IN_TURNS, calls_case, long_case, outcome, speed_case, state
from minillm.labs.lab4_pool.share_cases import share_all, share_first
from minillm.memory.block_pool import BlockPool


def direct_case(pool_class: Any) -> list[Any]:
    """Calls of the check itself; they change neither the pool nor their arguments."""
    pool, seen = pool_class(4, 4), list[Any]()
    pool.allocate(3)
    pool.share([1])
    calls: list[tuple[set[int], dict[int, int]]] = [
        (set(), {}),
        ({0, 1, 2}, {}),
        ({0, 1}, {1: 2}),
        ({0, 1}, {1: 3}),
        ({1}, {0: 5}),
        ({3}, {3: 0}),
        ({3}, {}),
        ({0, 4}, {}),
        ({0, -1}, {0: 1, -1: 1}),
    ]
    for ids, times in calls:
        counts = Counter(times)
        seen.append(
            [outcome(partial(pool._require_owners, ids, counts)), sorted(ids), sorted(counts.items())]
        )
    return [seen, state(pool)]


class ChecksNothing(BlockPool):
    """Accepts every existing block."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            self._checked(block_id)


class ChecksBelowZero(BlockPool):
    """Accepts every block with a count of 0 or more."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        if any(self._ref_count[self._checked(block_id)] < 0 for block_id in ids):
            raise ValueError("free")


class ChecksOnce(BlockPool):
    """One owner is enough for any number of frees."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners(ids, {})


class ChecksTimesOnly(BlockPool):
    """Accepts any block that is not in `times`."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            if self._ref_count[self._checked(block_id)] < times.get(block_id, 0):
                raise ValueError("free")


class ReadsTimes(BlockPool):
    """Takes `times[id]`, which a dict does not have for every id."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            if self._ref_count[self._checked(block_id)] < times[block_id]:
                raise ValueError("free")


class OneMoreOwner(BlockPool):
    """Requires an owner that stays: the last owner cannot free a block."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            if self._ref_count[self._checked(block_id)] <= times.get(block_id, 1):
                raise ValueError("too few owners")


class ChecksPythonsWay(BlockPool):
    """-1 is the last block, like the last item of a list."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            if self._ref_count[block_id] < times.get(block_id, 1):
                raise ValueError("free")


class ChecksTheFirst(BlockPool):
    """Returns after the first block."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in sorted(ids):
            super()._require_owners({block_id}, times)
            return


class ChecksAny(BlockPool):
    """Accepts the blocks if one of them has owners."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        has = [self._ref_count[self._checked(block_id)] >= times.get(block_id, 1) for block_id in ids]
        if ids and not any(has):
            raise ValueError("free")


class RaisesOutOfBlocks(BlockPool):
    """Another exception."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            if self._ref_count[self._checked(block_id)] < times.get(block_id, 1):
                raise OutOfBlocks("free")


class UnknownIsFree(BlockPool):
    """A block that does not exist is a ValueError."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        for block_id in ids:
            if not 0 <= block_id < self.num_blocks:
                raise ValueError("no such block")
        super()._require_owners(ids, times)


class RemovesOwners(BlockPool):
    """Removes the owners itself."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners(ids, times)
        for block_id in ids:
            self._ref_count[block_id] -= times.get(block_id, 0)


class SearchesFreeList(BlockPool):
    """Looks for each block in the free list."""

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        super()._require_owners(ids, times)
        if any(block_id in self._free for block_id in ids):
            raise ValueError("free")


CHECK_CASES = (
    calls_case("freed twice", 3, ("allocate", 2), ("free", [1]), ("free", [1]), ("allocate", 2)),
    calls_case(
        "freed twice in one call", 3, ("allocate", 2), ("free", [1, 1]), ("share", [1]), ("free", [1, 1])
    ),
    calls_case("one used, one free", 3, ("allocate", 1), ("share", [0, 2])),
    calls_case("no such block", 3, ("allocate", 3), ("free", [3]), ("free", [-1]), ("share", [-1])),
    Case("the check itself", direct_case),
    *IN_TURNS,
    speed_case("a block is shared", share_first),
    long_case("share", share_all),
)
CHECK_MISTAKES = (
    Mistake(
        "a block without owners is accepted: it will be in the free list twice, and two requests get it",
        ChecksNothing,
    ),
    Mistake("a count of 0 is accepted: a block needs at least `times[id]` owners", ChecksBelowZero),
    Mistake("a block freed twice in one call needs two owners: look at `times`", ChecksOnce),
    Mistake("a block that is not in `times` needs one owner", ChecksTimesOnly),
    Mistake("`times[id]` fails if the id is not in `times`: one owner is needed then", ReadsTimes),
    Mistake("one owner too many is required: the last owner may free a block", OneMoreOwner),
    Mistake("a negative id counts from the end of a Python list: call `_checked`", ChecksPythonsWay),
    Mistake("only the first block is checked", ChecksTheFirst),
    Mistake("one block with owners is enough: every block needs them", ChecksAny),
    Mistake("OutOfBlocks is raised: it is a ValueError, the caller has made a mistake", RaisesOutOfBlocks),
    Mistake(
        "a block that does not exist is a ValueError: it is an IndexError, see `_checked`", UnknownIsFree
    ),
    Mistake("the check removes owners itself: it changes nothing", RemovesOwners),
    Mistake("the free list is searched or copied: a block is free if its count is 0", SearchesFreeList),
)
