# ruff: noqa: F401 - imports that the finished file uses
"""Lab 4: The block pool.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 4        run the checks
    minillm labs hint 4.1       a hint; --level 2 and --level 3 give more detail

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
        # Stuck? minillm labs hint 4.1
        raise NotImplementedError("Lab 4.1 BlockPool.allocate; hint: minillm labs hint 4.1")

    def share(self, block_ids: Iterable[int]) -> None:
        """Add one owner to each of these used blocks; a block that is listed twice gets two.

        The argument may be an iterator, which can be read only once.

        Raises:
            ValueError: one of them is free; nothing was changed.
            IndexError: one of them does not exist; nothing was changed.
        """
        # Stuck? minillm labs hint 4.2
        raise NotImplementedError("Lab 4.2 BlockPool.share; hint: minillm labs hint 4.2")

    def free(self, block_ids: Iterable[int]) -> None:
        """Remove one owner from each block; a block without owners becomes free.

        The last block is freed first. So the stack of free blocks returns the blocks of a sequence in the
        order in which the sequence held them. A block that is listed twice loses two owners. The argument may
        be an iterator; a list stays as it is. The cost depends only on the number of blocks listed.

        Raises:
            ValueError: one of them has no owner to remove; nothing was changed.
            IndexError: one of them does not exist; nothing was changed.
        """
        # Stuck? minillm labs hint 4.3
        raise NotImplementedError("Lab 4.3 BlockPool.free; hint: minillm labs hint 4.3")

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
        # Stuck? minillm labs hint 4.4
        raise NotImplementedError("Lab 4.4 BlockPool._require_owners; hint: minillm labs hint 4.4")


def group_blocks(prompt_len: int, total_len: int, n: int, block_size: int) -> int:
    """Blocks for n sequences of `total_len` tokens each, prompt included, with a common prompt.

    They share the blocks that the prompt fills. Each has its own copy of a block that the prompt
    fills in part, because it continues there.

    The work may grow with the number of blocks and with n, but not with the number of tokens.
    """
    # Stuck? minillm labs hint 4.5
    raise NotImplementedError("Lab 4.5 group_blocks; hint: minillm labs hint 4.5")
