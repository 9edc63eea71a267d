"""Shares of the block pool: each has guaranteed blocks, and all compete for the common rest.

    pool      | guaranteed to A | guaranteed to B | common                 |
    live      | a a a a . .     | b b b b b b     | b b  o o o o o  . . .  |     B is 2 over its guarantee
    cached    |         a a     |                 |                 c c c  |     o: share without guarantee

A block is *live* while a sequence uses it, and *unused* while only the prefix cache owns it. A share may have

    guaranteed - live          as long as that is not negative: nobody else can take these
    + common - what all shares have live beyond their guarantees        if it borrows

more blocks. Both terms ignore unused blocks. An unused block is freed as soon as its room is needed:

    * a share with a guarantee keeps unused blocks only inside it, and evicts its own oldest ones. So what
      it finds in its cache depends on its own requests only, not on how empty the pool is.
    * a share without a guarantee keeps what nobody needs. The share with the most unused blocks loses first.

Then a block within a share's room is always there:  free + unused of shares without a guarantee
>= the room that any share has left. No other share's sequence is ever preempted for it.

Idea: the reservation and weight limits of the Linux memory controller (cgroup v2: memory.min, memory.max).
Left out: lending guaranteed blocks that are idle.
"""

from __future__ import annotations

from collections.abc import Iterable

from minillm.errors import OutOfBlocks, PartError
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import PrefixCache


class Shares:
    """All shares of one pool. `common`: the blocks that are guaranteed to none."""

    def __init__(self, pool: BlockPool, common: int) -> None:
        self.pool, self.common = pool, common
        self.members: list[Share] = []

    def add(self, guaranteed: int, keeps_outside: bool = False) -> Share:
        """Make one more share. Its guaranteed blocks are not part of `common`."""
        self.members.append(Share(self, guaranteed, keeps_outside))
        return self.members[-1]

    @property
    def num_unused(self) -> int:
        """Unused blocks of all shares."""
        return sum(share.num_unused for share in self.members)

    @property
    def available(self) -> int:
        """Blocks that no sequence uses."""
        return self.pool.num_free + self.num_unused

    def room(self, share: Share) -> int:
        """The blocks that the sequences of `share` can still get.

        Those of its guarantee that no sequence uses and, if it `borrows`, what is left of the common blocks:
        each share has as many of them as it has live beyond its own guarantee. Unused blocks take no room.
        """
        if not share.borrows:
            return share.guarantee_left
        lent = sum(max(0, member.num_live - member.guaranteed) for member in self.members)
        return share.guarantee_left + max(0, self.common - lent)

    def trim(self, share: Share, count: int = 0) -> int:
        """Evict what a share may not keep if `count` more of its blocks become live; return the number.

        A share that `keeps_outside` keeps all. Another one keeps as many unused blocks as its guarantee then
        has left, and its oldest ones go. `share.cache` evicts; it is None if prefix caching is off.
        """
        surplus = share.num_unused - max(0, share.guarantee_left - count)
        if share.keeps_outside or surplus <= 0 or share.cache is None:
            return 0
        return share.cache.evict(surplus)

    def reclaim(self, count: int) -> int:
        """Have `count` free blocks in the pool, if evictions outside guarantees allow it.

        Only shares that `keeps_outside` lose blocks. The one with the most unused blocks, of several the one
        that was made first, loses all that is missing; what it lacks the next one loses. Never raises.

        Returns:
            The number of blocks that were evicted.
        """
        evicted = 0
        if count <= self.pool.num_free:
            return evicted
        for share in sorted(self.members, key=lambda share: -share.num_unused):
            if count > self.pool.num_free and share.keeps_outside and share.cache:
                evicted += share.cache.evict(count - self.pool.num_free)
        return evicted


class Share:
    """One share: a pool for its sequences and its cache that counts what they have allocated.

    It has `BlockPool`'s methods, so a block table or a prefix cache takes it for a pool. `num_free` is the
    whole pool's. `keeps_outside`: unused blocks may also stay outside the guarantee.
    """

    def __init__(self, shares: Shares, guaranteed: int, keeps_outside: bool) -> None:
        self._shares, self.guaranteed = shares, guaranteed
        self.keeps_outside = keeps_outside or guaranteed == 0
        self._allocated = 0  # live and unused blocks
        self.borrows = True  # whether its sequences may use common blocks
        self.planned = 0  # blocks that a step's plan has counted for its sequences and not yet allocated
        self.cache: PrefixCache | None = None  # `TenantMemory` makes it over this share
        self.num_blocks, self.block_size = shares.pool.num_blocks, shares.pool.block_size

    # Counting -------------------------------------------------------------------------------

    @property
    def num_unused(self) -> int:
        """Blocks that only the share's prefix cache owns."""
        return self.cache.num_unused if self.cache else 0

    @property
    def num_live(self) -> int:
        """Blocks that the share's sequences use, or will use in this step."""
        return self._allocated - self.num_unused + self.planned

    @property
    def guarantee_left(self) -> int:
        """Guaranteed blocks that no sequence uses."""
        return max(0, self.guaranteed - self.num_live)

    @property
    def available(self) -> int:
        """Blocks that its sequences can still get."""
        return _blocks(self._shares.room(self), "room")

    # A block pool ---------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Blocks of the whole pool without an owner."""
        return self._shares.pool.num_free

    def ref_count(self, block_id: int) -> int:
        """The number of owners of a block."""
        return self._shares.pool.ref_count(block_id)

    def allocate(self, count: int = 1) -> list[int]:
        """As `BlockPool.allocate`, and within the share's room.

        Raises:
            OutOfBlocks: the rest of the pool is guaranteed to others, or used; nothing was allocated.
        """
        if count > self.available:
            raise OutOfBlocks(
                f"{count} KV blocks needed, more than this tenant's share has left",
                "wait until one of its requests has finished, or raise kv_memory",
            )
        taken = self._shares.pool.allocate(count)
        self._allocated += len(taken)
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """As `BlockPool.share`."""
        self._shares.pool.share(block_ids)

    def free(self, block_ids: Iterable[int]) -> None:
        """As `BlockPool.free`."""
        before = self._shares.pool.num_free
        self._shares.pool.free(block_ids)
        self._allocated -= self._shares.pool.num_free - before

    # Eviction -------------------------------------------------------------------------------

    def make_room(self, count: int) -> int:
        """Have `count` free blocks in the pool, if the share has so much room; return the number evicted.

        If it has less nothing is evicted, because the allocation will fail and must change nothing.
        """
        if count > self.available:
            return 0
        return self.trim(count) + _blocks(self._shares.reclaim(count), "reclaim")

    def trim(self, count: int = 0) -> int:
        """Evict unused blocks that would be outside the guarantee if `count` more blocks became live."""
        return _blocks(self._shares.trim(self, count), "trim")


def _blocks(value: int, method: str) -> int:
    if type(value) is not int or value < 0:
        raise PartError(f"part 'shares' returned a wrong value from {method}", "return a number of blocks")
    return value
