"""Lab 5: continuous batching with chunked prefill. Who runs in the next step, and who has to wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from minillm.config import EngineConfig, SamplingParams
from minillm.detokenizer import NullDetokenizer
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.prefill import Chunk
from minillm.engine.request import Request, RequestGroup
from minillm.engine.scheduler import AGING_SECONDS, Scheduler, StepPlan, WaitingLine, rank
from minillm.labs.lab import Case, Lab, Mistake, Part, Task
from minillm.labs.serving import BLOCK_SIZE, SIZES, Ask, Step, name, serve
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.observe.events import Events

SCHEDULER = "minillm.engine.scheduler"

# --- 5.1, 5.2 whose turn it is ------------------------------------------------------------------------

Turn = tuple[int, float]  # priority, arrival


def waiting_requests(*turns: Turn) -> list[Request]:
    """Requests with these priorities and arrivals, submitted in this order."""
    return [
        Request(
            f"req-{i}",
            0,
            [1],
            SamplingParams(priority=priority),
            0,
            1,
            BlockTable(BlockPool(1, 1)),
            NullDetokenizer(),
            arrival=arrival,
            order=i,
        )
        for i, (priority, arrival) in enumerate(turns)
    ]


def rank_case(title: str, now: float, *turns: Turn) -> Case:
    """The order of the requests by their ranks; the second of two samples comes after the first."""

    def run(rank_of: Callable[..., Any]) -> list[str]:
        requests = waiting_requests(*turns)
        requests.insert(0, replace(requests[0], index=1))
        return [name(r) for r in sorted(requests, key=lambda r: rank_of(r, now))]

    return Case(f"{title}: {_shown(turns)} at {now:g} s", run)


def first_case(title: str, now: float, *turns: Turn) -> Case:
    """Whom a waiting line calls, until nobody is left."""

    def run(line_class: Any) -> list[Any]:
        line, called = line_class(), list[Any]()
        for request in waiting_requests(*turns):
            line.add(request)
        while (request := line.first(now)) is not None and len(called) < len(turns):
            called.append(name(request))
            line.remove(request)
        return [called, request]

    return Case(f"{title}: {_shown(turns)} at {now:g} s", run)


def _shown(turns: Sequence[Turn]) -> str:
    return ", ".join(f"{'abcdefgh'[i]} of priority {p} since {t:g} s" for i, (p, t) in enumerate(turns))


def rank_with(age: Callable[[float], Any], sign: int = 1) -> Callable[..., Any]:
    """`rank` with another idea of age (in agings), or of which priority is high."""

    def wrong(request: Request, now: float) -> tuple[Any, int, int]:
        aged = age((now - request.arrival) / AGING_SECONDS)
        return sign * request.params.priority - aged, request.order, request.index

    return wrong


class CallsTheOldest(WaitingLine):
    """Of all that wait, the first submitted."""

    def first(self, now: float) -> Request | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: r.order, default=None)


class CallsTheFirstLine(WaitingLine):
    """The best priority always goes first, however long others have waited."""

    def first(self, now: float) -> Request | None:
        return self._lines[min(self._lines)][0] if self._lines else None


class CallsTheNewest(WaitingLine):
    """Looks at the wrong end of every line."""

    def first(self, now: float) -> Request | None:
        return min((line[-1] for line in self._lines.values()), key=lambda r: rank(r, now), default=None)


class CallsByOldRank(WaitingLine):
    """By the rank that a request is given when it is admitted."""

    def first(self, now: float) -> Request | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: r.rank, default=None)


class ExpectsSomebody(WaitingLine):
    """Fails where nobody waits."""

    def first(self, now: float) -> Request | None:
        return min((line[0] for line in self._lines.values()), key=lambda r: rank(r, now))


RANK_CASES = (
    rank_case("alike", 5, (0, 1), (0, 2), (0, 3)),
    rank_case("priorities", 5, (2, 0), (0, 1), (1, 2)),
    rank_case("somebody has waited long", 33, (2, 2), (0, 31), (2, 25)),
    rank_case("not quite long enough", 30, (2, 11), (0, 29), (1, 19)),
)
RANK_MISTAKES = (
    Mistake("priorities are ignored", lambda r, now: (r.order, r.index)),
    Mistake("a larger priority goes first here; the smaller one does", rank_with(int, sign=-1)),
    Mistake("waiting does not age: a low priority can wait for ever", rank_with(lambda age: 0)),
    Mistake("waiting makes a request later: take the age off its priority", rank_with(lambda age: -int(age))),
    Mistake("age counts in whole priorities: a part of AGING_SECONDS is worth nothing", rank_with(float)),
    Mistake(
        "samples of one request are not told apart: the sample index comes last",
        lambda r, now: rank(r, now)[:2],
    ),
)
FIRST_CASES = (
    first_case("one line", 5, (0, 1), (0, 2), (0, 3)),
    first_case("three lines", 5, (2, 0), (0, 1), (1, 2), (0, 3)),
    first_case("somebody has waited long", 33, (2, 2), (0, 31), (1, 32)),
    first_case("nobody", 5),
)
FIRST_MISTAKES = (
    Mistake("the first submitted is called, whatever its priority", CallsTheOldest),
    Mistake(
        "a line of low priority is never called while others have requests: compare ranks at `now`",
        CallsTheFirstLine,
    ),
    Mistake("the newest of a line is called: a line is in order of submission", CallsTheNewest),
    Mistake("`request.rank` is from its last admission; ask `rank(request, now)`", CallsByOldRank),
    Mistake("nobody may be waiting: None is the answer then", ExpectsSomebody),
)

# --- 5.3 to 5.6 the plan of a step --------------------------------------------------------------------


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
        request = waiting_requests(*[(0, 0.0)] * (index + 1))[index]
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


class Steps(Scheduler):
    """Pieces of `schedule`, for schedulers that put them together differently."""

    def _plan_decode(self, plan: StepPlan, requests: Sequence[Request] | None = None) -> int:
        for request in requests or [r for r in self.running if not r.is_prefilling]:
            if request in self.running and self._fits(plan, request, request.num_computed_tokens + 1):
                plan.decode.append(request)
        return self._config.max_num_batched_tokens - len(plan.decode)

    def _plan_prefill(self, plan: StepPlan, budget: int) -> int:
        for request in [r for r in self.running if r.is_prefilling]:
            if budget > 0 and request in self.running:
                budget -= self._prefill(plan, request, budget)
        return budget


class PrefillFirst(Steps):
    """Prompts first, answers with what is left of the budget."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        decoding = [r for r in self.running if not r.is_prefilling]
        budget = self._plan_prefill(plan, self._config.max_num_batched_tokens)
        if decoding[:budget]:
            self._plan_decode(plan, decoding[:budget])
        self._admit(plan, budget - len(plan.decode), now)
        return plan


class OneOrTheOther(Steps):
    """Answers wait while a prompt is prefilled."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        budget = self._plan_prefill(plan, self._config.max_num_batched_tokens)
        self._admit(plan, budget, now)
        if not plan.prefill:
            self._plan_decode(plan)
        return plan


class AdmitsFirst(Steps):
    """New prompts before those that have begun."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        budget = self._plan_decode(plan)
        begun = [r for r in self.running if r.is_prefilling]
        self._admit(plan, budget, now)
        budget -= sum(chunk.end - chunk.start for chunk in plan.prefill)
        for request in begun:
            if budget > 0 and request in self.running:
                budget -= self._prefill(plan, request, budget)
        return plan


class StaticBatches(Steps):
    """Nobody is let in before everybody has finished."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        was_idle = not self.running
        budget = self._plan_prefill(plan, self._plan_decode(plan))
        if was_idle:
            self._admit(plan, budget, now)
        return plan


class DecodeIsFree(Steps):
    """Answers cost nothing of the budget."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        self._plan_decode(plan)
        self._admit(plan, self._plan_prefill(plan, self._config.max_num_batched_tokens), now)
        return plan


class RunsThePreempted(Steps):
    """Goes on with a request that an older one has preempted in this very step."""

    def schedule(self, now: float) -> StepPlan:
        plan = StepPlan()
        for request in [r for r in self.running if not r.is_prefilling]:
            if self._fits(plan, request, request.num_computed_tokens + 1):
                plan.decode.append(request)
        budget = self._config.max_num_batched_tokens - len(plan.decode)
        self._admit(plan, self._plan_prefill(plan, budget), now)
        return plan


class Doors(Scheduler):
    """The engine's `_start` with one idea exchanged."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        needed = blocks_for(request.num_tokens + 1, self._memory.pool.block_size) - len(found)
        return self._memory.available_without(found) - plan.num_blocks - needed - self._copies(request)

    def _is_open(self, left: int) -> bool:
        return left >= self._headroom() or (not self.running and left >= 0)

    def _start(self, plan: StepPlan, request: Request) -> bool:
        found = self._memory.match(request)
        if not self._is_open(self._left(plan, request, found)):
            return False
        self._memory.start_from(request, found)
        return True


class NoHeadroom(Doors):
    """Lets in whoever fits now."""

    def _is_open(self, left: int) -> bool:
        return left >= 0


class AlwaysHeadroom(Doors):
    """Keeps blocks back even where nobody runs."""

    def _is_open(self, left: int) -> bool:
        return left >= max(self._headroom(), 2)


class LooksAtNothing(Doors):
    """Lets everybody in."""

    def _is_open(self, left: int) -> bool:
        return True


class CountsFoundTwice(Doors):
    """Found blocks that nobody uses are counted as available, and as had."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return (
            super()._left(plan, request, found)
            + self._memory.available
            - self._memory.available_without(found)
        )


class NeedsItAll(Doors):
    """Found blocks are asked for again."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return super()._left(plan, request, found) - len(found)


class ForgetsThePlan(Doors):
    """What this step has promised already is given once more."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return super()._left(plan, request, found) + plan.num_blocks


class ForgetsSamples(Doors):
    """The blocks that other samples copy are left out."""

    def _left(self, plan: StepPlan, request: Request, found: list[Any]) -> int:
        return super()._left(plan, request, found) + self._copies(request)


class TakesNothingFound(Doors):
    """Found blocks make room, but the request computes them again."""

    def _start(self, plan: StepPlan, request: Request) -> bool:
        return self._is_open(self._left(plan, request, self._memory.match(request)))


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
STEP_CASES = (
    serving_case("a long prompt comes while another answers", 40, Ask(3, 9), Ask(30, 3, at=2)),
    serving_case("prompts one after the other", 60, *[Ask(9, 3, at=i) for i in range(6)], Ask(20, 2, at=1)),
    serving_case("twelve answers at once", 60, *[Ask(4, 9) for _ in range(10)], Ask(20, 2, at=3)),
    step_case("three answers, one of them has a full block", 0, Seat(8, 8, 1), Seat(6, 6, 1), Seat(6, 6, 1)),
)
STEP_MISTAKES = (
    Mistake("prompts go before answers: who is being answered stutters", PrefillFirst),
    Mistake("a step does both: answers need not wait while a prompt is prefilled", OneOrTheOther),
    Mistake("new requests are let in before the begun ones have had their chunk", AdmitsFirst),
    Mistake("this is static batching: let new requests in at every step", StaticBatches),
    Mistake("the answers' tokens are not taken off the budget", DecodeIsFree),
    Mistake("a request is planned that an older one has preempted in this step", RunsThePreempted),
)
DOOR_CASES = (
    step_case("nobody runs", 9, Seat(30, is_waiting=True)),
    step_case("it just fits", 8, Seat(30, is_waiting=True)),
    step_case("it does not fit", 7, Seat(30, is_waiting=True)),
    step_case("headroom for one that runs", 12, Seat(8, 8, 1), Seat(6, is_waiting=True)),
    step_case("a block less", 11, Seat(8, 8, 1), Seat(6, is_waiting=True)),
    step_case("much less", 5, Seat(8, 8, 1), Seat(6, is_waiting=True)),
    step_case("three samples", 15, Seat(8, 8, 1), Seat(10, forks=2, is_waiting=True)),
    step_case("a block less for three samples", 14, Seat(8, 8, 1), Seat(10, forks=2, is_waiting=True)),
    serving_case("a second question to a story, in a small pool", 12, Ask(30, 6), Ask(34, 4, at=5, story=0)),
    serving_case(
        "the same with another running", 14, Ask(30, 2), Ask(3, 20, at=5), Ask(34, 4, at=6, story=0)
    ),
)
DOOR_MISTAKES = (
    Mistake("no headroom: those who run will need blocks in their next tokens", NoHeadroom),
    Mistake("headroom is asked for where nobody runs: the request would wait for ever", AlwaysHeadroom),
    Mistake("nobody asks whether there is room", LooksAtNothing),
    Mistake("found blocks that nobody uses are counted as available: `available_without`", CountsFoundTwice),
    Mistake("found blocks need not be had again", NeedsItAll),
    Mistake("blocks that this step has promised already are counted as available", ForgetsThePlan),
    Mistake("the blocks for the copies of other samples are missing", ForgetsSamples),
    Mistake("the found blocks are not taken: `start_from`", TakesNothingFound),
)

# --- 5.7 the engine -----------------------------------------------------------------------------------


def in_engine(asks: Sequence[Ask], num_blocks: int, parts: Any, **config: Any) -> list[Any]:
    """Every step and all answers; the file's waiting line is its scheduler's."""
    return serve({"scheduler": parts.Scheduler}, asks, num_blocks, **config)


RAGGED = (Ask(10, 30), Ask(30, 30), Ask(5, 12, at=2, n=3), Ask(18, 9, at=4), Ask(3, 20, at=5, priority=-1))

LAB = Lab(
    5,
    "scheduler",
    "Continuous batching with chunked prefill",
    (
        Task("5.1", "priority, age, submission", 10, Part(SCHEDULER, "rank"), RANK_CASES, RANK_MISTAKES),
        Task(
            "5.2",
            "the next in turn",
            10,
            Part(SCHEDULER, "WaitingLine", ("first",)),
            FIRST_CASES,
            FIRST_MISTAKES,
        ),
        Task(
            "5.3",
            "the next chunk",
            20,
            Part(SCHEDULER, "Scheduler", ("_prefill",)),
            CHUNK_CASES,
            CHUNK_MISTAKES,
        ),
        Task(
            "5.4",
            "blocks, and who loses them",
            20,
            Part(SCHEDULER, "Scheduler", ("_fits",)),
            FIT_CASES,
            FIT_MISTAKES,
        ),
        Task(
            "5.5",
            "the plan of a step",
            15,
            Part(SCHEDULER, "Scheduler", ("schedule",)),
            STEP_CASES,
            STEP_MISTAKES,
        ),
        Task(
            "5.6", "who may begin", 15, Part(SCHEDULER, "Scheduler", ("_start",)), DOOR_CASES, DOOR_MISTAKES
        ),
        Task(
            "5.7",
            "your scheduler in the running engine",
            10,
            None,
            (
                Case("seven completions, plenty of memory", partial(in_engine, RAGGED, 99)),
                Case("so little memory that requests are preempted", partial(in_engine, RAGGED, 20)),
            ),
        ),
    ),
)
