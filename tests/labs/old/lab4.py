"""Lab 4: The block pool.

Replace every `raise NotImplementedError(...)`; the docstrings say what is wanted. All else is the
engine's own. Each task is checked with the engine's own parts around it, so any order will do.

    minillm labs check 4        run the checks
    minillm labs hint 4.1       a hint; --level 2 and 3 say more

Made from the engine's source by `minillm labs start 4`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from minillm.config import require_int
from minillm.errors import OutOfBlocks
from minillm.memory.block_table import blocks_for


class BlockPool:
    """A fixed set of blocks with reference counts."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = require_int("num_blocks", num_blocks, minimum=0)
        self.block_size = require_int("block_size", block_size, minimum=1)
        self._free = list(range(num_blocks - 1, -1, -1))  # its end is the top of the stack
        self._ref_count = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody owns."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks with at least one owner."""
        return self.num_blocks - len(self._free)

    def ref_count(self, block_id: int) -> int:
        """How many owners `block_id` has; 0 means free."""
        return self._ref_count[self._checked(block_id)]

    def allocate(self, count: int = 1) -> list[int]:
        """Take `count` free blocks, the last one freed first, each with one owner.

        Raises:
            OutOfBlocks: fewer than `count` are free; nothing was allocated.
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
        """Add one owner to each of these used blocks.

        Raises:
            ValueError: one of them is free; nothing was changed.
        """
        ids = list(block_ids)
        self._require_owners(set(ids), times={})
        for block_id in ids:
            self._ref_count[block_id] += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """Remove one owner from each block; a block without owners becomes free.

        Last block first, so that a stack of free blocks hands a sequence's blocks out again in
        the order the sequence held them.

        Raises:
            ValueError: one of them has no owner left to remove; nothing was changed.
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
        """Each of `ids` has at least `times[id]` (or one) owners; checked before any is touched."""
        for block_id in ids:
            if self._ref_count[self._checked(block_id)] < times.get(block_id, 1):
                raise ValueError(f"block {block_id} is not in use: double free, or never allocated")


def group_blocks(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
    """Blocks of n sequences of `total_len` tokens that share the full blocks of their prompt."""
    shared = prompt_len // block_size
    return shared + n * (blocks_for(total_len, block_size) - shared)
