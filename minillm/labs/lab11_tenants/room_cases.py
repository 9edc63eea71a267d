"""Task 11.3, the room of a share: cases and known mistakes of `room`."""

from __future__ import annotations

from typing import Any

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

ROOM_LINES = 12_000  # for 300 shares
OTHERS = Holding(0, live=3, unused=4, keeps=True)


def asked_twice(stage: Stage) -> list[Any]:
    """The rooms, before and after sequences of others start and end: the state is asked, not remembered."""
    first = stage.rooms()
    ids = stage.take(stage.members[1], 6)
    second = stage.rooms()
    stage.leave(stage.members[1], "b", ids)
    third = stage.rooms()
    stage.members[0].borrows = False
    return [first, stage.rooms(), second, third]


def lifetime_case(shares_class: Any) -> list[Words]:
    """A share may allocate its room, all of it, and not one block more."""
    told = []
    for which in range(3):
        stage = Stage(shares_class, 40, (Holding(10, 4, 3), Holding(6, 9), OTHERS))
        share = stage.members[which]
        count = share.available
        share.make_room(count)
        told.append(Words(f"share {which} got {len(share.allocate(count))}, then has {share.available}"))
    return told


def rooms(title: str, num_blocks: int, *holdings: Holding) -> Case:
    """The room of each share."""
    return stage_case(title, num_blocks, Stage.rooms, *holdings)


class Rooms(Shares):
    """The engine's `room`; subclasses replace one part of it."""

    def _own(self, share: Share) -> int:
        return share.guarantee_left

    def _beyond(self, member: Share) -> int:
        return max(0, member.num_live - member.guaranteed)

    def _common(self, share: Share) -> int:
        return max(0, self.common - sum(map(self._beyond, self.members)))

    def room(self, share: Share) -> int:
        return self._own(share) + (self._common(share) if share.borrows else 0)


class OnlyOwn(Rooms):
    """Nothing is borrowed."""

    def _common(self, share: Share) -> int:
        return 0


class FreeBlocks(Rooms):
    """What is free in the pool."""

    def room(self, share: Share) -> int:
        return self.pool.num_free


class FreeAndUnused(Rooms):
    """What no sequence uses, in the whole pool."""

    def room(self, share: Share) -> int:
        return self.available


class FreeOfAll(Rooms):
    """What is free in the pool, but never less than the guarantee."""

    def room(self, share: Share) -> int:
        return max(share.guarantee_left, self.available if share.borrows else 0)


class NobodyBorrows(Rooms):
    """The common blocks are always all there."""

    def _common(self, share: Share) -> int:
        return self.common


class OnlyItself(Rooms):
    """Only the share's own borrowed blocks count."""

    def _common(self, share: Share) -> int:
        return max(0, self.common - self._beyond(share))


class OnlyOthers(Rooms):
    """The share's own borrowed blocks do not count."""

    def _common(self, share: Share) -> int:
        return max(0, self.common - sum(self._beyond(m) for m in self.members if m is not share))


class LendsIdle(Rooms):
    """Idle guarantees are lent: a share below its guarantee counts as a negative number."""

    def _beyond(self, member: Share) -> int:
        return member.num_live - member.guaranteed


class AllLive(Rooms):
    """All live blocks count, not only those beyond guarantees."""

    def _beyond(self, member: Share) -> int:
        return member.num_live


class CountsCached(Rooms):
    """Cached blocks take room."""

    def _own(self, share: Share) -> int:
        return max(0, share.guaranteed - share._allocated - share.planned)

    def _beyond(self, member: Share) -> int:
        return max(0, member._allocated + member.planned - member.guaranteed)


class AlwaysBorrows(Rooms):
    """`borrows` is ignored."""

    def room(self, share: Share) -> int:
        return self._own(share) + self._common(share)


class Negative(Rooms):
    """What is beyond the guarantee is subtracted twice."""

    def _own(self, share: Share) -> int:
        return share.guaranteed - share.num_live


class NegativeCommon(Rooms):
    """More is planned than there is, so the common rest is negative."""

    def _common(self, share: Share) -> int:
        return self.common - sum(map(self._beyond, self.members))


class ForgetsThePlan(Rooms):
    """Blocks that this step has planned count as free."""

    def _own(self, share: Share) -> int:
        return max(0, share.guaranteed - share.num_live + share.planned)

    def _beyond(self, member: Share) -> int:
        return max(0, member.num_live - member.planned - member.guaranteed)


class WholeGuarantee(Rooms):
    """The whole guarantee, whatever is in use."""

    def _own(self, share: Share) -> int:
        return share.guaranteed


class Larger(Rooms):
    """The larger of both, not the sum."""

    def room(self, share: Share) -> int:
        return max(self._own(share), self._common(share) if share.borrows else 0)


class Remembers(Rooms):
    """Keeps the first answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._known: dict[Share, int] = {}

    def room(self, share: Share) -> int:
        return self._known.setdefault(share, super().room(share))


MANY = [Holding(i % 3, live=i % 4, unused=1, keeps=i == 299) for i in range(300)]
ROOM_CASES = (
    rooms("nobody has anything", 30, Holding(8), Holding(6), Holding(0, keeps=True)),
    rooms("all inside their guarantees", 30, Holding(8, 5), Holding(6, 6), Holding(4, 1, keeps=True)),
    rooms("b is 2 over its guarantee", 30, Holding(6, 4), Holding(6, 8), Holding(0, 5, keeps=True)),
    rooms("the common blocks are all in use", 24, Holding(8, 2), Holding(6, 9), Holding(0, 7, keeps=True)),
    rooms("with cached blocks", 40, Holding(10, 4, 3), Holding(6, 9), OTHERS),
    rooms("a full pool of cached blocks", 30, Holding(8, 0, 8), Holding(6), Holding(0, 2, 14, keeps=True)),
    rooms("b may not borrow", 30, Holding(6, 4), Holding(6, 3, borrows=False), Holding(0, 5, keeps=True)),
    rooms(
        "b may not borrow and has", 30, Holding(6), Holding(6, 8, borrows=False), Holding(0, 5, keeps=True)
    ),
    rooms(
        "blocks that this step has planned", 30, Holding(8, 2, planned=3), Holding(6, 5, planned=4), OTHERS
    ),
    rooms("more is planned than there is", 20, Holding(8, 2), Holding(6, 5, planned=9), OTHERS),
    rooms("no block is common", 14, Holding(8, 3), Holding(6, 6), Holding(0, keeps=True)),
    Case("each share takes all of its room", lifetime_case),
    stage_case(
        "asked before and after others start and end", 40, asked_twice, Holding(8, 2), Holding(6, 5), OTHERS
    ),
    turns_case(Stage.rooms, Holding(8, 2, 1), Holding(6, 8), OTHERS),
    work_case(
        ROOM_LINES, "the work with 300 shares", lambda stage: stage.shares.room(stage.members[7]), MANY
    ),
)
ROOM_MISTAKES = (
    Mistake(
        "a share gets no common blocks: a sequence that is alone may borrow beyond the guarantee", OnlyOwn
    ),
    Mistake(
        "free blocks of the whole pool are given away: some of them are guaranteed to others, who come back",
        FreeBlocks,
    ),
    Mistake(
        "all blocks that nobody uses are given away: some of them are guaranteed to others, who come back",
        FreeAndUnused,
    ),
    Mistake(
        "beyond its guarantee a share gets what nobody uses: some of that is guaranteed to others", FreeOfAll
    ),
    Mistake("common blocks that shares have borrowed already are given away again", NobodyBorrows),
    Mistake("only its own borrowed blocks are subtracted: all shares borrow from the same rest", OnlyItself),
    Mistake("its own borrowed blocks are not subtracted: it has these already", OnlyOthers),
    Mistake(
        "idle guarantees are lent: a share below its guarantee must count as 0, not as a negative number",
        LendsIdle,
    ),
    Mistake(
        "live blocks inside guarantees are subtracted from the common ones: only those beyond are", AllLive
    ),
    Mistake("cached blocks that no sequence uses take room: they go when it is needed", CountsCached),
    Mistake("a share that may not borrow gets common blocks: look at `borrows`", AlwaysBorrows),
    Mistake(
        "what a share has beyond its guarantee is subtracted twice: no guarantee is left, that is 0", Negative
    ),
    Mistake("the common rest is negative, and takes from the guarantee: it is at least 0", NegativeCommon),
    Mistake(
        "blocks that the plan has counted already are given away again: `num_live` has them", ForgetsThePlan
    ),
    Mistake("the guarantee is given again although sequences use a part of it", WholeGuarantee),
    Mistake("a share gets either its guarantee or the common rest: it may have both", Larger),
    Mistake("the answer is remembered: others start and end, ask again", Remembers),
    too_much(
        ROOM_LINES,
        "300 shares",
        "look at each share once, and compare none with all others",
        wasteful("room", compares_all),
    ),
)
