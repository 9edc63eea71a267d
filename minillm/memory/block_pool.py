"""The block pool: it counts the owners of every block of the KV cache.

The cache is divided into `num_blocks` blocks of `block_size` token slots, as physical memory is divided
into page frames. This pool allocates block *ids*; it never touches a tensor.

    free list    [ 7 3 0 ]             a stack: the block freed last is allocated first
    ref_count    0 1 2 0 1 1 1 0       block 2 has two owners (a shared prompt)
    block id     0 1 2 3 4 5 6 7       free + used = num_blocks, always

Allocating and freeing are O(1) per block. An allocation that cannot be satisfied completely changes
nothing, so the caller has nothing to undo.

Paper: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (SOSP 2023).
The prefix cache owns blocks too: it keeps blocks that no sequence owns any more (`prefix_cache.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from minillm.config import require_int
from minillm.errors import OutOfBlocks


class BlockPool:
    """A fixed set of blocks with reference counts."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = require_int("num_blocks", num_blocks, minimum=0)
        self.block_size = require_int("block_size", block_size, minimum=1)
        self._free = list(range(num_blocks - 1, -1, -1))  # the end of the list is the top of the stack
        self._ref_count = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks without an owner."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks with at least one owner."""
        return self.num_blocks - len(self._free)

    def ref_count(self, block_id: int) -> int:
        """The number of owners of `block_id`; 0 means free."""
        return self._ref_count[self._checked(block_id)]

    def allocate(self, count: int = 1) -> list[int]:
        """Allocate `count` free blocks, the one freed last first; each gets one owner.

        The cost does not depend on the size of the pool: no list is searched, sorted or moved.

        Returns:
            The block ids, in a new list that belongs to the caller.

        Raises:
            OutOfBlocks: fewer than `count` are free; nothing was allocated.
            ValueError: `count` is negative.
        """
        require_int("count", count, minimum=0)
        if count > len(self._free):
            raise OutOfBlocks(
                f"{count} KV blocks of {self.block_size} tokens needed, {len(self._free)} of "
                f"{self.num_blocks} free",
                "wait for a request to finish, or raise kv_memory",
            )
        taken = [self._free.pop() for _ in range(count)]
        for block_id in taken:
            self._ref_count[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one owner to each of these used blocks; a block that is listed twice gets two.

        The argument may be an iterator, which can be read only once.

        Raises:
            ValueError: one of them is free; nothing was changed.
            IndexError: one of them does not exist; nothing was changed.
        """
        ids = list(block_ids)
        self._require_owners(set(ids), times={})
        for block_id in ids:
            self._ref_count[block_id] += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """Remove one owner from each block; a block without owners becomes free.

        The last block is freed first. So the stack of free blocks returns the blocks of a sequence in the
        order in which the sequence held them. A block that is listed twice loses two owners. The argument may
        be an iterator; a list stays as it is. The cost depends only on the number of blocks listed.

        Raises:
            ValueError: one of them has no owner to remove; nothing was changed.
            IndexError: one of them does not exist; nothing was changed.
        """
        ids = list(block_ids)
        self._require_owners(set(ids), times=Counter(ids))
        for block_id in reversed(ids):
            self._ref_count[block_id] -= 1
            if self._ref_count[block_id] == 0:
                self._free.append(block_id)

    def _checked(self, block_id: int) -> int:
        if not 0 <= block_id < self.num_blocks:
            raise IndexError(f"block {block_id} is not in a pool of {self.num_blocks}")
        return block_id

    def _require_owners(self, ids: set[int], times: Mapping[int, int]) -> None:
        """Require at least `times[id]` owners, or one for an id not in `times`; changes nothing.

        Raises:
            ValueError: a block has fewer owners.
            IndexError: a block does not exist; -1 is not the last block.
        """
        for block_id in ids:
            if self._ref_count[self._checked(block_id)] < times.get(block_id, 1):
                raise ValueError(f"block {block_id} is not in use: double free, or never allocated")
