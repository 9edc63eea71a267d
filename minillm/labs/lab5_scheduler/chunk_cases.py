"""Task 5.3, the next chunk of a prompt: cases and known mistakes of `_prefill`."""

from __future__ import annotations

from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import Chunk, StepPlan
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab5_scheduler.costs import CHUNK_COST, CHUNK_TOO_MUCH
from minillm.labs.lab5_scheduler.plan_cases import SequenceState, in_turns_case, step_case, twice_case


class Chunks(Scheduler):
    """The engine's `_prefill`; subclasses replace one part of it."""

    def _size(self, sequence: Sequence, budget: int, total: int) -> int:
        return min(self._config.prefill_chunk, budget, total - sequence.num_computed_tokens)

    def _total(self, sequence: Sequence) -> int:
        return sequence.num_tokens

    def _shortened(self, size: int, room: int) -> int:
        return size if room >= size else room if room > 0 else min(size, self._memory.pool.block_size)

    def _room(self, plan: StepPlan, sequence: Sequence) -> int:
        blocks = len(sequence.block_table.block_ids) + self._memory.available - plan.num_blocks
        return blocks * self._memory.pool.block_size - sequence.num_computed_tokens

    def _extra(self, sequence: Sequence, is_last: bool) -> int:
        return self._copies(sequence) if is_last else 0

    def _prefill(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        start, total = sequence.num_computed_tokens, self._total(sequence)
        size = self._shortened(self._size(sequence, budget, total), self._room(plan, sequence))
        if not self._fits(plan, sequence, start + size, self._extra(sequence, start + size == total)):
            return 0
        plan.prefill.append(Chunk(sequence, start, start + size))
        return size


class WholePrompts(Chunks):
    """No chunks: as many tokens as the step's budget allows."""

    def _size(self, sequence: Sequence, budget: int, total: int) -> int:
        return min(budget, total - sequence.num_computed_tokens)


class OverBudget(Chunks):
    """A full chunk, even if less of the step's budget is left."""

    def _size(self, sequence: Sequence, budget: int, total: int) -> int:
        return min(self._config.prefill_chunk, total - sequence.num_computed_tokens)


class PastTheEnd(Chunks):
    """Full chunks only."""

    def _size(self, sequence: Sequence, budget: int, total: int) -> int:
        return min(self._config.prefill_chunk, budget)


class PromptOnly(Chunks):
    """A preempted sequence's answer so far is left out."""

    def _total(self, sequence: Sequence) -> int:
        return len(sequence.prompt_token_ids)


class TakesFromOthers(Chunks):
    """Always a full chunk, even if only a shorter one fits."""

    def _shortened(self, size: int, room: int) -> int:
        return size


class EmptyChunks(Chunks):
    """If no token fits, an empty chunk."""

    def _shortened(self, size: int, room: int) -> int:
        return min(size, max(room, 0))


class ForgetsCopies(Chunks):
    """The other samples' blocks are not counted."""

    def _extra(self, sequence: Sequence, is_last: bool) -> int:
        return 0


class CopiesEveryChunk(Chunks):
    """The other samples' blocks are counted for every chunk."""

    def _extra(self, sequence: Sequence, is_last: bool) -> int:
        return self._copies(sequence)


class SaysNothing(Chunks):
    """The chunk is not subtracted from the budget."""

    def _prefill(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        super()._prefill(plan, sequence, budget)
        return 0


class WholeOrNothing(Chunks):
    """A full chunk is tried if there is no room for any token."""

    def _shortened(self, size: int, room: int) -> int:
        return min(size, room) if room > 0 else size


class NeverTakes(Chunks):
    """No chunk if there is no room for any token, so older prompts never get the blocks of newer ones."""

    def _prefill(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        return super()._prefill(plan, sequence, budget) if self._room(plan, sequence) > 0 else 0


class OnlyFullBlocks(Chunks):
    """The chunk is cut to full blocks."""

    def _size(self, sequence: Sequence, budget: int, total: int) -> int:
        size, block_size = super()._size(sequence, budget, total), self._memory.pool.block_size
        is_last = sequence.num_computed_tokens + size == total
        return size if is_last else size - size % block_size


class RoomWithoutOwn(Chunks):
    """The free slots in the sequence's own last block are left out."""

    def _room(self, plan: StepPlan, sequence: Sequence) -> int:
        return (self._memory.available - plan.num_blocks) * self._memory.pool.block_size


class RoomOfOthers(Chunks):
    """The blocks that the plan has counted are taken for room."""

    def _room(self, plan: StepPlan, sequence: Sequence) -> int:
        return super()._room(plan, sequence) + plan.num_blocks * self._memory.pool.block_size


class ComputesAtOnce(Chunks):
    """Counts the chunk as computed before it is."""

    def _prefill(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        size = super()._prefill(plan, sequence, budget)
        sequence.num_computed_tokens += size
        return size


class AllocatesAtOnce(Chunks):
    """Allocates the blocks, and counts them."""

    def _prefill(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        size = super()._prefill(plan, sequence, budget)
        sequence.block_table.grow(sequence.num_computed_tokens + size)
        return size


class PlansAnyway(Chunks):
    """The chunk is in the plan even if it does not fit."""

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        return super()._fits(plan, sequence, num_tokens, forks) or sequence.is_prefilling


class CopiesFullBlocks(Chunks):
    """A block for each fork, even if the last block is full."""

    def _extra(self, sequence: Sequence, is_last: bool) -> int:
        return sequence.num_forks if is_last else 0


CHUNK_CASES = (
    step_case("the middle of a prompt", 9, SequenceState(30, 8)),
    step_case("the end of a prompt", 9, SequenceState(30, 24)),
    step_case(
        "three prompts, and a budget of 12 tokens",
        9,
        SequenceState(30, 8),
        SequenceState(30),
        SequenceState(30),
    ),
    step_case("a preempted sequence, with its answer so far", 9, SequenceState(6, 0, 9)),
    step_case("room for half a chunk", 1, SequenceState(30, 8), SequenceState(30, 4)),
    step_case("no room, and a newer sequence", 0, SequenceState(30, 8), SequenceState(30, 8)),
    step_case("three samples, the end of their prompt", 9, SequenceState(10, 8, forks=2)),
    step_case("three samples, the middle of their prompt", 9, SequenceState(30, 8, forks=2)),
    step_case("three samples, a prompt of full blocks", 9, SequenceState(8, 0, forks=2)),
    step_case("room in the last block only", 0, SequenceState(30, 6)),
    step_case("an answer takes the last block but one", 2, SequenceState(8, 8, 1), SequenceState(30, 8)),
    step_case("no room, two newer sequences", 0, *[SequenceState(30, 8)] * 3),
    step_case("no room, the only sequence", 0, SequenceState(30, 8)),
    step_case("a budget that is no full block", 20, *[SequenceState(20, 20, 1)] * 6, SequenceState(30, 4)),
    twice_case("two prompts", 9, SequenceState(30, 8), SequenceState(10)),
    in_turns_case("two prompts", 9, SequenceState(30, 8), SequenceState(10)),
    CHUNK_COST,
)
CHUNK_MISTAKES = (
    Mistake("the prompt is not cut: a chunk has at most `prefill_chunk` tokens", WholePrompts),
    Mistake("the step's budget is ignored: a chunk has at most the rest of the budget", OverBudget),
    Mistake("the last chunk is longer than the rest of the sequence", PastTheEnd),
    Mistake("only the prompt is counted: a preempted sequence must also recompute its answer", PromptOnly),
    Mistake("a newer sequence is preempted, although a shorter chunk would fit", TakesFromOthers),
    Mistake(
        "an empty chunk is planned: if there is no room, call `_fits` for a chunk of one block", EmptyChunks
    ),
    Mistake(
        "blocks for the copies of the other samples are missing: the last chunk needs them", ForgetsCopies
    ),
    Mistake("blocks for the copies are counted with every chunk: only the last needs them", CopiesEveryChunk),
    Mistake(
        "blocks for the copies are counted although the last block is full: use `_copies`", CopiesFullBlocks
    ),
    Mistake(
        "a full chunk is tried if there is no room: try at most one block, so that few blocks are taken from "
        "others",
        WholeOrNothing,
    ),
    Mistake(
        "no chunk is tried if there is no room: try at most one block, `_fits` may take it from a newer "
        "sequence",
        NeverTakes,
    ),
    Mistake("the chunk is cut to full blocks: the whole budget can be used", OnlyFullBlocks),
    Mistake("the room in the sequence's own last block is left out", RoomWithoutOwn),
    Mistake("blocks that the plan has already counted are taken for room", RoomOfOthers),
    Mistake("the chunk is counted as computed when it is planned: it may be dropped again", ComputesAtOnce),
    Mistake("the chunk's blocks are allocated when it is planned: a plan only counts them", AllocatesAtOnce),
    Mistake("a chunk that does not fit is planned: return 0 if `_fits` is false", PlansAnyway),
    Mistake("the chunk's size is not returned, so the next prompt gets the same budget again", SaysNothing),
    *CHUNK_TOO_MUCH,
)
