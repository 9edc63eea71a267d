"""The only interface to the KV memory: it allocates, shares, rolls back, frees and publishes blocks.

    num_blocks = used by sequences | unused, but in the prefix cache | free
                                     `---------- available ---------'

Only this object changes a sequence's block table or a block's state, and only it emits the events about them.
So "is there room" has one answer, every change is in the trace, and a method that fails changes nothing.

A draft model stores its keys and values under the same block ids and may have computed fewer tokens than the
target: `sequence.draft` counts them, and `CachedBlock.draft` says whether a cached block has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import takewhile

from minillm.engine.sequence import Sequence
from minillm.errors import PartError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope
from minillm.memory.public_prefixes import PublicPrefixes
from minillm.memory.scope import MakeScope, block_scope
from minillm.observe.events import Events

MakeCache = Callable[[BlockPool], PrefixCache]


class KVCacheManager:
    """Manages the blocks of all sequences.

    `cache` is None if prefix caching is off. `draft` is the KV envelope of the draft model, if there is one.
    `public`: the blocks that every tenant may start from.
    """

    def __init__(
        self,
        pool: BlockPool,
        envelope: str,
        events: Events,
        prefix_caching: bool = True,
        make_cache: MakeCache = PrefixCache,
        draft: str | None = None,
        public: PublicPrefixes | None = None,
        make_scope: MakeScope = block_scope,
    ) -> None:
        self.pool, self.envelope, self._events, self._draft = pool, envelope, events, draft
        self._make_cache, self._make_scope = make_cache, make_scope
        self.public = public or PublicPrefixes((), pool.block_size)
        self.cache = make_cache(pool) if prefix_caching else None

    # Counting -------------------------------------------------------------------------------

    @property
    def num_unused(self) -> int:
        """Blocks that only the prefix cache owns."""
        return _count(self.cache.num_unused, "num_unused") if self.cache else 0

    @property
    def available(self) -> int:
        """Blocks that can be allocated: free ones, and cached ones that no sequence uses."""
        return self.pool.num_free + self.num_unused

    def most_blocks(self, tenant: str | None) -> int:
        """The most blocks that a request of this tenant can ever use."""
        return self.pool.num_blocks - self.public.num_blocks

    def guaranteed_blocks(self, tenant: str | None) -> int:
        """The blocks that only this tenant uses: none without tenant limits."""
        return 0

    def unused_of(self, tenant: str | None) -> int:
        """Blocks with a tenant's content that only the prefix cache owns."""
        return _count(self.cache.num_unused_of(tenant), "num_unused_of") if self.cache else 0

    def shortage(self, sequence: Sequence, num_tokens: int) -> int:
        """The number of blocks that the sequence still needs in order to hold `num_tokens` tokens."""
        return max(0, blocks_for(num_tokens, self.pool.block_size) - len(sequence.block_table.block_ids))

    def match(self, sequence: Sequence) -> list[CachedBlock]:
        """Find the cached blocks the sequence can start from. At least one token is left to compute."""
        if self.cache is None:
            return []
        size, public = self.pool.block_size, self._public(sequence)
        full, first = (sequence.num_tokens - 1) // size, len(public)
        self._extend_digests(sequence, full)
        digests = sequence.cached.digests
        blocks = ((digests[i - first], sequence.tokens(i * size, (i + 1) * size)) for i in range(first, full))
        found = self.cache.match(self._scope(sequence), blocks)
        _require(isinstance(found, list) and len(found) <= full - first, "match", "a list of cached blocks")
        return public + found

    def available_without(self, blocks: Iterable[CachedBlock]) -> int:
        """Blocks that can still be allocated after these cached blocks have been acquired."""
        if self.cache is None:
            return self.available
        unused = [self.cache.is_unused(block) for block in blocks if not self.public.owns(block)]
        _require(all(isinstance(answer, bool) for answer in unused), "is_unused", "a bool")
        return self.available - sum(unused)

    # Allocating -----------------------------------------------------------------------------

    def open(self, sequences: Iterable[Sequence]) -> None:
        """Give each new sequence an empty table over the current pool."""
        for sequence in sequences:
            sequence.block_table = BlockTable(self.pool)

    def start_from(self, sequence: Sequence, blocks: list[CachedBlock]) -> None:
        """Let a sequence without blocks start with the cached `blocks`, as if it had computed them."""
        if not blocks or self.cache is None:
            return
        sequence.block_table.block_ids = self._share(self.cache, blocks)
        sequence.num_computed_tokens = len(blocks) * self.pool.block_size
        sequence.cached.last, sequence.cached.num_blocks = blocks[-1], len(blocks)
        draft = sequence.draft
        draft.num_published = len(list(takewhile(self._has_draft, blocks)))
        draft.num_computed_tokens = draft.num_published * self.pool.block_size
        self._events.emit("share", sequence.request_id, blocks=len(blocks))

    def _share(self, cache: PrefixCache, blocks: list[CachedBlock]) -> list[int]:
        """Add one owner to each block, public ones first; return the block ids."""
        public = [block.block_id for block in blocks if self.public.owns(block)]
        own = blocks[len(public) :]
        ids = cache.acquire(own)
        is_right = isinstance(ids, list) and len(ids) == len(own)
        is_right = is_right and all(isinstance(i, int) and 0 <= i < self.pool.num_blocks for i in ids)
        _require(is_right, "acquire", "the id of each block")
        if public:
            self.pool.share(public)
        return public + ids

    def make_room(self, count: int) -> None:
        """Have `count` free blocks if so many are available: evict unused ones from the prefix cache.

        If fewer are available nothing is evicted, because the allocation will fail and must change nothing.
        """
        missing = count - self.pool.num_free
        if not self.cache or not 0 < missing <= self.num_unused:
            return
        if evicted := _count(self.cache.evict(missing), "evict"):
            self._events.emit("evict", blocks=evicted, cause="room")

    def allocate_slots(self, sequence: Sequence, num_tokens: int) -> None:
        """Give the sequence room for `num_tokens` tokens in all.

        Raises:
            OutOfBlocks: the pool has too few free blocks; nothing has changed.
        """
        if len(sequence.block_table.block_ids) * self.pool.block_size >= num_tokens:
            return
        missing = self.shortage(sequence, num_tokens)
        self.make_room(missing)
        sequence.block_table.grow(num_tokens)
        self._events.emit("alloc", sequence.request_id, blocks=missing)

    def allocate_branches(self, sequence: Sequence, num_tokens: int, count: int) -> list[list[int]]:
        """Give the sequence room for `count` draft branches, each of `num_tokens` tokens in all.

            table     [ 5 ][ 2 ][ 7 ][ 9 ]        the newest token is in block 7: from there on the branch has
            branch    [ 5 ][ 2 ][ 4 ][ 1 ]        its own blocks (the caller must copy block 7 to block 4)

        Returns:
            One block table per branch; the first is the sequence's own.

        Raises:
            OutOfBlocks: the pool has too few free blocks; nothing has changed.
        """
        table, owned = sequence.block_table, len(sequence.block_table.block_ids)
        self.allocate_slots(sequence, num_tokens)
        if count == 1:
            return [table.block_ids]
        start, branches = sequence.num_computed_tokens, sequence.draft.branch_blocks
        shared = table.block_ids[: start // self.pool.block_size]
        try:
            for _ in range(count - 1):
                self.make_room(blocks_for(num_tokens, self.pool.block_size) - len(shared))
                branches.append(table.branch(start, num_tokens))
        except Exception:
            self._free_branches(sequence)
            if freed := table.truncate(owned * self.pool.block_size):
                self._events.emit("free", sequence.request_id, blocks=freed)
            raise
        self._events.emit("alloc", sequence.request_id, blocks=sum(map(len, branches)))
        return [table.block_ids, *(shared + blocks for blocks in branches)]

    def fork(self, source: Sequence, child: Sequence, num_tokens: int) -> tuple[int, int] | None:
        """Let `child`, which has no blocks, start with the first `num_tokens` tokens of `source`.

        Full blocks are shared. A partly full last block cannot be shared, because both sequences will write
        to it; `child` gets a block for a copy.

        Returns:
            (source block, child's block) to copy after the tokens have been computed, or None.

        Raises:
            OutOfBlocks: no block is free for the copy; nothing has changed.
        """
        if num_tokens % self.pool.block_size:
            self.make_room(1)
        child.block_table, copy = source.block_table.fork(num_tokens)
        child.num_computed_tokens = num_tokens
        child.cached.last, child.cached.num_blocks = source.cached.last, source.cached.num_blocks
        child.cached.public = source.cached.public
        full = num_tokens // self.pool.block_size * self.pool.block_size
        child.draft.num_published = source.draft.num_published
        # The copied block lacks the draft model's keys and values: only full blocks count.
        child.draft.num_computed_tokens = min(source.draft.num_computed_tokens, full)
        self._events.emit("alloc", child.request_id, blocks=len(child.block_table.block_ids))
        if copy:
            self._events.emit("copy_on_write", child.request_id, blocks=1)
        return copy

    # Freeing --------------------------------------------------------------------------------

    def rollback(self, sequence: Sequence, num_tokens: int, branch: int = 0) -> None:
        """Keep the first `num_tokens` tokens of the branch with index `branch`; free all other blocks."""
        table, draft = sequence.block_table, sequence.draft
        if branch:
            winner = draft.branch_blocks[branch - 1]
            draft.branch_blocks[branch - 1] = table.adopt(sequence.num_computed_tokens, winner)
        freed = self._free_branches(sequence) + table.truncate(num_tokens)
        if freed:
            self._events.emit("free", sequence.request_id, blocks=freed)

    def free(self, sequence: Sequence) -> None:
        """Free all blocks of the sequence. Its tokens must be found in the cache or computed again."""
        freed, ids = self._free_branches(sequence), sequence.block_table.block_ids
        if ids:
            sequence.block_table.release()
            if self.cache:
                self.cache.released(ids)
        if freed or ids:
            self._events.emit("free", sequence.request_id, blocks=freed + len(ids))
        _forget(sequence)

    def reset(self, pool: BlockPool, sequences: Iterable[Sequence]) -> None:
        """Start with an empty pool and cache, after a step that failed in the middle of a change."""
        cached = _count(self.cache.num_blocks, "num_blocks") if self.cache else 0
        self.pool, self.cache = pool, self._make_cache(pool) if self.cache else None
        for sequence in sequences:
            self.start_over(sequence)
        self._events.free_all()
        if cached:
            self._events.emit("evict", blocks=cached, cause="reset")

    def start_over(self, sequence: Sequence) -> None:
        """Record that the pool is a new one, in which the sequence has nothing."""
        sequence.block_table = BlockTable(self.pool)
        sequence.draft.branch_blocks = []
        _forget(sequence)
        sequence.cached.forget_all()

    def _free_branches(self, sequence: Sequence) -> int:
        """Free the blocks of all branches, not those of the sequence's table; return their number."""
        branches, sequence.draft.branch_blocks = sequence.draft.branch_blocks, []
        for blocks in branches:
            self.pool.free(blocks)
        return sum(map(len, branches))

    # Publishing -----------------------------------------------------------------------------

    def publish(self, sequence: Sequence) -> None:
        """Put the sequence's full blocks into the prefix cache, after the step that wrote them has finished.

        If another sequence has already published the same content, that block replaces this sequence's.
        """
        if self.cache is None:
            return
        full = sequence.num_computed_tokens // self.pool.block_size
        if full > sequence.cached.num_blocks:
            self._publish(self.cache, sequence, full)
        if self._draft is not None:
            self._publish_draft(sequence)

    def _publish(self, cache: PrefixCache, sequence: Sequence, full: int) -> None:
        self._extend_digests(sequence, full)
        cached, table, size = sequence.cached, sequence.block_table, self.pool.block_size
        first, public = cached.num_blocks, self._public(sequence)
        for i in range(first, full):
            ids, mine = sequence.tokens(i * size, (i + 1) * size), table.block_ids[i]
            if i < len(public):  # a scheduler need not have looked for cached blocks
                block = public[i]
            else:
                parent, digest = cached.last if i > len(public) else None, cached.digests[i - len(public)]
                block = cache.publish(self._scope(sequence), parent, ids, digest, mine)
                _require(hasattr(block, "block_id"), "publish", "the cached block")
            if block.block_id != mine:
                table.block_ids[i] = self._share(cache, [block])[0]
                self.pool.free([mine])
                if not self._has_draft(block):
                    draft = sequence.draft
                    draft.num_computed_tokens = min(draft.num_computed_tokens, i * size)
            cached.last, cached.num_blocks = block, i + 1
        self._events.emit("publish", sequence.request_id, blocks=full - first)

    def _publish_draft(self, sequence: Sequence) -> None:
        """Mark the cached blocks of the sequence that the draft model has written too."""
        cached, draft = sequence.cached, sequence.draft
        written = min(cached.num_blocks, draft.num_computed_tokens // self.pool.block_size)
        if written <= draft.num_published:
            return
        block, index = cached.last, cached.num_blocks
        while block is not None and index > draft.num_published:
            if index <= written and not self.public.owns(block):  # those were written when the engine started
                block.draft = self._draft
            block, index = block.parent, index - 1
        draft.num_published = written

    def _has_draft(self, block: CachedBlock) -> bool:
        return self._draft is not None and block.draft == self._draft

    def _scope(self, sequence: Sequence) -> Scope:
        after = self.public.number(self._public(sequence))
        return self._make_scope(self.envelope, sequence.tenant, bool(sequence.rope_offset), after)

    def _public(self, sequence: Sequence) -> list[CachedBlock]:
        """The public blocks that the prompt begins with. At least one token is left to compute."""
        cached = sequence.cached
        if cached.public is None:
            cached.public = self.public.match(sequence.prompt_token_ids[:-1], sequence.rope_offset)
        return cached.public

    def _extend_digests(self, sequence: Sequence, full: int) -> None:
        """Compute the missing digests of the sequence's first `full` blocks, without its public ones."""
        digests, size = sequence.cached.digests, self.pool.block_size
        if self.cache is None:
            return
        for i in range(len(self._public(sequence)) + len(digests), full):
            ids = sequence.tokens(i * size, (i + 1) * size)
            digest = self.cache.digest(self._scope(sequence), digests[-1] if digests else None, ids)
            _require(isinstance(digest, bytes), "digest", "bytes")
            digests.append(digest)


def _forget(sequence: Sequence) -> None:
    """Record that the sequence has no blocks and no computed tokens."""
    sequence.num_computed_tokens = 0
    sequence.cached.forget_blocks()
    sequence.draft.forget_blocks()


def _count(value: int, method: str) -> int:
    _require(type(value) is int and value >= 0, method, "a number of blocks")
    return value


def _require(is_right: bool, method: str, wanted: str) -> None:
    if not is_right:
        raise PartError(f"part 'prefix_cache' returned a wrong value from {method}", f"return {wanted}")
