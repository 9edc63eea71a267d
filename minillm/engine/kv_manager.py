"""The KV memory as the scheduler sees it: what can be had, who gets it, what is found again.

    num_blocks = used by sequences | unused, but findable (prefix cache) | free
                                     `------------ available -----------'

One object over the pool and the prefix cache, so that "is there room" has one answer. Taking blocks
is left to the sequences' tables (`BlockTable.grow`, in the two loops); `make_room` is called before a
step and turns unused blocks into free ones, so that what was planned cannot fail.

A draft model keeps its keys and values under the same block ids, and may be behind: a request's
`num_draft_computed_tokens` says how far it is written, `CachedBlock.draft` whether a cached block has any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import takewhile

from minillm.engine.request import Request
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import blocks_for
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope
from minillm.observe.events import Events


class KVCacheManager:
    """Blocks for requests. `cache` is None where prefix caching is off."""

    def __init__(
        self,
        pool: BlockPool,
        envelope: str,
        events: Events,
        prefix_caching: bool = True,
        make_cache: Callable[[BlockPool], PrefixCache] = PrefixCache,
        draft: str | None = None,
    ) -> None:
        self.pool, self.envelope, self._events, self._draft = pool, envelope, events, draft
        self.cache = make_cache(pool) if prefix_caching else None

    @property
    def num_unused(self) -> int:
        """Blocks held by the prefix cache alone."""
        return self.cache.num_unused if self.cache else 0

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and findable ones that nobody uses."""
        return self.pool.num_free + self.num_unused

    def shortage(self, request: Request, num_tokens: int) -> int:
        """Blocks the request must still get to hold `num_tokens` tokens."""
        return max(0, blocks_for(num_tokens, self.pool.block_size) - len(request.block_table.block_ids))

    def match(self, request: Request) -> list[CachedBlock]:
        """Cached blocks the request could start from. At least one token is left to compute."""
        if self.cache is None:
            return []
        size = self.pool.block_size
        full = (request.num_tokens - 1) // size
        self._extend_digests(request, full)
        blocks = ((request.block_digests[i], request.tokens(i * size, (i + 1) * size)) for i in range(full))
        return self.cache.match(self._scope(request), blocks)

    def available_without(self, blocks: Iterable[CachedBlock]) -> int:
        """What could be had besides these blocks, once they are taken."""
        cache = self.cache
        return self.available - (sum(cache.is_unused(block) for block in blocks) if cache else 0)

    def start_from(self, request: Request, blocks: list[CachedBlock]) -> None:
        """Let a request without blocks begin with `blocks`, as if it had computed them."""
        if not blocks or self.cache is None:
            return
        request.block_table.block_ids = self.cache.acquire(blocks)
        request.num_computed_tokens = len(blocks) * self.pool.block_size
        request.published, request.num_published = blocks[-1], len(blocks)
        request.num_draft_published = len(list(takewhile(self._has_draft, blocks)))
        request.num_draft_computed_tokens = request.num_draft_published * self.pool.block_size
        self._events.emit("share", request.group_id, blocks=len(blocks))

    def make_room(self, count: int) -> None:
        """Have `count` blocks free, taking unused ones from the prefix cache where needed."""
        missing = count - self.pool.num_free
        if missing > 0 and self.cache:
            self._events.emit("evict", blocks=self.cache.evict(missing))

    def publish(self, request: Request) -> None:
        """Make the request's full, computed blocks findable; the step that wrote them is over.

        Where another sequence has published the same content first, its block replaces this one's.
        """
        if self.cache is None:
            return
        full = request.num_computed_tokens // self.pool.block_size
        if full > request.num_published:
            self._publish(self.cache, request, full)
        if self._draft is not None:
            self._publish_draft(request)

    def _publish(self, cache: PrefixCache, request: Request, full: int) -> None:
        self._extend_digests(request, full)
        first, table, size = request.num_published, request.block_table, self.pool.block_size
        for i in range(first, full):
            ids, mine = request.tokens(i * size, (i + 1) * size), table.block_ids[i]
            block = cache.publish(
                self._scope(request), request.published, ids, request.block_digests[i], mine
            )
            if block.block_id != mine:
                table.block_ids[i] = cache.acquire([block])[0]
                self.pool.free([mine])
                if not self._has_draft(block):
                    request.num_draft_computed_tokens = min(request.num_draft_computed_tokens, i * size)
            request.published = block
        request.num_published = full
        self._events.emit("publish", request.group_id, blocks=full - first)

    def _publish_draft(self, request: Request) -> None:
        """Note in the request's cached blocks how far the draft model has written them."""
        written = min(request.num_published, request.num_draft_computed_tokens // self.pool.block_size)
        if written <= request.num_draft_published:
            return
        block, index = request.published, request.num_published
        while block is not None and index > request.num_draft_published:
            if index <= written:
                block.draft = self._draft
            block, index = block.parent, index - 1
        request.num_draft_published = written

    def _has_draft(self, block: CachedBlock) -> bool:
        return self._draft is not None and block.draft == self._draft

    def release(self, request: Request) -> None:
        """Give the request's blocks back. What it has computed must be found, or computed again."""
        ids = request.block_table.block_ids
        if not ids:
            return
        request.block_table.release()
        if self.cache:
            self.cache.released(ids)
        self._events.emit("free", request.group_id, blocks=len(ids))
        request.num_computed_tokens = request.num_published = 0
        request.num_draft_computed_tokens = request.num_draft_published = 0
        request.published = None

    def _scope(self, request: Request) -> Scope:
        return Scope(self.envelope, request.tenant)

    def _extend_digests(self, request: Request, full: int) -> None:
        """Digests of the request's first `full` blocks, each made once."""
        digests, size = request.block_digests, self.pool.block_size
        if self.cache is None:
            return
        for i in range(len(digests), full):
            ids = request.tokens(i * size, (i + 1) * size)
            digests.append(self.cache.digest(self._scope(request), digests[-1] if digests else None, ids))
