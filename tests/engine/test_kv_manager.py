"""What the KV manager notes of a sequence: it goes when the blocks go, and what is shared is counted once."""

from __future__ import annotations

from typing import Any

import pytest

from minillm import SamplingParams
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.sequence import Sequence
from minillm.errors import OutOfBlocks, PartError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.memory.prefix_cache import PrefixCache
from minillm.observe.events import Event, Events
from minillm.text.detokenizer import NullDetokenizer

SIZE = 4


class Memory(KVCacheManager):
    """Over a pool of its own, every event kept. `draft` names a draft model."""

    def __init__(self, num_blocks: int, draft: str | None = "draft", prefix_caching: bool = True) -> None:
        events, self.trace = Events(), list[Event]()
        events.listeners.append(self.trace.append)
        super().__init__(BlockPool(num_blocks, SIZE), "envelope", events, prefix_caching, draft=draft)

    def sequence(self, num_tokens: int, salt: int = 0) -> Sequence:
        ids = [salt * 100 + i for i in range(num_tokens)]
        table = BlockTable(self.pool)
        return Sequence(f"r{salt}", 0, ids, SamplingParams(), 0, 99, table, NullDetokenizer())

    def computed(self, num_tokens: int, salt: int = 0, drafted: int = 0) -> Sequence:
        """A sequence with its prompt in the cache, `drafted` tokens of it in the draft model's too."""
        sequence = self.sequence(num_tokens, salt)
        self.allocate_slots(sequence, num_tokens)
        sequence.num_computed_tokens, sequence.draft.num_computed_tokens = num_tokens, drafted
        self.publish(sequence)
        return sequence

    def counts(self, kind: str) -> list[int]:
        self._events.deliver()
        return [event["blocks"] for event in self.trace if event.kind == kind]


def noted(sequence: Sequence) -> tuple[Any, ...]:
    draft, cached = sequence.draft, sequence.cached
    return (
        sequence.num_computed_tokens,
        sequence.block_table.block_ids,
        (cached.last, cached.num_blocks),
        (draft.num_computed_tokens, draft.num_published, draft.branch_blocks),
    )


NOTHING = (0, [], (None, 0), (0, 0, []))


@pytest.mark.parametrize("how", ["free", "reset"])
def test_a_sequence_without_blocks_has_nothing_computed(how: str) -> None:
    """Neither by the model nor by the draft model, nor published, nor branches."""
    memory = Memory(8)
    sequence = memory.computed(10, drafted=9)
    memory.allocate_branches(sequence, 12, 2)
    assert all(a != b for a, b in zip(noted(sequence), NOTHING, strict=True))
    digests = list(sequence.cached.digests)
    if how == "free":
        memory.free(sequence)
    else:
        memory.reset(BlockPool(8, SIZE), [sequence])
    assert noted(sequence) == NOTHING and sequence.cached.digests == digests
    assert memory.available == 8 and memory.num_unused == (2 if how == "free" else 0)
    memory.free(sequence)  # once more: nothing to give back, and nothing is reported
    assert memory.counts("free") == [4] and memory.counts("evict") == ([] if how == "free" else [2])


def test_matched_blocks_are_counted_once() -> None:
    """Unused ones are among what can be had, until they are taken; those in use are not."""
    memory = Memory(6)
    first = memory.computed(12)
    second = memory.sequence(13)
    found = memory.match(second)
    assert [block.block_id for block in found] == first.block_table.block_ids
    assert memory.available == memory.available_without(found) == 3, "in use by the first"
    memory.free(first)
    assert memory.available == 6 and memory.available_without(found) == 3
    memory.start_from(second, found)
    assert memory.available == 3 and second.num_computed_tokens == 12
    assert memory.shortage(second, 12) == 0 and memory.shortage(second, 13) == 1
    assert memory.counts("share") == [3]


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 2)]
)
def test_a_token_is_left_to_compute(num_tokens: int, expected: int) -> None:
    memory = Memory(6)
    memory.free(memory.computed(8))
    assert len(memory.match(memory.sequence(num_tokens))) == expected


def test_events_say_what_changed() -> None:
    memory = Memory(8)
    sequence = memory.computed(10)
    memory.allocate_slots(sequence, 12)
    memory.allocate_slots(sequence, 3)
    assert memory.counts("alloc") == [3], "there was room: nothing was taken, and nothing is reported"
    sequence.num_computed_tokens = 11
    memory.publish(sequence)
    assert memory.counts("publish") == [2]
    sequence.output_token_ids += [7, 8]
    sequence.num_computed_tokens = 12
    memory.publish(sequence)
    memory.publish(sequence)
    assert memory.counts("publish") == [2, 1]


def test_a_digest_is_of_all_that_came_before() -> None:
    """Two chains that differ in the middle have other digests behind it, so no candidate is ever refused."""
    memory = Memory(16)
    first, second = memory.computed(16), memory.sequence(17)
    second.prompt_token_ids[5] = 999
    assert [block.block_id for block in memory.match(second)] == first.block_table.block_ids[:1]
    memory.allocate_slots(second, 16)
    second.num_computed_tokens = 16
    memory.publish(second)
    assert len({*first.cached.digests, *second.cached.digests}) == 7
    assert memory.cache is not None and memory.cache.false_matches == 0


@pytest.mark.parametrize(
    "made", [lambda ids: ids[:-1], lambda ids: [*ids, 0], lambda ids: [*ids[:-1], 99], tuple]
)
def test_a_cache_that_gives_other_blocks_than_asked_for_is_refused(made: Any) -> None:
    class Wrong(PrefixCache):
        def acquire(self, blocks: Any) -> Any:
            return made(super().acquire(blocks))

    memory = Memory(8)
    memory.free(memory.computed(8))
    memory.cache.__class__ = Wrong  # type: ignore[union-attr]
    sequence = memory.sequence(9)
    with pytest.raises(PartError, match="acquire"):
        memory.start_from(sequence, memory.match(sequence))


def test_only_what_is_missing_is_evicted() -> None:
    memory = Memory(6)
    memory.free(memory.computed(8))
    memory.free(memory.computed(8, salt=1))
    assert memory.pool.num_free == 2
    memory.make_room(2)
    assert memory.counts("evict") == []
    memory.make_room(3)
    assert memory.counts("evict") == [1] and memory.pool.num_free == 3
    memory.allocate_slots(memory.sequence(16, salt=2), 16)
    assert memory.counts("evict") == [1, 1] and memory.pool.num_free == 0 and memory.num_unused == 2


@pytest.mark.parametrize("drafted", [0, 3, 4, 7, 8, 11, 12])
def test_how_far_the_draft_is_comes_back_with_the_blocks(drafted: int) -> None:
    """What the draft had written of a block is known to whoever takes the block, and to nobody else."""
    memory = Memory(8)
    memory.free(memory.computed(12, drafted=drafted))
    again = memory.sequence(13)
    memory.start_from(again, memory.match(again))
    full = drafted // SIZE
    assert (again.draft.num_published, again.draft.num_computed_tokens) == (full, full * SIZE)
    again.num_computed_tokens = again.draft.num_computed_tokens = 12
    memory.publish(again)
    assert again.draft.num_published == 3 and all(b.draft for b in memory.cache._by_block.values())  # type: ignore[union-attr]


def test_another_draft_model_has_written_nothing() -> None:
    memory = Memory(8)
    memory.free(memory.computed(8, drafted=8))
    memory._draft = "another"
    again = memory.sequence(9)
    memory.start_from(again, memory.match(again))
    assert again.num_computed_tokens == 8 and again.draft.num_computed_tokens == 0


def test_who_publishes_second_takes_the_first_ones_block() -> None:
    """And stands as far in the draft as that block does."""
    memory = Memory(8)
    first, second = memory.computed(8, drafted=4), memory.sequence(9)
    memory.allocate_slots(second, 9)
    own = list(second.block_table.block_ids)
    second.num_computed_tokens = second.draft.num_computed_tokens = 9
    memory.publish(second)
    assert second.block_table.block_ids == [*first.block_table.block_ids, own[2]]
    assert second.draft.num_computed_tokens == SIZE
    assert [memory.pool.ref_count(i) for i in own] == [0, 0, 1]
    assert [memory.pool.ref_count(i) for i in first.block_table.block_ids] == [3, 3]


@pytest.mark.parametrize(("num_tokens", "copied"), [(8, 0), (9, 1), (3, 1), (4, 0)])
def test_a_fork_shares_full_blocks(num_tokens: int, copied: int) -> None:
    memory = Memory(8)
    source, child = memory.computed(num_tokens, drafted=num_tokens), memory.sequence(num_tokens)
    copy = memory.fork(source, child, num_tokens)
    full, blocks = num_tokens // SIZE, source.block_table.block_ids
    assert child.block_table.block_ids[:full] == blocks[:full]
    assert len(child.block_table.block_ids) == len(blocks) == full + copied
    assert copy == ((blocks[-1], child.block_table.block_ids[-1]) if copied else None)
    assert child.num_computed_tokens == num_tokens and child.cached.num_blocks == full
    assert child.cached.last is source.cached.last
    assert child.draft.num_computed_tokens == full * SIZE, "the copy is made of the model's keys alone"
    assert child.draft.num_published == source.draft.num_published == full
    assert memory.counts("copy_on_write") == [1] * copied


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_the_branch_that_stands_is_kept(winner: int) -> None:
    memory = Memory(12, prefix_caching=False)
    sequence = memory.computed(10)
    tables = [list(table) for table in memory.allocate_branches(sequence, 14, 3)]
    assert [len(set(a) & set(b)) for a, b in ((tables[0], tables[1]), (tables[1], tables[2]))] == [2, 2]
    assert sequence.num_block_references == 4 + 2 + 2
    memory.rollback(sequence, 11, winner)
    assert sequence.block_table.block_ids == tables[winner][:3]
    assert memory.pool.num_used == 3 == sequence.num_block_references
    assert memory.counts("alloc") == [3, 1, 4] and memory.counts("free") == [5]
    memory.rollback(sequence, 11)
    assert memory.counts("free") == [5], "nothing more is given back, and nothing reported"


def test_branches_that_do_not_fit_change_nothing() -> None:
    memory = Memory(6, prefix_caching=False)
    sequence = memory.computed(10)
    with pytest.raises(OutOfBlocks):
        memory.allocate_branches(sequence, 14, 3)  # one more for itself, then two for each other branch
    assert sequence.draft.branch_blocks == []
    assert memory.pool.num_used == len(sequence.block_table.block_ids) == 3
