"""Task 5.3, the next chunk of a prompt: cases and known mistakes of `_prefill`."""

from __future__ import annotations

from minillm.engine.scheduler import Chunk, Scheduler, StepPlan
from minillm.engine.sequence import Sequence
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab5_scheduler.plan_cases import SequenceState, step_case


class Chunks(Scheduler):
    """The engine's `_prefill`; subclasses replace one part of it."""

    def _size(self, sequence: Sequence, budget: int, total: int) -> int:
        return min(self._config.prefill_chunk, budget, total - sequence.num_computed_tokens)

    def _total(self, sequence: Sequence) -> int:
        return sequence.num_tokens

    def _shortened(self, size: int, room: int) -> int:
        return size if room >= size else room if room > 0 else min(size, self._memory.pool.block_size)

    def _extra(self, sequence: Sequence, is_last: bool) -> int:
        return self._copies(sequence) if is_last else 0

    def _prefill(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        start, total = sequence.num_computed_tokens, self._total(sequence)
        block_size, owned = self._memory.pool.block_size, len(sequence.block_table.block_ids)
        room = (owned + self._memory.available - plan.num_blocks) * block_size - start
        size = self._shortened(self._size(sequence, budget, total), room)
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
    Mistake("the chunk's size is not returned, so the next prompt gets the same budget again", SaysNothing),
)
