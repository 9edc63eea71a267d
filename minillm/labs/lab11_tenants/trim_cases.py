"""Task 11.4, what a share may keep: cases and known mistakes of `trim`."""

from __future__ import annotations

from typing import Any

from minillm.labs.grader.lab import Case, Mistake
from minillm.labs.lab11_tenants.share_stage import (
    Holding,
    Stage,
    looks_at_all,
    stage_case,
    too_much,
    turns_case,
    wasteful,
    work_case,
)
from minillm.memory.shares import Share, Shares

TRIM_LINES = 1_200  # for 300 shares, of which one loses 6 blocks
OTHERS = Holding(0, live=3, unused=4, keeps=True)


def trims(title: str, count: int, *holdings: Holding) -> Case:
    """Trim the first share, if `count` more of its blocks become live."""

    def act(stage: Stage) -> int:
        return stage.shares.trim(stage.members[0], count)

    return stage_case(title, 50, act, *holdings)


def without_count(stage: Stage) -> list[int]:
    """Every share, after sequences have ended; then again."""
    return [stage.shares.trim(share) for share in [*stage.members, *stage.members]]


def with_count(stage: Stage) -> list[int]:
    """Every share before it allocates 2 blocks, and 2 more."""
    return [stage.shares.trim(share, count) for count in (2, 4) for share in stage.members]


class Trims(Shares):
    """The engine's `trim`; subclasses replace one part of it."""

    def _keeps(self, share: Share, count: int) -> int:
        return max(0, share.guarantee_left - count)

    def _is_asked(self, share: Share) -> bool:
        return not share.keeps_outside

    def _evict(self, share: Share, count: int) -> int:
        return share.cache.evict(count) if share.cache and count > 0 else 0

    def trim(self, share: Share, count: int = 0) -> int:
        if not self._is_asked(share):
            return 0
        return self._evict(share, share.num_unused - self._keeps(share, count))


class Never(Trims):
    """Keeps everything."""

    def _keeps(self, share: Share, count: int) -> int:
        return share.num_unused


class Everything(Trims):
    """Keeps nothing."""

    def _keeps(self, share: Share, count: int) -> int:
        return 0


class WholeGuarantee(Trims):
    """Keeps as many as are guaranteed, beside the live ones."""

    def _keeps(self, share: Share, count: int) -> int:
        return max(0, share.guaranteed - count)


class WithoutCount(Trims):
    """Ignores the blocks that become live."""

    def _keeps(self, share: Share, count: int) -> int:
        return share.guarantee_left


class ForAll(Trims):
    """Trims the shares that may keep blocks outside."""

    def _is_asked(self, share: Share) -> bool:
        return True


class OnlyNamed(Trims):
    """Takes a guarantee for the sign that a share is trimmed."""

    def _is_asked(self, share: Share) -> bool:
        return share.guaranteed > 0


class WithBorrowed(Trims):
    """Keeps what fits its room, with common blocks."""

    def _keeps(self, share: Share, count: int) -> int:
        return max(0, share.available - count)


class WhileFree(Trims):
    """Keeps everything as long as the pool has free blocks."""

    def _keeps(self, share: Share, count: int) -> int:
        return share.num_unused if self.pool.num_free > count else super()._keeps(share, count)


class TheCount(Trims):
    """Evicts as many blocks as become live."""

    def _keeps(self, share: Share, count: int) -> int:
        return share.num_unused - count


class NegativeCount(Trims):
    """Asks the cache to evict a negative number."""

    def _evict(self, share: Share, count: int) -> int:
        return share.cache.evict(count) if share.cache else 0


class NegativeRoom(Trims):
    """More become live than the guarantee has left, and more than all go."""

    def _keeps(self, share: Share, count: int) -> int:
        return share.guaranteed - share.num_live - count

    def _evict(self, share: Share, count: int) -> int:
        super()._evict(share, count)
        return max(0, count)


class TellsNothing(Trims):
    """The number is not returned."""

    def _evict(self, share: Share, count: int) -> int:
        super()._evict(share, count)
        return 0


class OneTooFew(Trims):
    """One block stays too many."""

    def _keeps(self, share: Share, count: int) -> int:
        return super()._keeps(share, count) + 1


class OneAtMost(Trims):
    """One block goes at most."""

    def _evict(self, share: Share, count: int) -> int:
        return super()._evict(share, min(count, 1))


class NoCache(Trims):
    """Takes a cache for granted."""

    def _evict(self, share: Share, count: int) -> int:
        cache: Any = share.cache
        return int(cache.evict(max(0, count)))


class TrimsAll(Trims):
    """Trims every share of the pool."""

    def trim(self, share: Share, count: int = 0) -> int:
        return sum(super(TrimsAll, self).trim(each, count if each is share else 0) for each in self.members)


MANY = [Holding(3, live=1, unused=8 if i == 7 else 1, keeps=i == 299) for i in range(300)]
TRIM_CASES = (
    trims("inside the guarantee", 0, Holding(8, 3, 4), OTHERS),
    trims("exactly the guarantee", 0, Holding(8, 3, 5), OTHERS),
    trims("beyond it", 0, Holding(8, 3, 9), OTHERS),
    trims("live blocks fill it", 0, Holding(8, 8, 3), OTHERS),
    trims("live blocks are beyond it", 0, Holding(8, 11, 3), OTHERS),
    trims("two more become live", 2, Holding(8, 3, 5), OTHERS),
    trims("two more become live, and there is room", 2, Holding(8, 3, 2), OTHERS),
    trims("more become live than the guarantee has left", 9, Holding(8, 3, 5), OTHERS),
    trims("blocks that this step has planned", 0, Holding(8, 2, 5, planned=4), OTHERS),
    trims("others have borrowed and planned", 0, Holding(8, 3, 12), Holding(0, 30, planned=8, keeps=True)),
    trims("the pool is full", 0, Holding(8, 3, 12), Holding(0, 35, keeps=True)),
    trims("nothing is cached", 3, Holding(8, 7), OTHERS),
    trims("a share that keeps blocks outside", 0, OTHERS, Holding(8, 3, 5)),
    trims("it keeps blocks outside and has a guarantee", 3, Holding(4, 3, 9, keeps=True), Holding(8, 3, 7)),
    trims("a share without a guarantee", 1, Holding(0, 3, 5), Holding(8, 3, 9)),
    trims("prefix caching is off", 4, Holding(8, 7, has_cache=False), OTHERS),
    stage_case("every share, twice", 60, without_count, Holding(8, 3, 9), Holding(5, 6, 2), OTHERS),
    turns_case(with_count, Holding(8, 3, 5), Holding(5, 6, 2), OTHERS),
    work_case(
        TRIM_LINES, "the work for one of 300 shares", lambda stage: stage.shares.trim(stage.members[7]), MANY
    ),
)
TRIM_MISTAKES = (
    Mistake(
        "nothing is evicted: what a tenant finds in its cache then depends on how empty the pool is", Never
    ),
    Mistake("everything is evicted: inside its guarantee a share keeps its cached blocks", Everything),
    Mistake(
        "live blocks take no room: cached blocks get only what these leave of the guarantee", WholeGuarantee
    ),
    Mistake(
        "`count` is ignored: the blocks that become live need room inside the guarantee too", WithoutCount
    ),
    Mistake("a share that keeps blocks outside is trimmed: it keeps all until others need them", ForAll),
    Mistake("a guarantee decides whether a share is trimmed: `keeps_outside` does", OnlyNamed),
    Mistake(
        "cached blocks stay in common room: the tenant's hits then depend on what others have borrowed",
        WithBorrowed,
    ),
    Mistake("cached blocks stay while the pool has free ones: the hits then depend on others", WhileFree),
    Mistake("as many blocks go as become live: only those go that have no place in the guarantee", TheCount),
    Mistake("a negative number is evicted: if there is room for more, that is 0", NegativeCount),
    Mistake(
        "the returned number is larger than the number of evicted blocks: return what `evict` returns",
        NegativeRoom,
    ),
    Mistake("the number of evicted blocks is not returned", TellsNothing),
    Mistake("one block too many stays", OneTooFew),
    Mistake("at most one block goes: all that have no place in the guarantee go", OneAtMost),
    Mistake("`share.cache` is None if prefix caching is off", NoCache),
    Mistake("other shares are trimmed too: each one is trimmed for its own sake", TrimsAll),
    too_much(
        TRIM_LINES,
        "one of 300 shares",
        "the other shares need not be looked at",
        wasteful("trim", looks_at_all),
    ),
)
