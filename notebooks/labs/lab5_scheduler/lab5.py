# ruff: noqa: F401 - imports that the finished file uses
"""Lab 5: Continuous batching with chunked prefill.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 5        run the checks
    minillm labs hint 5.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 5`.
"""

from __future__ import annotations

import bisect

from minillm.config import EngineConfig
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.scheduler import AGING_SECONDS, max_running
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import Chunk, Held, StepPlan
from minillm.memory.block_table import blocks_for
from minillm.observe.events import Events


def rank(sequence: Sequence, now: float) -> tuple[int, int, int]:
    """The order of sequences, smallest first: (priority minus age, submission, sample index).

    A smaller priority goes first. The age is the number of complete `AGING_SECONDS` since the arrival: each
    counts as one priority, parts count nothing. Of two equal ones the earlier submission (`order`) goes
    first; of two samples of one request the smaller `index`. The sequence itself does not change.

    Every step computes all ranks, so the work must not grow with the sequence's tokens or with the seconds.
    It may grow with the number of complete `AGING_SECONDS`.
    """
    # Stuck? minillm labs hint 5.1
    raise NotImplementedError("Lab 5.1 rank; hint: minillm labs hint 5.1")


class WaitingLine:
    """Waiting sequences by priority, then by submission. A preempted sequence gets its old place back."""

    def __init__(self) -> None:
        self._lines: dict[int, list[Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def add(self, sequence: Sequence) -> None:
        """Insert `sequence` at its place."""
        line = self._lines.setdefault(sequence.params.priority, [])
        bisect.insort(line, sequence, key=lambda r: (r.order, r.index))

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence, if it is waiting."""
        line = self._lines.get(sequence.params.priority, [])
        place = bisect.bisect_left(line, (sequence.order, sequence.index), key=lambda r: (r.order, r.index))
        if place < len(line) and line[place] is sequence:
            del line[place]
        if not line:
            self._lines.pop(sequence.params.priority, None)

    def first(self, now: float) -> Sequence | None:
        """The sequence with the smallest rank at time `now`, or None if no sequence waits.

        Only looks: the sequence stays in the line. Each line is in order of submission, and all its sequences
        have one priority, so only its first can be the next one.

        The work may grow with the number of waiting sequences as in sorting them, but not faster: none is
        compared with all others, and no line is copied for each sequence.
        """
        # Stuck? minillm labs hint 5.2
        raise NotImplementedError("Lab 5.2 WaitingLine.first; hint: minillm labs hint 5.2")


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
        # Stuck? minillm labs hint 5.5
        raise NotImplementedError("Lab 5.5 Scheduler.schedule; hint: minillm labs hint 5.5")

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
        # Stuck? minillm labs hint 5.4
        raise NotImplementedError("Lab 5.4 Scheduler._fits; hint: minillm labs hint 5.4")

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
        # Stuck? minillm labs hint 5.3
        raise NotImplementedError("Lab 5.3 Scheduler._prefill; hint: minillm labs hint 5.3")

    def _copies(self, sequence: Sequence) -> int:
        """Blocks for the forks: each copies the last block if it is partly full. No block if it is full."""
        is_partial = sequence.num_tokens % self._memory.pool.block_size > 0
        return sequence.num_forks if is_partial else 0

    # Admission ------------------------------------------------------------------------------

    def _admit(self, plan: StepPlan, budget: int, now: float) -> None:
        """Start waiting sequences while there is room; `plan.held` tells what the next one lacks."""
        held: Held | None = "blocks" if plan.preempted else None
        while held is None and (sequence := self.waiting.first(now)) is not None:
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
        if held and len(self.waiting):
            plan.held[held] = len(self.waiting)

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
        # Stuck? minillm labs hint 5.6
        raise NotImplementedError("Lab 5.6 Scheduler._start; hint: minillm labs hint 5.6")

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
