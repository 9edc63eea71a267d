"""Task 11.5, whose cached blocks go: cases and known mistakes of `reclaim`."""

from __future__ import annotations

from minillm.errors import OutOfBlocks
from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.lab11_tenants.share_stage import (
    Holding,
    Stage,
    compares_all,
    stage_case,
    too_much,
    turns_case,
    wasteful,
    work_case,
)
from minillm.memory.shares import Share, Shares

RECLAIM_LINES = 25_000  # for 300 shares that lose one block each


def reclaims(title: str, num_blocks: int, count: int, *holdings: Holding) -> Case:
    """Have `count` free blocks."""
    return stage_case(title, num_blocks, lambda stage: stage.shares.reclaim(count), *holdings)


def several(stage: Stage) -> list[int]:
    """More and more blocks are needed, then as many as before, then none."""
    return [stage.shares.reclaim(count) for count in (3, 6, 6, 11, 0)]


def guarantee_case(title: str, *holdings: Holding) -> Case:
    """The last share takes all of its room; what the first one finds in its cache stays."""

    def act(stage: Stage) -> list[Words]:
        share = stage.members[-1]
        count = share.available
        share.make_room(count)
        return [Words(f"{count} blocks of room, {len(share.allocate(count))} allocated")]

    return stage_case(title, 40, act, *holdings)


class Reclaims(Shares):
    """The engine's `reclaim`; subclasses replace one part of it."""

    def _may_lose(self, share: Share) -> bool:
        return share.keeps_outside

    def _order(self) -> list[Share]:
        return sorted(self.members, key=lambda share: -share.num_unused)

    def _missing(self, count: int, evicted: int) -> int:
        return max(0, count - self.pool.num_free)

    def reclaim(self, count: int) -> int:
        evicted = 0
        for share in self._order():
            if share.cache and self._may_lose(share):
                evicted += share.cache.evict(self._missing(count, evicted))
        return evicted


class FromAnyone(Reclaims):
    """The share with the most unused blocks loses, with or without a guarantee."""

    def _may_lose(self, share: Share) -> bool:
        return True


class FromAnyoneLast(Reclaims):
    """Shares with a guarantee lose too, after the others."""

    def _order(self) -> list[Share]:
        return sorted(self.members, key=lambda share: (not share.keeps_outside, -share.num_unused))

    def _may_lose(self, share: Share) -> bool:
        return True


class WithoutGuarantee(Reclaims):
    """Takes a guarantee for the sign that a share loses nothing."""

    def _may_lose(self, share: Share) -> bool:
        return share.guaranteed == 0


class InOrder(Reclaims):
    """The share that was made first loses first."""

    def _order(self) -> list[Share]:
        return list(self.members)


class NewestFirst(Reclaims):
    """The share that was made last loses first."""

    def _order(self) -> list[Share]:
        return self.members[::-1]


class FewestFirst(Reclaims):
    """The share with the fewest unused blocks loses first."""

    def _order(self) -> list[Share]:
        return sorted(self.members, key=lambda share: share.num_unused)


class MostLive(Reclaims):
    """The share with the most live blocks loses first."""

    def _order(self) -> list[Share]:
        return sorted(self.members, key=lambda share: -share.num_live)


class LastOfEqual(Reclaims):
    """Of shares with equally many unused blocks the newest loses first."""

    def _order(self) -> list[Share]:
        return sorted(self.members, key=lambda share: share.num_unused)[::-1]


class IgnoresFree(Reclaims):
    """Evicts as many blocks as are needed, whatever is free."""

    def _missing(self, count: int, evicted: int) -> int:
        return count - evicted


class AllOfIt(Reclaims):
    """The share loses all unused blocks."""

    def _missing(self, count: int, evicted: int) -> int:
        return self.num_unused if count > self.pool.num_free else 0


class OneShare(Reclaims):
    """Only one share loses blocks."""

    def _order(self) -> list[Share]:
        return [max((s for s in self.members if s.keeps_outside), key=lambda s: s.num_unused)]


class EachTheSame(Reclaims):
    """What was missing at the start is taken from each share."""

    def reclaim(self, count: int) -> int:
        missing = self._missing(count, 0)
        losers = [share for share in self._order() if self._may_lose(share)]
        return sum(share.cache.evict(missing) for share in losers if share.cache)


class InTurns(Reclaims):
    """Takes block after block from the share that has the most then."""

    def reclaim(self, count: int) -> int:
        evicted = 0
        while self.pool.num_free < count:
            losers = [share for share in self.members if share.keeps_outside and share.num_unused]
            if not losers:
                break
            loser = max(losers, key=lambda share: share.num_unused)
            evicted += loser.cache.evict(1) if loser.cache else 0
        return evicted


class CountsFree(Reclaims):
    """Returns the free blocks."""

    def reclaim(self, count: int) -> int:
        super().reclaim(count)
        return self.pool.num_free


class AllOrNothing(Reclaims):
    """Evicts nothing if there is not enough."""

    def reclaim(self, count: int) -> int:
        loose = sum(share.num_unused for share in self.members if share.keeps_outside)
        return super().reclaim(count) if count <= self.pool.num_free + loose else 0


class Raises(Reclaims):
    """Raises an error if there is not enough."""

    def reclaim(self, count: int) -> int:
        evicted = super().reclaim(count)
        if self.pool.num_free < count:
            raise OutOfBlocks("too few")
        return evicted


class Nothing(Reclaims):
    """Evicts nothing."""

    def reclaim(self, count: int) -> int:
        return 0


B, FLOOD = Holding(10, live=2, unused=8), Holding(0, live=6, unused=7, keeps=True)
LOSERS = (
    Holding(0, unused=4),
    B,
    Holding(0, unused=6),
    Holding(0, live=1, unused=2, keeps=True),
    Holding(0, live=3, unused=6),
)
MANY = [Holding(0, live=1, unused=1) for _ in range(300)]
RECLAIM_CASES = (
    reclaims("enough is free", 40, 4, B, FLOOD),
    reclaims("some are missing", 25, 5, B, FLOOD),
    reclaims("the guaranteed share has more unused blocks", 23, 6, B, Holding(0, 9, 4, keeps=True)),
    reclaims("more is missing than may go", 23, 12, B, Holding(0, 9, 4, keeps=True)),
    reclaims("nothing may go", 20, 3, B, Holding(10, 3, 7)),
    reclaims(
        "a share that keeps blocks outside and has a guarantee", 30, 5, B, Holding(4, 11, 9, keeps=True)
    ),
    reclaims("four shares may lose, the largest loses all", 36, 8, *LOSERS),
    reclaims("the next one loses the rest", 36, 14, *LOSERS),
    reclaims("all lose all", 36, 30, *LOSERS),
    reclaims(
        "a smaller share with more live blocks", 30, 9, B, Holding(0, 9, 3), Holding(0, 1, 4, keeps=True)
    ),
    reclaims("prefix caching is off", 20, 9, Holding(8, 7, has_cache=False), Holding(0, 9, has_cache=False)),
    reclaims("no block is needed", 23, 0, B, FLOOD),
    guarantee_case("a flood takes all of its room", B, FLOOD),
    guarantee_case(
        "a flood takes all of its room, and b is busy", Holding(10, 9, 1), Holding(0, 6, 9), FLOOD
    ),
    turns_case(several, Holding(30, live=2, unused=25), Holding(0, 5, 9), Holding(0, 2, 6, keeps=True)),
    work_case(RECLAIM_LINES, "the work with 300 shares", lambda stage: stage.shares.reclaim(290), MANY),
)
RECLAIM_MISTAKES = (
    Mistake(
        "cached blocks of a guaranteed share go while the flood's stand: eviction looks at the whole pool, "
        "not at `keeps_outside`",
        FromAnyone,
    ),
    Mistake(
        "if the others have no more, cached blocks of a guaranteed share go: nobody's guarantee shrinks for "
        "another's sake",
        FromAnyoneLast,
    ),
    Mistake("a guarantee decides who loses: `keeps_outside` does", WithoutGuarantee),
    Mistake("the share that was made first loses first: the one with the most unused blocks does", InOrder),
    Mistake(
        "the share that was made last loses first: the one with the most unused blocks does", NewestFirst
    ),
    Mistake("the share with the fewest unused blocks loses first: the one with the most does", FewestFirst),
    Mistake("the share with the most live blocks loses first: unused ones count", MostLive),
    Mistake(
        "of shares with equally many unused blocks the newest loses first: the one made first does",
        LastOfEqual,
    ),
    Mistake("free blocks are not counted: only what is missing goes", IgnoresFree),
    Mistake("more goes than is missing: a cached block may still be found", AllOfIt),
    Mistake("only one share loses: if it has too few, the next one loses the rest", OneShare),
    Mistake("each share loses what was missing at the start: count the free blocks again", EachTheSame),
    Mistake("the shares lose in turns: the one with the most loses all that is missing", InTurns),
    Mistake("the number of free blocks is returned: return that of the evicted ones", CountsFree),
    Mistake("nothing goes if there is not enough: free what may go, the allocation decides", AllOrNothing),
    Mistake("an error is raised if there is not enough: the allocation does that", Raises),
    Mistake("nothing is evicted", Nothing),
    too_much(
        RECLAIM_LINES,
        "300 shares",
        "sorting them once is enough, none is compared with all others",
        wasteful("reclaim", compares_all),
    ),
)
