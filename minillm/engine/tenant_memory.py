"""The KV memory of an engine with tenant limits: one `KVCacheManager` for each share of the pool.

                         +-- lane of "anna"    share of 64 guaranteed blocks    prefix cache of its own
    TenantMemory --of--> +-- lane of "ben"     share of 32 guaranteed blocks    prefix cache of its own
                         +-- the common lane   everybody else                   one cache, a scope per tenant

`memory/shares.py` says how many blocks each lane may take. A lane's manager sees nothing of the other lanes:
what it allocates, finds and evicts depends on its own sequences only, as long as they fit its guarantee.

`TenantMemory` has the methods of `KVCacheManager` that the engine calls, and passes each to the lane of the
sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minillm.config.tenants import Limits, guaranteed_by_name, limits_of
from minillm.engine.kv_manager import KVCacheManager, MakeCache
from minillm.engine.sequence import Sequence
from minillm.errors import UsageError
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import PrefixCache
from minillm.memory.public_prefixes import PublicPrefixes
from minillm.memory.shares import Share, Shares
from minillm.observe.events import Events

COMMON = object()  # the key of the common lane: no tenant has it


@dataclass(frozen=True)
class LaneMakers:
    """What makes the shares of a pool, the manager of a share, and the prefix cache of a share."""

    shares: Callable[[BlockPool, int], Shares]
    lane: Callable[[Share, MakeCache], LaneMemory]
    cache: MakeCache


class LaneMemory(KVCacheManager):
    """The manager of one share."""

    pool: Share  # type: ignore[assignment]

    @property
    def available(self) -> int:
        """Blocks that its sequences can still get."""
        return self.pool.available

    def make_room(self, count: int) -> None:
        """Have `count` free blocks in the pool if the share has so much room."""
        if evicted := self.pool.make_room(count):
            self._events.emit("evict", blocks=evicted, cause="room")

    def free(self, sequence: Sequence) -> None:
        """Free all blocks of the sequence; of those in the cache only as many stay as the guarantee holds."""
        super().free(sequence)
        if evicted := self.pool.trim():
            self._events.emit("evict", blocks=evicted, cause="guarantee")


class TenantMemory:
    """The lanes of all tenants, over one pool.

    Raises:
        UsageError: the guarantees and the public prefixes add up to more blocks than the pool has.
    """

    def __init__(
        self,
        pool: BlockPool,
        limits: Limits,
        public: PublicPrefixes,
        events: Events,
        make: LaneMakers,
    ) -> None:
        self.limits, self.public, self._events, self._make = limits, public, events, make
        guaranteed = sum(limit.guaranteed_blocks for limit in limits.values())
        self._common = pool.num_blocks - public.num_blocks - guaranteed
        if self._common < 0:
            more = f" and public prefixes of {public.num_blocks}" if public.num_blocks else ""
            raise UsageError(
                f"the guarantees add up to {guaranteed} blocks{more}, the pool has {pool.num_blocks}",
                "lower guaranteed_blocks or raise kv_memory",
            )
        self._open(pool)

    def _open(self, pool: BlockPool) -> None:
        self.pool, self._shares = pool, self._make.shares(pool, self._common)
        self.lanes: dict[object, LaneMemory] = {
            tenant: self._lane(self._shares.add(limit.guaranteed_blocks))
            for tenant, limit in guaranteed_by_name(self.limits).items()
        }
        others = self.limits.get(None)
        share = self._shares.add(others.guaranteed_blocks if others else 0, keeps_outside=True)
        self.lanes[COMMON] = self._common_lane = self._lane(share)

    def _lane(self, share: Share) -> LaneMemory:
        def make_cache(_: BlockPool) -> PrefixCache:
            share.cache = self._make.cache(share)  # type: ignore[arg-type]
            return share.cache

        return self._make.lane(share, make_cache)

    def key(self, tenant: str | None) -> object:
        """The key of a tenant's lane in `lanes`."""
        return tenant if tenant is not None and tenant in self.lanes else COMMON

    def of(self, sequence: Sequence) -> LaneMemory:
        """The lane of a sequence."""
        return self.lanes.get(sequence.tenant, self._common_lane)

    # Counting -------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Blocks of the pool that no sequence uses."""
        return self._shares.available

    @property
    def num_unused(self) -> int:
        """Blocks that only the prefix caches own."""
        return self._shares.num_unused

    def most_blocks(self, tenant: str | None) -> int:
        """The most blocks that a request of this tenant can ever use."""
        share = self.lanes[self.key(tenant)].pool
        limit = limits_of(self.limits, tenant).max_blocks
        room = share.guaranteed + self._common
        return room if limit is None else min(room, limit)

    def guaranteed_blocks(self, tenant: str | None) -> int:
        """The blocks that only this tenant uses."""
        key = self.key(tenant)
        return 0 if key is COMMON else self.lanes[key].pool.guaranteed

    def unused_of(self, tenant: str | None) -> int:
        """Blocks with a tenant's content that only the prefix cache owns."""
        return self.lanes[self.key(tenant)].unused_of(tenant)

    # Passed to the lane ---------------------------------------------------------------------

    def open(self, sequences: Iterable[Sequence]) -> None:
        """As `KVCacheManager.open`."""
        for sequence in sequences:
            self.of(sequence).open([sequence])

    def make_room(self, count: int) -> None:
        """Nothing: each lane makes room when it allocates."""

    def allocate_slots(self, sequence: Sequence, num_tokens: int) -> None:
        """As `KVCacheManager.allocate_slots`."""
        self.of(sequence).allocate_slots(sequence, num_tokens)

    def allocate_branches(self, sequence: Sequence, num_tokens: int, count: int) -> list[list[int]]:
        """As `KVCacheManager.allocate_branches`."""
        return self.of(sequence).allocate_branches(sequence, num_tokens, count)

    def fork(self, source: Sequence, child: Sequence, num_tokens: int) -> tuple[int, int] | None:
        """As `KVCacheManager.fork`."""
        return self.of(source).fork(source, child, num_tokens)

    def rollback(self, sequence: Sequence, num_tokens: int, branch: int = 0) -> None:
        """As `KVCacheManager.rollback`."""
        self.of(sequence).rollback(sequence, num_tokens, branch)

    def free(self, sequence: Sequence) -> None:
        """As `KVCacheManager.free`."""
        self.of(sequence).free(sequence)

    def publish(self, sequence: Sequence) -> None:
        """As `KVCacheManager.publish`."""
        self.of(sequence).publish(sequence)

    def reset(self, pool: BlockPool, sequences: Iterable[Sequence]) -> None:
        """As `KVCacheManager.reset`."""
        cached = sum(lane.cache.num_blocks for lane in self.lanes.values() if lane.cache)
        self._open(pool)
        for sequence in sequences:
            self.of(sequence).start_over(sequence)
        self._events.free_all()
        if cached:
            self._events.emit("evict", blocks=cached, cause="reset")


KVMemory = KVCacheManager | TenantMemory
