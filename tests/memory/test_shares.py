"""Shares of a pool, against an oracle that keeps sets of blocks and tries every rule by brute force."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import cast

import pytest

from minillm.errors import OutOfBlocks, PartError
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope
from minillm.memory.shares import Share, Shares


@dataclass
class Holder:
    """A share, its live allocations, and what it has cached: each an (ids, cached blocks) pair."""

    share: Share
    guaranteed: int
    keeps_outside: bool
    scope: Scope
    live: list[list[int]] = field(default_factory=list)
    number: int = 0

    @property
    def live_blocks(self) -> set[int]:
        return {block for ids in self.live for block in ids}

    @property
    def unused_blocks(self) -> set[int]:
        cache = self.share.cache
        return set() if cache is None else {b for b in cache._by_block if b not in self.live_blocks}


class Machine:
    """Random operations on shares; after each one everything is counted again from the blocks themselves."""

    def __init__(self, seed: int, guarantees: list[int], others: int, num_blocks: int) -> None:
        self.chance, self.pool = random.Random(seed), BlockPool(num_blocks, 4)
        self.common = num_blocks - sum(guarantees) - others
        self.shares = Shares(self.pool, self.common)
        kinds = [*((g, False) for g in guarantees), (others, True)]
        self.holders = [self._holder(i, *kind) for i, kind in enumerate(kinds)]
        self.seen = set[str]()

    def _holder(self, number: int, guaranteed: int, keeps_outside: bool) -> Holder:
        share = self.shares.add(guaranteed, keeps_outside)
        share.cache = PrefixCache(cast(BlockPool, share))
        keeps_outside = keeps_outside or guaranteed == 0
        return Holder(share, guaranteed, keeps_outside, Scope("e", str(number)))

    def room(self, holder: Holder) -> int:
        """By the definition: free guaranteed blocks, and common ones that nobody has live."""
        used = sum(max(0, len(h.live_blocks) - h.guaranteed) for h in self.holders)
        return max(0, holder.guaranteed - len(holder.live_blocks)) + self.common - used

    def step(self) -> None:
        holder = self.chance.choice(self.holders)
        self.chance.choice([self.allocate, self.allocate, self.release, self.release, self.find])(holder)
        self.check()

    def allocate(self, holder: Holder) -> None:
        count, room = self.chance.randrange(1, 7), self.room(holder)
        before = {id(h): (h.live_blocks, h.unused_blocks) for h in self.holders}
        assert holder.share.available == room
        holder.share.make_room(count)
        if count > room:
            assert all(before[id(h)] == (h.live_blocks, h.unused_blocks) for h in self.holders)
            with pytest.raises(OutOfBlocks):
                holder.share.allocate(count)
            self.seen.add("refused")
            return
        evicted = {id(h): before[id(h)][1] - h.unused_blocks for h in self.holders}
        if any(evicted.values()):
            self.seen.add("evicted own" if evicted[id(holder)] else "evicted of others")
        for other in self.holders:
            if other is not holder and not other.keeps_outside:
                assert not evicted[id(other)], "a guaranteed share loses nothing for another's sake"
        holder.live.append(holder.share.allocate(count))

    def release(self, holder: Holder) -> None:
        """Free an allocation; some of its blocks stay in the cache."""
        if not holder.live or holder.share.cache is None:
            return
        ids = holder.live.pop(self.chance.randrange(len(holder.live)))
        parent: CachedBlock | None = None
        for block in ids[: self.chance.randrange(len(ids) + 1)]:
            holder.number += 1
            known = holder.share.cache._by_block.get(block)
            digest = holder.number.to_bytes(8, "big")
            parent = known or holder.share.cache.publish(holder.scope, parent, [holder.number], digest, block)
        holder.share.free(ids)
        holder.share.cache.released(ids)
        if holder.share.trim():
            self.seen.add("trimmed")

    def find(self, holder: Holder) -> None:
        """A prefix hit: unused blocks become live, if there is room for them."""
        cache, unused = holder.share.cache, sorted(holder.unused_blocks)
        if cache is None or not unused:
            return
        blocks = [cache._by_block[i] for i in unused[: self.chance.randrange(1, 4)]]
        if len(blocks) <= self.room(holder):
            holder.live.append(cache.acquire(blocks))
            self.seen.add("found")

    def check(self) -> None:
        owned = [h.live_blocks | h.unused_blocks for h in self.holders]
        assert sum(map(len, owned)) == len(set().union(*owned)) == self.pool.num_used
        for holder in self.holders:
            live, unused = holder.live_blocks, holder.unused_blocks
            assert (holder.share.num_live, holder.share.num_unused) == (len(live), len(unused))
            assert holder.share.available == self.room(holder)
            if not holder.keeps_outside:
                assert len(unused) <= max(0, holder.guaranteed - len(live))
        loose = sum(len(h.unused_blocks) for h in self.holders if h.keeps_outside)
        for holder in self.holders:
            own = 0 if holder.keeps_outside else len(holder.unused_blocks)
            assert self.pool.num_free + loose + own >= self.room(holder), "room that is not there"


ALL = {"refused", "evicted own", "evicted of others", "trimmed", "found"}
POOLS = [([8, 6], 0, 30), ([5], 5, 24), ([0, 7], 3, 20), ([10, 10, 10], 0, 30), ([], 0, 12)]


def _run(operations: int) -> set[str]:
    seen = set[str]()
    for seed, (guarantees, others, num_blocks) in enumerate(POOLS):
        machine = Machine(seed, guarantees, others, num_blocks)
        for _ in range(operations):
            machine.step()
        seen |= machine.seen
    return seen


def test_shares_against_the_oracle() -> None:
    assert _run(250) == ALL


@pytest.mark.slow
def test_shares_against_the_oracle_in_the_long_form() -> None:
    """100,000 operations."""
    assert _run(20_000) == ALL


def test_control_a_share_that_evicts_from_anyone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def reclaim(shares: Shares, count: int) -> int:
        largest = max(shares.members, key=lambda share: share.num_unused)
        missing = max(0, count - shares.pool.num_free)
        return largest.cache.evict(missing) if largest.cache else 0

    monkeypatch.setattr(Shares, "reclaim", reclaim)
    with pytest.raises(AssertionError):
        _run(600)


def test_control_a_share_that_keeps_all_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shares, "trim", lambda shares, share, count=0: 0)
    with pytest.raises((AssertionError, OutOfBlocks)):
        _run(600)


@pytest.mark.parametrize(
    ("method", "wrong"), [("room", 1.0), ("room", -1), ("trim", None), ("reclaim", True)], ids=str
)
def test_a_replaced_division_must_answer_with_numbers_of_blocks(method: str, wrong: object) -> None:
    mine = type("Mine", (Shares,), {method: lambda *arguments: wrong})(BlockPool(20, 4), 10)
    share = mine.add(10)
    with pytest.raises(PartError, match=f"part 'shares' .* from {method}"):
        share.make_room(3)


def test_planned_blocks_count_as_live() -> None:
    shares = Shares(BlockPool(20, 4), 10)
    one, other = shares.add(5), shares.add(5)
    one.planned = 8
    assert (one.available, other.available) == (7, 12)
    one.borrows = False
    assert one.available == 0
