"""The one interface to the KV memory: blocks allocated, shared, rolled back, freed, published.

    num_blocks = used by sequences | unused, but findable (prefix cache) | free
                                     `------------ available -----------'

Only this object changes a sequence's block table or a block's state, and only it emits the events about them.
So "is there room" has one answer, every change can be followed, and a change that fails undoes itself.

    start_from          a new sequence begins with blocks that the prefix cache has
    allocate_slots      room for more tokens of a sequence
    allocate_branches   room for several futures of a sequence
    fork                another sequence over the same tokens
    rollback            back to the tokens that stand
    publish             full, computed blocks become findable
    free                everything is given back

A draft model keeps its keys and values under the same block ids, and may be behind: `sequence.draft` says how
far they are written, `CachedBlock.draft` whether a cached block has any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import takewhile

from minillm.engine.sequence import Sequence
from minillm.errors import PartError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope
from minillm.observe.events import Events

MakeCache = Callable[[BlockPool], PrefixCache]


class KVCacheManager:
    """Blocks for sequences. `cache` is None where prefix caching is off; `draft` names the draft model."""

    def __init__(
        self,
        pool: BlockPool,
        envelope: str,
        events: Events,
        prefix_caching: bool = True,
        make_cache: MakeCache = PrefixCache,
        draft: str | None = None,
    ) -> None:
        self.pool, self.envelope, self._events, self._draft = pool, envelope, events, draft
        self._make_cache = make_cache
        self.cache = make_cache(pool) if prefix_caching else None

    # What there is --------------------------------------------------------------------------

    @property
    def num_unused(self) -> int:
        """Blocks held by the prefix cache alone."""
        return self.cache.num_unused if self.cache else 0

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and findable ones that nobody uses."""
        return self.pool.num_free + self.num_unused

    def shortage(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks the sequence must still get to hold `num_tokens` tokens."""
        return max(0, blocks_for(num_tokens, self.pool.block_size) - len(sequence.block_table.block_ids))

    def match(self, sequence: Sequence) -> list[CachedBlock]:
        """Cached blocks the sequence could start from. At least one token is left to compute."""
        if self.cache is None:
            return []
        size = self.pool.block_size
        full = (sequence.num_tokens - 1) // size
        self._extend_digests(sequence, full)
        digests = sequence.cached.digests
        blocks = ((digests[i], sequence.tokens(i * size, (i + 1) * size)) for i in range(full))
        found = self.cache.match(self._scope(sequence), blocks)
        _require(isinstance(found, list) and len(found) <= full, "match", "a list of cached blocks")
        return found

    def available_without(self, blocks: Iterable[CachedBlock]) -> int:
        """What could be had besides these blocks, once they are taken."""
        cache = self.cache
        return self.available - (sum(cache.is_unused(block) for block in blocks) if cache else 0)

    # Taking ---------------------------------------------------------------------------------

    def open(self, sequences: Iterable[Sequence]) -> None:
        """Give new sequences an empty table each, of the pool there is now."""
        for sequence in sequences:
            sequence.block_table = BlockTable(self.pool)

    def start_from(self, sequence: Sequence, blocks: list[CachedBlock]) -> None:
        """Let a sequence without blocks begin with `blocks`, as if it had computed them."""
        if not blocks or self.cache is None:
            return
        sequence.block_table.block_ids = self._acquire(self.cache, blocks)
        sequence.num_computed_tokens = len(blocks) * self.pool.block_size
        sequence.cached.last, sequence.cached.num_blocks = blocks[-1], len(blocks)
        draft = sequence.draft
        draft.num_published = len(list(takewhile(self._has_draft, blocks)))
        draft.num_computed_tokens = draft.num_published * self.pool.block_size
        self._events.emit("share", sequence.request_id, blocks=len(blocks))

    def _acquire(self, cache: PrefixCache, blocks: list[CachedBlock]) -> list[int]:
        """The blocks' ids, each with one owner more."""
        ids = cache.acquire(blocks)
        is_right = isinstance(ids, list) and len(ids) == len(blocks)
        is_right = is_right and all(isinstance(i, int) and 0 <= i < self.pool.num_blocks for i in ids)
        _require(is_right, "acquire", "the id of each block")
        return ids

    def make_room(self, count: int) -> None:
        """Have `count` blocks free, taking unused ones from the prefix cache where needed."""
        missing = count - self.pool.num_free
        if missing > 0 and self.cache and (evicted := self.cache.evict(missing)):
            self._events.emit("evict", blocks=evicted)

    def allocate_slots(self, sequence: Sequence, num_tokens: int) -> None:
        """Give the sequence room for `num_tokens` tokens in all.

        Raises:
            OutOfBlocks: the pool cannot give what is missing; nothing has changed.
        """
        if len(sequence.block_table.block_ids) * self.pool.block_size >= num_tokens:
            return
        missing = self.shortage(sequence, num_tokens)
        self.make_room(missing)
        sequence.block_table.grow(num_tokens)
        self._events.emit("alloc", sequence.request_id, blocks=missing)

    def allocate_branches(self, sequence: Sequence, num_tokens: int, count: int) -> list[list[int]]:
        """Give the sequence room for `count` futures, each of `num_tokens` tokens in all.

            table     [ 5 ][ 2 ][ 7 ][ 9 ]        the newest token lies in block 7: the branch has its own
            branch    [ 5 ][ 2 ][ 4 ][ 1 ]        from there on (4 must be given what 7 holds so far)

        Returns:
            A block table for each branch; the first is the sequence's own.

        Raises:
            OutOfBlocks: the pool cannot give what is missing; nothing has changed.
        """
        self.allocate_slots(sequence, num_tokens)
        if count == 1:
            return [sequence.block_table.block_ids]
        table, start, branches = (
            sequence.block_table,
            sequence.num_computed_tokens,
            sequence.draft.branch_blocks,
        )
        shared = table.block_ids[: start // self.pool.block_size]
        try:
            for _ in range(count - 1):
                branches.append(table.branch(start, num_tokens))
        except Exception:
            self._free_branches(sequence)
            raise
        self._events.emit("alloc", sequence.request_id, blocks=sum(map(len, branches)))
        return [table.block_ids, *(shared + blocks for blocks in branches)]

    def fork(self, source: Sequence, child: Sequence, num_tokens: int) -> tuple[int, int] | None:
        """Let `child`, which has no blocks, begin with the first `num_tokens` tokens of `source`.

        Full blocks are shared; a last block that is partly full will be written by both.

        Returns:
            (source block, child's block) to copy once the tokens are computed, or None.

        Raises:
            OutOfBlocks: no block for the copy; nothing has changed.
        """
        if num_tokens % self.pool.block_size:
            self.make_room(1)
        child.block_table, copy = source.block_table.fork(num_tokens)
        child.num_computed_tokens = num_tokens
        child.cached.last, child.cached.num_blocks = source.cached.last, source.cached.num_blocks
        full = num_tokens // self.pool.block_size * self.pool.block_size
        child.draft.num_published = source.draft.num_published
        child.draft.num_computed_tokens = min(source.draft.num_computed_tokens, full)  # not of the copy
        self._events.emit("alloc", child.request_id, blocks=len(child.block_table.block_ids))
        if copy:
            self._events.emit("copy_on_write", child.request_id, blocks=1)
        return copy

    # Giving back ----------------------------------------------------------------------------

    def rollback(self, sequence: Sequence, num_tokens: int, branch: int = 0) -> None:
        """Keep the first `num_tokens` tokens of one branch; all blocks beyond them are free again."""
        table, draft = sequence.block_table, sequence.draft
        if branch:
            winner = draft.branch_blocks[branch - 1]
            draft.branch_blocks[branch - 1] = table.adopt(sequence.num_computed_tokens, winner)
        freed = self._free_branches(sequence) + table.truncate(num_tokens)
        if freed:
            self._events.emit("free", sequence.request_id, blocks=freed)

    def free(self, sequence: Sequence) -> None:
        """Give all of the sequence's blocks back. What it has computed must be found, or computed again."""
        freed, ids = self._free_branches(sequence), sequence.block_table.block_ids
        if ids:
            sequence.block_table.release()
            if self.cache:
                self.cache.released(ids)
        if freed or ids:
            self._events.emit("free", sequence.request_id, blocks=freed + len(ids))
        _forget(sequence)

    def reset(self, pool: BlockPool, sequences: Iterable[Sequence]) -> None:
        """Start again with an empty pool and an empty prefix cache; these sequences lose all their blocks.

        For an engine whose step failed in the middle of a change: nothing of the old pool is relied upon.
        """
        cached = self.cache.num_blocks if self.cache else 0
        for sequence in sequences:
            sequence.block_table = BlockTable(pool)
            sequence.draft.branch_blocks = []
            _forget(sequence)
        self._events.free_all()
        self.cache = self._make_cache(pool) if self.cache else None
        self.pool = pool
        if cached:
            self._events.emit("evict", blocks=cached)

    def _free_branches(self, sequence: Sequence) -> int:
        """Free the blocks of all branches but the sequence's own table; returns how many."""
        branches, sequence.draft.branch_blocks = sequence.draft.branch_blocks, []
        for blocks in branches:
            self.pool.free(blocks)
        return sum(map(len, branches))

    # Making findable ------------------------------------------------------------------------

    def publish(self, sequence: Sequence) -> None:
        """Make the sequence's full, computed blocks findable; the step that wrote them is over.

        Where another sequence has published the same content first, its block replaces this one's.
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
        first = cached.num_blocks
        for i in range(first, full):
            ids, mine = sequence.tokens(i * size, (i + 1) * size), table.block_ids[i]
            block = cache.publish(self._scope(sequence), cached.last, ids, cached.digests[i], mine)
            _require(hasattr(block, "block_id"), "publish", "the cached block")
            if block.block_id != mine:
                table.block_ids[i] = self._acquire(cache, [block])[0]
                self.pool.free([mine])
                if not self._has_draft(block):
                    draft = sequence.draft
                    draft.num_computed_tokens = min(draft.num_computed_tokens, i * size)
            cached.last, cached.num_blocks = block, i + 1
        self._events.emit("publish", sequence.request_id, blocks=full - first)

    def _publish_draft(self, sequence: Sequence) -> None:
        """Note in the sequence's cached blocks how far the draft model has written them."""
        cached, draft = sequence.cached, sequence.draft
        written = min(cached.num_blocks, draft.num_computed_tokens // self.pool.block_size)
        if written <= draft.num_published:
            return
        block, index = cached.last, cached.num_blocks
        while block is not None and index > draft.num_published:
            if index <= written:
                block.draft = self._draft
            block, index = block.parent, index - 1
        draft.num_published = written

    def _has_draft(self, block: CachedBlock) -> bool:
        return self._draft is not None and block.draft == self._draft

    def _scope(self, sequence: Sequence) -> Scope:
        return Scope(self.envelope, sequence.tenant)

    def _extend_digests(self, sequence: Sequence, full: int) -> None:
        """Digests of the sequence's first `full` blocks, each made once."""
        digests, size = sequence.cached.digests, self.pool.block_size
        if self.cache is None:
            return
        for i in range(len(digests), full):
            ids = sequence.tokens(i * size, (i + 1) * size)
            digests.append(self.cache.digest(self._scope(sequence), digests[-1] if digests else None, ids))


def _forget(sequence: Sequence) -> None:
    """A sequence without blocks has nothing computed."""
    sequence.num_computed_tokens = 0
    sequence.cached.forget_blocks()
    sequence.draft.forget_blocks()


def _require(is_right: bool, method: str, wanted: str) -> None:
    if not is_right:
        raise PartError(f"part 'prefix_cache' returned something else from {method}", f"return {wanted}")
