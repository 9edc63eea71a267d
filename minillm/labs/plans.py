"""The memory of a step's plan, for lab 5: cases and known mistakes of `_prefill` and `_fits`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.prefill import Chunk
from minillm.engine.request import Request, RequestGroup
from minillm.engine.scheduler import Scheduler, StepPlan
from minillm.labs.lab import Case, Mistake
from minillm.labs.serving import BLOCK_SIZE, SIZES, Ask, Step, name, serve
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.observe.events import Events
from minillm.text.detokenizer import NullDetokenizer


def waiting_request(number: int, priority: int = 0, arrival: float = 0.0) -> Request:
    """A request as it is queued: the `number`th one, with one token to compute and one to answer."""
    params, table = SamplingParams(priority=priority), BlockTable(BlockPool(1, 1))
    return Request(
        f"req-{number}", 0, [1], params, 0, 1, table, NullDetokenizer(), arrival=arrival, order=number
    )


@dataclass(frozen=True)
class Seat:
    """A running request: tokens of its prompt, computed, answered so far, other samples to begin."""

    prompt: int
    computed: int = 0
    answered: int = 0
    forks: int = 0
    is_waiting: bool = False

    def take(self, index: int, pool: BlockPool) -> Request:
        """The request, with its blocks; `index` is its place in the line."""
        request = waiting_request(index)
        request.prompt_token_ids = [1] * self.prompt
        request.output_token_ids = [1] * self.answered
        request.num_computed_tokens, request.num_forks = self.computed, self.forks
        request.rank, request.max_tokens, request.block_table = (0, index, 0), 40, BlockTable(pool)
        request.block_table.grow(self.computed)
        return request


def step_case(title: str, num_free: int, *seats: Seat) -> Case:
    """The plan of one step: who runs, how many blocks each takes, who loses its place."""

    def run(scheduler_class: Any) -> Step:
        used = sum(blocks_for(seat.computed, BLOCK_SIZE) for seat in seats)
        pool, events = BlockPool(used + num_free, BLOCK_SIZE), Events()
        memory = KVCacheManager(pool, "lab", events, prefix_caching=False)
        scheduler = scheduler_class(EngineConfig(block_size=BLOCK_SIZE, **SIZES), memory, events)
        requests = [seat.take(i, pool) for i, seat in enumerate(seats)]
        for seat, request in zip(seats, requests, strict=True):
            if seat.is_waiting:
                scheduler.add(RequestGroup(request.group_id, [request]))
            else:
                scheduler.running.append(request)
        plan = scheduler.schedule(0.0)
        takes = " ".join(f"{name(r)}+{count}" for r, count in plan.blocks.items() if count)
        work = ["decode " + " ".join(name(r) for r in plan.decode)] if plan.decode else []
        work += [f"prefill {name(c.request)} {c.start}-{c.end}" for c in plan.prefill]
        waiting = " ".join(name(r) for r in requests if r not in scheduler.running)
        blocks = f"blocks {takes or '+0'} of {memory.available}"
        return Step(
            f"{', '.join(work) or 'nothing'}; {blocks}" + (f"; waiting: {waiting}" if waiting else "")
        )

    return Case(title, run)


def serving_case(title: str, num_blocks: int, *asks: Ask, **config: Any) -> Case:
    """What every step does, in an engine without a model."""
    return Case(title, lambda scheduler: serve({"scheduler": scheduler}, asks, num_blocks, True, **config))


class Chunks(Scheduler):
    """The engine's `_prefill` with one idea exchanged."""

    def _size(self, request: Request, budget: int, total: int) -> int:
        return min(self._config.prefill_chunk, budget, total - request.num_computed_tokens)

    def _total(self, request: Request) -> int:
        return request.num_tokens

    def _shortened(self, size: int, room: int) -> int:
        return size if room >= size else room if room > 0 else min(size, self._memory.pool.block_size)

    def _extra(self, request: Request, is_last: bool) -> int:
        return self._copies(request) if is_last else 0

    def _prefill(self, plan: StepPlan, request: Request, budget: int) -> int:
        start, total = request.num_computed_tokens, self._total(request)
        block_size, owned = self._memory.pool.block_size, len(request.block_table.block_ids)
        room = (owned + self._memory.available - plan.num_blocks) * block_size - start
        size = self._shortened(self._size(request, budget, total), room)
        if not self._fits(plan, request, start + size, self._extra(request, start + size == total)):
            return 0
        plan.prefill.append(Chunk(request, start, start + size))
        return size


class WholePrompts(Chunks):
    """No chunks: as much as the step's budget allows."""

    def _size(self, request: Request, budget: int, total: int) -> int:
        return min(budget, total - request.num_computed_tokens)


class OverBudget(Chunks):
    """A full chunk, whatever is left of the step's budget."""

    def _size(self, request: Request, budget: int, total: int) -> int:
        return min(self._config.prefill_chunk, total - request.num_computed_tokens)


class PastTheEnd(Chunks):
    """Full chunks only."""

    def _size(self, request: Request, budget: int, total: int) -> int:
        return min(self._config.prefill_chunk, budget)


class PromptOnly(Chunks):
    """A preempted request's answer so far is left out."""

    def _total(self, request: Request) -> int:
        return len(request.prompt_token_ids)


class TakesFromOthers(Chunks):
    """A full chunk always, though a shorter one would have fitted."""

    def _shortened(self, size: int, room: int) -> int:
        return size


class EmptyChunks(Chunks):
    """Where nothing fits, a chunk of nothing."""

    def _shortened(self, size: int, room: int) -> int:
        return min(size, max(room, 0))


class ForgetsCopies(Chunks):
    """The other samples' blocks are not counted."""

    def _extra(self, request: Request, is_last: bool) -> int:
        return 0


class CopiesEveryChunk(Chunks):
    """The other samples' blocks are counted for every chunk."""

    def _extra(self, request: Request, is_last: bool) -> int:
        return self._copies(request)


class SaysNothing(Chunks):
    """The chunk costs nothing of the budget."""

    def _prefill(self, plan: StepPlan, request: Request, budget: int) -> int:
        super()._prefill(plan, request, budget)
        return 0


class Victims(Scheduler):
    """The engine's `_fits` with one idea exchanged."""

    def _victim(self, request: Request) -> Request:
        return self.running[-1]

    def _waits(self, request: Request) -> bool:
        return self.running[-1] is request and request.is_prefilling and len(self.running) > 1

    def _available(self) -> int:
        return self._memory.available

    def _promised(self, plan: StepPlan) -> int:
        return plan.num_blocks

    def _fits(self, plan: StepPlan, request: Request, num_tokens: int, forks: int = 0) -> bool:
        needed = self._memory.shortage(request, num_tokens) + forks
        while self._promised(plan) + needed > self._available():
            if self._waits(request):
                return False
            victim = self._victim(request)
            self._preempt(plan, victim)
            if victim is request:
                return False
        plan.take(request, needed)
        return True


class PreemptsOldest(Victims):
    """The request that has run for longest goes."""

    def _victim(self, request: Request) -> Request:
        return self.running[0]


class PreemptsItself(Victims):
    """Whoever needs a block gives up its own."""

    def _victim(self, request: Request) -> Request:
        return request


class NeverWaits(Victims):
    """The newest, in its prefill, is preempted rather than asked to wait."""

    def _waits(self, request: Request) -> bool:
        return False


class WaitsForDecode(Victims):
    """Even one that decodes waits: its blocks help nobody."""

    def _waits(self, request: Request) -> bool:
        return self.running[-1] is request and len(self.running) > 1


class CountsFreeOnly(Victims):
    """Blocks of the prefix cache that nobody uses are left out."""

    def _available(self) -> int:
        return self._memory.pool.num_free


class ForgetsPromises(Victims):
    """Every request is shown the same blocks."""

    def _promised(self, plan: StepPlan) -> int:
        return 0


class ForgetsTheCopies(Victims):
    """The blocks for other samples are asked for by nobody."""

    def _fits(self, plan: StepPlan, request: Request, num_tokens: int, forks: int = 0) -> bool:
        return super()._fits(plan, request, num_tokens, 0)


CHUNK_CASES = (
    step_case("the middle of a prompt", 9, Seat(30, 8)),
    step_case("the end of a prompt", 9, Seat(30, 24)),
    step_case("three prompts, and a budget of 12 tokens", 9, Seat(30, 8), Seat(30), Seat(30)),
    step_case("a preempted request, with its answer so far", 9, Seat(6, 0, 9)),
    step_case("room for half a chunk", 1, Seat(30, 8), Seat(30, 4)),
    step_case("no room, and a newer request", 0, Seat(30, 8), Seat(30, 8)),
    step_case("three samples, the end of their prompt", 9, Seat(10, 8, forks=2)),
    step_case("three samples, the middle of their prompt", 9, Seat(30, 8, forks=2)),
)
CHUNK_MISTAKES = (
    Mistake("the prompt is not cut: a chunk has at most `prefill_chunk` tokens", WholePrompts),
    Mistake("the step's budget is ignored: a chunk has at most what is left of it", OverBudget),
    Mistake("the last chunk goes on behind the end of the sequence", PastTheEnd),
    Mistake("only the prompt is counted: a preempted request computes its answer so far again", PromptOnly),
    Mistake("a newer request loses its blocks, though a shorter chunk would have fitted", TakesFromOthers),
    Mistake(
        "a chunk of no tokens is planned: where there is no room, ask `_fits` for one block", EmptyChunks
    ),
    Mistake(
        "blocks for the copies of the other samples are missing: the last chunk needs them", ForgetsCopies
    ),
    Mistake(
        "blocks for the copies are taken with every chunk: they are needed with the last", CopiesEveryChunk
    ),
    Mistake("the chunk's size is not returned, so the next prompt gets the same budget again", SaysNothing),
)
FIT_CASES = (
    step_case("three answers, one of them has a full block", 0, Seat(8, 8, 1), Seat(6, 6, 1), Seat(6, 6, 1)),
    step_case("the newest one has a full block", 0, Seat(6, 6, 1), Seat(8, 8, 1)),
    step_case("the newest one is in its prefill", 0, Seat(6, 6, 1), Seat(30, 8)),
    step_case("two answers, and one block", 1, Seat(8, 8, 1), Seat(8, 8, 1)),
    step_case("two newer ones must go", 0, Seat(10, 8, forks=1), Seat(4, 4, 1), Seat(4, 4, 1)),
    serving_case("unused blocks of the prefix cache", 12, Ask(30, 2), Ask(34, 4, at=6), Ask(3, 9, at=6)),
)
FIT_MISTAKES = (
    Mistake(
        "the oldest is preempted: the newest goes, or nobody would ever be sure to finish", PreemptsOldest
    ),
    Mistake("whoever needs a block preempts itself: newer requests go first", PreemptsItself),
    Mistake("the newest is preempted in its prefill: it can wait and keep what it has computed", NeverWaits),
    Mistake(
        "a newest that decodes waits, and keeps blocks that nobody else can get: preempt it", WaitsForDecode
    ),
    Mistake("blocks that only the prefix cache holds can be had, too: ask for `available`", CountsFreeOnly),
    Mistake("blocks are promised twice: those already in the plan are gone", ForgetsPromises),
    Mistake("the blocks for other samples (`forks`) are not counted", ForgetsTheCopies),
)
