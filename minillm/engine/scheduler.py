"""The scheduler: which sequences run in the next step. Continuous batching over one scarce memory.

    waiting   [ e d ]   one queue per priority           running   a  b  c   oldest first
                 |                                                 |  |  |
                 +--- admission: room for its tokens ------------->+  |  +--- preemption: no free block, so
                      and headroom for the running ones               |       the newest sequence waits again
                                                                      |       and the others get its blocks
    a step:   1. one token for every running sequence past its prefill      (decode)
              2. the rest of the token budget for prompts that have begun   (prefill, in chunks)
              3. and for new ones, while there is room                      (admission)

No memory is reserved in advance: a sequence allocates a block when its last one is full. If no block is free,
the newest running sequence is preempted: its blocks are freed, its tokens are kept, and it recomputes them
later. Recomputing costs arithmetic, which decode leaves idle; swapping would cost bandwidth, which limits
decode. The oldest sequence is never preempted for a newer one, and alone it fits (`admission.py`), so it
always finishes and the engine cannot get stuck. Headroom keeps preemption rare: a sequence is admitted only
if the blocks that the running ones need for their next `headroom_tokens` tokens stay available.

A smaller `priority` goes first. Waiting improves the rank: every `AGING_SECONDS` of waiting count as one
priority. So a much later request cannot overtake an earlier one, and none waits forever.

Papers: Yu et al., "Orca" (OSDI 2022); Agrawal et al., "Sarathi-Serve" (arXiv 2403.02310). Left out:
swapping blocks to slower memory, fairness between tenants.
"""

from __future__ import annotations

import bisect

from minillm.config import EngineConfig
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import Chunk, Held, StepPlan
from minillm.memory.block_table import blocks_for
from minillm.observe.events import Events

AGING_SECONDS = 10.0


def max_running(config: EngineConfig) -> int:
    """The number of sequences that can run at once: each needs at least one token of a step's budget."""
    return min(config.max_num_seqs, config.max_num_batched_tokens)


class WaitingLine:
    """Waiting sequences by priority, then by submission. A preempted sequence gets its old place back."""

    def __init__(self) -> None:
        self._lines: dict[int, list[Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @staticmethod
    def place(sequence: Sequence) -> tuple[int, int]:
        """Where a sequence stands in its line. Replaced parts may give two the same place."""
        return sequence.order, sequence.index

    def add(self, sequence: Sequence) -> None:
        """Insert `sequence` at its place."""
        line = self._lines.setdefault(sequence.params.priority, [])
        bisect.insort(line, sequence, key=self.place)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence, if it is waiting."""
        line = self._lines.get(sequence.params.priority, [])
        place = bisect.bisect_left(line, self.place(sequence), key=self.place)
        while place < len(line) and self.place(line[place]) == self.place(sequence):
            if line[place] is sequence:
                del line[place]
                break
            place += 1
        if not line:
            self._lines.pop(sequence.params.priority, None)

    def first(self, now: float) -> Sequence | None:
        """The sequence with the smallest rank at time `now`, or None if no sequence waits.

        Only looks: the sequence stays in the line. Each line is in order of submission, and all its sequences
        have one priority, so only its first can be the next one.

        The work may grow with the number of waiting sequences as in sorting them, but not faster: none is
        compared with all others, and no line is copied for each sequence.
        """
        heads = [line[0] for line in self._lines.values()]
        return min(heads, key=lambda r: rank(r, now), default=None)


def rank(sequence: Sequence, now: float) -> tuple[int, int, int]:
    """The order of sequences, smallest first: (priority minus age, submission, sample index).

    A smaller priority goes first. The age is the number of complete `AGING_SECONDS` since the arrival: each
    counts as one priority, parts count nothing. Of two equal ones the earlier submission (`order`) goes
    first; of two samples of one request the smaller `index`. The sequence itself does not change.

    Every step computes all ranks, so the work must not grow with the sequence's tokens or with the seconds.
    It may grow with the number of complete `AGING_SECONDS`.
    """
    return (
        sequence.params.priority - int((now - sequence.arrival) / AGING_SECONDS),
        sequence.order,
        sequence.index,
    )


class Scheduler:
    """Continuous batching over the blocks of `memory`; `schedule` is called once a step."""

    headroom_tokens = 32

    def __init__(self, config: EngineConfig, memory: KVCacheManager, events: Events) -> None:
        self._config, self._memory, self._events = config, memory, events
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []  # sorted by rank
        self.current: Sequence | None = None  # being admitted; an exception now ends this sequence only

    def add(self, request: Request) -> None:
        """Queue a request that fits the whole pool. Its first sequence waits; the others fork from it."""
        self.waiting.add(request.sequences[0])

    def fork(self, source: Sequence, child: Sequence) -> None:
        """Run `child`, a fork of `source`. Its place was reserved when `source` was admitted."""
        child.rank = (*source.rank[:2], child.index)
        bisect.insort(self.running, child, key=lambda r: r.rank)

    def requeue(self, sequence: Sequence) -> None:
        """Queue a sequence that has lost its blocks at its old place; it will recompute its tokens."""
        if sequence in self.running:
            self.running.remove(sequence)
        self.waiting.remove(sequence)
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence, running or waiting, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._memory.free(sequence)

    def schedule(self, now: float) -> StepPlan:
        """Plan one step; preempt and admit sequences as memory allows. An idle engine gets an empty plan.

        All ranks are computed for `now`. Then, in the order of `running`: one token for every sequence past
        its prefill; chunks for the sequences in their prefill; new sequences (`_admit`). The first two call
        `_fits`, which may preempt: a sequence preempted in this step is not planned any more.

        A step computes at most `max_num_batched_tokens` tokens. The tokens of decode are the first of them
        (`max_running` keeps their number below), chunks get what is left.

        The work may grow with the number of running sequences as in sorting them, but not faster: nothing
        looks at all sequences again for each of them.

        Returns:
            A new plan, with lists of its own. Only preemption and admission have changed a sequence.
        """
        plan, self.current = StepPlan(), None
        self._order_running(now)
        prefilling, decoding = list[Sequence](), list[Sequence]()
        for sequence in self.running:
            (prefilling if sequence.is_prefilling else decoding).append(sequence)
        for sequence in decoding:
            if sequence not in plan.preempted and self._fits(
                plan, sequence, sequence.num_computed_tokens + 1
            ):
                plan.decode.append(sequence)
        budget = self._config.max_num_batched_tokens - len(plan.decode)
        for sequence in prefilling:
            if budget > 0 and sequence not in plan.preempted:
                budget -= self._prefill(plan, sequence, budget)
        self._admit(plan, budget, now)
        self.current = None
        return plan

    def _order_running(self, now: float) -> None:
        """Compute all ranks for the same time; otherwise a new sequence could outrank an older one."""
        for sequence in self.running:
            sequence.rank = rank(sequence, now)
        self.running.sort(key=lambda r: r.rank)

    # Memory ---------------------------------------------------------------------------------

    def _fits(self, plan: StepPlan, sequence: Sequence, num_tokens: int, forks: int = 0) -> bool:
        """Count the blocks for `num_tokens` tokens in the plan; preempt newer sequences if they are missing.

        Needed are the blocks that the sequence lacks (`shortage`), and `forks` more for the copies of its
        forks. Blocks that the plan has already counted are not available any more. A sequence that needs no
        block always fits.

        While blocks are missing, the newest of `running` is preempted, one after another and no more than
        necessary. If the newest is this sequence: in its prefill, and beside others, it keeps its blocks and
        waits for a later step; else it is preempted itself, so that older ones can use its blocks.

        The work may grow with the number of running sequences, but not faster: nothing looks at all of them
        again for each one that is preempted.

        Returns:
            True if the blocks are counted (`plan.take`). False if the sequence has been preempted or waits.
        """
        needed = self._memory.shortage(sequence, num_tokens) + forks
        while needed and plan.num_blocks + needed > self._memory.available:
            newest = self.running[-1]
            if newest is sequence and sequence.is_prefilling and len(self.running) > 1:
                return False  # it keeps its computed tokens until an older sequence needs the blocks
            self._preempt(plan, newest)
            if newest is sequence:
                return False
        plan.take(sequence, needed)
        return True

    def _preempt(self, plan: StepPlan, sequence: Sequence) -> None:
        self._events.emit("preempt", sequence.request_id, tokens=sequence.num_computed_tokens)
        plan.drop(sequence)
        plan.preempted.append(sequence)
        sequence.num_preemptions += 1
        self._memory.free(sequence)
        self.requeue(sequence)

    # Prefill --------------------------------------------------------------------------------

    def _prefill(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        """Plan the sequence's next chunk; return its number of tokens, 0 if no memory is available.

        A chunk begins at the first token that is not computed. It has at most `prefill_chunk` tokens, at most
        `budget`, and ends with the sequence's last token: after a preemption the answer so far is computed
        again too.

        It is shortened to the tokens for which there is room: in the sequence's own blocks and the available
        ones that the plan has not counted. So no other sequence is preempted for a longer chunk. If there is
        no room for any token, a chunk of at most one block is tried, and `_fits` decides.

        The last chunk also needs a block for the copy of each fork (`_copies`); earlier chunks do not.

        The work may grow with the chunk's tokens and with the number of running sequences. It must not grow
        with the tokens of the whole sequence: then a long prompt would cost its length in every step.
        """
        start, total = sequence.num_computed_tokens, sequence.num_tokens
        size = min(self._config.prefill_chunk, budget, total - start)
        block_size = self._memory.pool.block_size
        owned = len(sequence.block_table.block_ids)
        room = (owned + self._memory.available - plan.num_blocks) * block_size - start
        if room < size:  # a shorter chunk that preempts no other sequence, or as few as possible
            size = room if room > 0 else min(size, block_size)
        is_last = start + size == total
        if not self._fits(plan, sequence, start + size, self._copies(sequence) if is_last else 0):
            return 0
        plan.prefill.append(Chunk(sequence, start, start + size))
        return size

    def _copies(self, sequence: Sequence) -> int:
        """Blocks for the forks: each copies the last block if it is partly full. No block if it is full."""
        is_partial = sequence.num_tokens % self._memory.pool.block_size > 0
        return sequence.num_forks if is_partial else 0

    # Admission ------------------------------------------------------------------------------

    def _admit(self, plan: StepPlan, budget: int, now: float) -> None:
        """Start waiting sequences while there is room; `plan.held` tells what the next one lacks."""
        held: Held | None = None
        while not (held or plan.preempted) and (sequence := self.waiting.first(now)) is not None:
            self.current = sequence
            places = sum(1 + r.num_forks for r in self.running) + 1 + sequence.num_forks
            if budget <= 0:
                held = "tokens"
            elif places > max_running(self._config):
                held = "seqs"
            elif not self._start(plan, sequence):
                held = "blocks"
            else:
                self.waiting.remove(sequence)
                sequence.rank = rank(sequence, now)
                bisect.insort(self.running, sequence, key=lambda r: r.rank)
                self._announce(sequence, now)
                budget -= self._prefill(plan, sequence, budget)
        if (held or plan.preempted) and len(self.waiting):
            plan.held[held or "blocks"] = len(self.waiting)

    def _start(self, plan: StepPlan, sequence: Sequence) -> bool:
        """Give the sequence its cached blocks, if there is room for the rest; return whether there is.

        Needed are blocks for all its tokens and one more, without the cached blocks that were found, and for
        the copies of its forks (`_copies`). Available is what is left after the found blocks have been
        acquired (`available_without`) and the plan has got its blocks.

        The blocks of `_headroom` must stay free after that, so that the running sequences can go on without
        preemption. If no sequence runs, headroom is not required: the sequence would wait forever. If there
        is no room, nothing changes.

        The work may grow with the number of found blocks and of running sequences, but not faster: `match`
        and `_headroom` already look at all of them, so they are called a few times at most.
        """
        found = self._memory.match(sequence)
        size = self._memory.pool.block_size
        needed = blocks_for(sequence.num_tokens + 1, size) - len(found) + self._copies(sequence)
        left = self._memory.available_without(found) - plan.num_blocks - needed
        if left < self._headroom() and (self.running or left < 0):
            return False
        self._memory.start_from(sequence, found)
        return True

    def _headroom(self) -> int:
        """Blocks that the running sequences need for their next `headroom_tokens` tokens."""
        size = self._memory.pool.block_size
        blocks = 0
        for r in self.running:
            soon = min(r.num_tokens + self.headroom_tokens, len(r.prompt_token_ids) + r.max_tokens)
            blocks += max(0, blocks_for(soon, size) - len(r.block_table.block_ids))
        return blocks

    def _announce(self, sequence: Sequence, now: float) -> None:
        cached = sequence.num_computed_tokens
        if sequence.num_preemptions:
            self._events.emit("resume", sequence.request_id, cached_tokens=cached)
        else:
            waited = now - sequence.arrival
            self._events.emit("admit", sequence.request_id, at=now, cached_tokens=cached, waited=waited)
            sequence.admitted, sequence.num_cached_tokens = now, cached
