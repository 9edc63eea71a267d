"""Contract C4: blocks are never lost and never shared wrongly. The pool is compared with a plain dict.

The dict maps each block to its number of owners. The same test machine must catch two faulty pools: one does
not count an owner, the other keeps part of a failed allocation.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from minillm.errors import OutOfBlocks, UsageError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for, slot_mapping

NUM_BLOCKS = 6
SETTINGS = settings(max_examples=60, stateful_step_count=30, suppress_health_check=list(HealthCheck))


class PoolMachine(RuleBasedStateMachine):
    """Calls allocate, share and free in any order. Each list in `holdings` is one owner's blocks."""

    pool_type: type[BlockPool] = BlockPool
    holdings = Bundle("holdings")

    def __init__(self) -> None:
        super().__init__()
        self.pool = self.pool_type(NUM_BLOCKS, 4)
        self.owners = dict.fromkeys(range(NUM_BLOCKS), 0)

    @rule(target=holdings, count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> list[int]:
        free = [block for block, owners in self.owners.items() if owners == 0]
        if count > len(free):
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            return []
        taken = self.pool.allocate(count)
        assert len(set(taken)) == count and set(taken) <= set(free)
        self.owners |= dict.fromkeys(taken, 1)
        return taken

    @rule(target=holdings, blocks=holdings)
    def share(self, blocks: list[int]) -> list[int]:
        if any(self.owners[block] == 0 for block in blocks):  # it has been freed by its other owner
            with pytest.raises(ValueError):
                self.pool.share(blocks)
            return []
        self.pool.share(blocks)
        for block in blocks:
            self.owners[block] += 1
        return list(blocks)

    @rule(blocks=consumes(holdings))
    def free(self, blocks: list[int]) -> None:
        self.pool.free(blocks)
        for block in blocks:
            self.owners[block] -= 1

    @rule(block=st.integers(0, NUM_BLOCKS - 1))
    def free_more_often_than_owned(self, block: int) -> None:
        with pytest.raises(ValueError):
            self.pool.free([block] * (self.owners[block] + 1))

    @invariant()
    def agrees_with_the_oracle(self) -> None:
        assert {block: self.pool.ref_count(block) for block in range(NUM_BLOCKS)} == self.owners
        used = sum(owners > 0 for owners in self.owners.values())
        assert (self.pool.num_used, self.pool.num_free) == (used, NUM_BLOCKS - used)


class ForgetsOwners(BlockPool):
    def share(self, block_ids):
        super().share(list(block_ids)[1:])


class KeepsHalfAnAllocation(BlockPool):
    def allocate(self, count=1):
        if count > self.num_free:
            super().allocate(self.num_free)
        return super().allocate(count)


def test_pool_agrees_with_a_dict() -> None:
    run_state_machine_as_test(PoolMachine, settings=SETTINGS)


@pytest.mark.parametrize("mutant", [ForgetsOwners, KeepsHalfAnAllocation])
def test_control_the_machine_catches_mutants(mutant: type[BlockPool]) -> None:
    broken = type("BrokenMachine", (PoolMachine,), {"pool_type": mutant})
    with pytest.raises((AssertionError, ValueError, OutOfBlocks, BaseExceptionGroup)):
        run_state_machine_as_test(broken, settings=settings(SETTINGS, print_blob=False))


def test_failed_operations_change_nothing() -> None:
    pool = BlockPool(3, 4)
    a = pool.allocate(2)
    before = (pool.num_free, [pool.ref_count(i) for i in range(3)])
    for attempt in (
        lambda: pool.allocate(2),
        lambda: pool.free([a[0], a[0]]),  # twice in one call
        lambda: pool.free([a[0], 2]),  # the second was never allocated, so the first must stay allocated
        lambda: pool.share([a[0], 2]),
        lambda: pool.free([99]),
        lambda: pool.free([-1]),
        lambda: pool.allocate(-1),
        lambda: pool.allocate(True),
    ):
        with pytest.raises((OutOfBlocks, ValueError, IndexError)):
            attempt()
        assert (pool.num_free, [pool.ref_count(i) for i in range(3)]) == before
    pool.free(a)
    with pytest.raises(ValueError):
        pool.free(a)
    assert pool.num_free == 3
    assert sorted(pool.allocate(3)) == [0, 1, 2]


def test_exhausted_error_says_how_many() -> None:
    with pytest.raises(OutOfBlocks, match=r"5 KV blocks.*3 of 3 free") as caught:
        BlockPool(3, 4).allocate(5)
    assert caught.value.exit_code == 7 and caught.value.hint


def test_freed_blocks_come_back_in_order() -> None:
    pool = BlockPool(5, 4)
    held = pool.allocate(4)
    pool.free(held)
    assert pool.allocate(4) == held


# ---- block tables ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 7))
def test_grow_owns_exactly_what_is_needed(sizes: list[int], block_size: int) -> None:
    pool = BlockPool(50, block_size)
    table, longest = BlockTable(pool), 0
    for size in sizes:
        before = list(table.block_ids)
        table.grow(size)
        longest = max(longest, size)
        assert table.block_ids[: len(before)] == before, "written tokens stay in their blocks"
        assert len(table.block_ids) == blocks_for(longest, block_size) == pool.num_used
        assert len(table.block_ids) * block_size - longest < block_size, "at most block_size - 1 wasted"
    table.release()
    table.release()
    assert pool.num_free == 50


def test_grow_that_fails_leaves_the_table() -> None:
    pool = BlockPool(3, 4)
    table = BlockTable(pool)
    table.grow(5)
    held = list(table.block_ids)
    with pytest.raises(OutOfBlocks):
        table.grow(13)
    assert table.block_ids == held and pool.num_free == 1


@given(st.integers(1, 30), st.integers(1, 8))
def test_fork_shares_full_blocks_only(num_tokens: int, block_size: int) -> None:
    pool = BlockPool(100, block_size)
    parent = BlockTable(pool)
    parent.grow(num_tokens)
    child, copy = parent.fork(num_tokens)
    full = num_tokens // block_size
    assert child.block_ids[:full] == parent.block_ids[:full]
    assert [pool.ref_count(b) for b in parent.block_ids[:full]] == [2] * full
    if num_tokens % block_size:
        assert copy == (parent.block_ids[full], child.block_ids[full])
        assert copy[0] != copy[1] and pool.ref_count(copy[0]) == pool.ref_count(copy[1]) == 1
    else:
        assert copy is None
    parent.release()
    assert all(pool.ref_count(b) == 1 for b in child.block_ids), "the child outlives its parent"
    child.release()
    assert pool.num_free == 100


def test_fork_that_cannot_share_takes_nothing() -> None:
    """A block of the table was freed behind its back: the block for the copy goes back."""
    pool = BlockPool(6, 4)
    table = BlockTable(pool)
    table.grow(6)
    last_freed = pool.allocate(1)  # the copy's block
    pool.free(table.block_ids[:1])
    pool.free(last_freed)
    with pytest.raises(ValueError, match="not in use"):
        table.fork(6)
    assert pool.num_free == 5


def test_fork_without_room_shares_nothing() -> None:
    pool = BlockPool(2, 4)
    parent = BlockTable(pool)
    parent.grow(6)
    with pytest.raises(OutOfBlocks):
        parent.fork(6)
    assert [pool.ref_count(b) for b in parent.block_ids] == [1, 1]


@given(st.data(), st.integers(1, 9))
def test_slot_mapping_is_address_translation(data: st.DataObject, block_size: int) -> None:
    """Compare with the definition: position i is element i of all slots of the table in order."""
    table = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True))
    slots = [block * block_size + offset for block in table for offset in range(block_size)]
    positions = data.draw(st.lists(st.integers(0, len(slots) - 1)))
    assert slot_mapping(table, positions, block_size) == [slots[p] for p in positions]
    assert len(set(slot_mapping(table, range(len(slots)), block_size))) == len(slots), "no two share a slot"


@pytest.mark.parametrize("positions", [[-1], [3, -8], range(-2, 3), [8], [0, 40]])
def test_a_position_outside_the_table_has_no_slot(positions: Sequence[int]) -> None:
    with pytest.raises(IndexError):
        slot_mapping([8, 3], positions, 4)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(-1, 4), (4, 0), (2.0, 4), (4, True)])
def test_impossible_pools_are_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(UsageError):
        BlockPool(num_blocks, block_size)
