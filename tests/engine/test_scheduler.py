"""The scheduler: which sequences run, wait or are preempted; no block is lost, every request ends (C4, C6).

The scheduler runs here over the real KV manager and a toy model (`toy.py`), which checks every decision.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import tiny
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from toy import SIZE, Toy, prompt

from minillm import LLM, SamplingParams
from minillm.engine.scheduler import AGING_SECONDS, Scheduler
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.errors import OutOfBlocks, QueueFull

# ---- policy ---------------------------------------------------------------------------------------


def test_decode_comes_first_and_chunks_fill_the_budget() -> None:
    toy = Toy(64, max_num_batched_tokens=16, prefill_chunk=10)
    toy.add(prompt(3), 50)
    toy.step()
    toy.add(prompt(24, 1), 5)
    toy.add(prompt(24, 2), 5)
    plans = [toy.step() for _ in range(4)]
    sizes = [[(c.sequence.request_id, c.start, c.end) for c in p.prefill] for p in plans]
    assert [len(p.decode) for p in plans] == [1, 1, 1, 2]
    assert sizes == [
        [("r1", 0, 10), ("r2", 0, 5)],
        [("r1", 10, 20), ("r2", 5, 10)],
        [("r1", 20, 24), ("r2", 10, 20)],
        [("r2", 20, 24)],
    ]


def test_the_newest_gives_way_and_comes_back() -> None:
    toy = Toy(6, prefix_caching=False, headroom=0)
    first, second = toy.add(prompt(6), 12), toy.add(prompt(6, 1), 12)
    toy.run()
    assert set(toy.of("preempt")) == {"r1"} == set(toy.of("resume"))
    assert len(first.output_token_ids) == len(second.output_token_ids) == 12
    assert first.token_times[-1] < second.token_times[-1] and toy.pool.num_used == 0


def test_a_preempted_request_finds_its_own_blocks() -> None:
    """Its published blocks stay in the cache if no other needs them, so little is computed twice."""
    toy = Toy(6, headroom=0)
    toy.add(prompt(6), 12)
    toy.add(prompt(6, 1), 12)
    toy.run()
    resumed = [event for event in toy.trace if event.kind == "resume"]
    assert resumed and all(event["cached_tokens"] > 0 for event in resumed)


def test_headroom_keeps_preemption_rare() -> None:
    """Ten requests with room for about four. The control without headroom preempts several times as often."""

    def preemptions(headroom: int) -> int:
        toy = Toy(24, prefix_caching=False, headroom=headroom)
        for i in range(10):
            toy.add(prompt(8, i), 16)
        toy.run()
        return len(toy.of("preempt"))

    assert preemptions(32) == 0 < preemptions(0)


def test_priorities_with_aging() -> None:
    toy = Toy(64, max_num_seqs=1)
    toy.add(prompt(2), 2)
    toy.step()
    for priority in (5, 0, 5, -1):
        toy.add(prompt(2), 2, priority=priority)
    toy.run()
    assert toy.of("admit") == ["r0", "r4", "r2", "r1", "r3"], "by priority, then by submission"

    patient = Toy(64, max_num_seqs=1)
    patient.add(prompt(2), 2, priority=2)
    while "r0" not in patient.of("admit"):
        patient.add(prompt(2), 2, priority=0)
        patient.step()
    # A request takes two steps. Requests of the first 2 * AGING_SECONDS go before r0, later ones do not.
    assert 2 * AGING_SECONDS < patient.now <= 2 * (2 * AGING_SECONDS + 1)


class FrozenRanks(Scheduler):
    """Ranks keep their values from admission."""

    def _order_running(self, now: float) -> None:
        pass


def ages(scheduler: type[Scheduler]) -> Toy:
    """The third request gains a priority by waiting, then runs with the second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toy, "scheduler_class", scheduler)
        toy = Toy(9, prefix_caching=False, headroom=0, max_num_seqs=2)
    for i, (length, max_tokens) in enumerate(((2, 12), (4, 28), (8, 12))):
        toy.add(prompt(length, i), max_tokens)
    toy.run()
    return toy


def test_age_does_not_reverse_who_is_newest() -> None:
    assert ages(Scheduler).of("preempt")[0] == "r2"
    with pytest.raises(AssertionError, match="stand in order"):
        ages(FrozenRanks)


def test_who_ages_first_overtakes_among_the_running() -> None:
    """Priority 1 less an age is priority 0, and was submitted before: now the other is the newest."""
    toy = Toy(64)
    toy.add(prompt(2), 30, priority=1)
    for _ in range(5):
        toy.step()
    toy.add(prompt(2, 1), 30)
    seen = []
    for _ in range(8):
        toy.step()
        seen.append([r.request_id for r in toy.scheduler.running])
    assert seen[0] == ["r1", "r0"] and seen[-1] == ["r0", "r1"]


@pytest.mark.parametrize(("num_blocks", "is_let_in"), [(5, False), (6, True)])
def test_room_is_counted_for_the_token_that_comes_next(num_blocks: int, is_let_in: bool) -> None:
    """Of two blocks' prompt the answer begins a third; one block is what the first grows into meanwhile.

    Taken by the first: a block, and one more in this step.
    """
    toy = Toy(num_blocks, prefix_caching=False, headroom=0)
    toy.add(prompt(SIZE), 9)
    toy.step()
    toy.add(prompt(2 * SIZE, 1), 4)
    toy.step()
    assert (toy.of("admit") == ["r0", "r1"]) == is_let_in


def test_a_chunk_takes_no_more_than_a_block_from_others() -> None:
    """A prompt of four blocks, of which two would fit the chunk, and no room: the newest alone gives way."""
    toy = Toy(2, prefix_caching=False, headroom=0, prefill_chunk=2 * SIZE)
    for salt in (1, 2):
        toy.add(prompt(1, salt), 3)
        toy.step()
    eldest = toy.add(prompt(4 * SIZE), 4, priority=-1)
    toy.scheduler.waiting.remove(eldest)
    toy.scheduler.running.insert(0, eldest)
    plan = StepPlan()
    assert toy.scheduler._prefill(plan, eldest, budget=100) == SIZE
    assert [r.request_id for r in plan.preempted] == ["r1"] and plan.num_blocks == 1


def test_samples_count_as_sequences() -> None:
    toy = Toy(64, max_num_seqs=4)
    toy.add(prompt(5), 6, n=3)
    toy.add(prompt(5, 1), 6, n=2)
    toy.add(prompt(5, 2), 6)
    plans = toy.run()
    assert max(len(p.decode) for p in plans) == 3, "the second needs two places and keeps its turn"
    assert toy.of("admit") == ["r0", "r1", "r2"]


# ---- machine --------------------------------------------------------------------------------------


class SchedulerMachine(RuleBasedStateMachine):
    """Requests arrive, run and are cancelled. The pool is small, and prompts share prefixes."""

    toy_class = Toy

    def __init__(self) -> None:
        super().__init__()
        self.toy = self.toy_class(10, headroom=2, max_num_seqs=5, max_num_batched_tokens=12, prefill_chunk=6)
        self.idle = 0

    @rule(
        length=st.integers(1, 20),
        salt=st.integers(0, 1),
        max_tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        priority=st.integers(-1, 1),
    )
    def add(self, length: int, salt: int, max_tokens: int, n: int, priority: int) -> None:
        if length // SIZE + n * (-(-(length + max_tokens) // SIZE) - length // SIZE) <= 10:
            self.toy.add(prompt(length, salt), max_tokens, n, priority)

    @precondition(lambda self: self.toy.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.toy.cancel(self.toy.live[data.draw(st.integers(0, len(self.toy.live) - 1))])

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            plan, live = self.toy.step(), len(self.toy.live)
            rows = len(plan.decode) + sum(c.end - c.start for c in plan.prefill)
            assert rows <= 12 and len(self.toy.scheduler.running) <= 5
            assert not live or rows or plan.preempted, "a step with requests must make progress"

    @invariant()
    def blocks_are_counted(self) -> None:
        toy, cache = self.toy, self.toy.memory.cache
        assert cache is not None
        owners = [0] * toy.pool.num_blocks
        for request in toy.live:
            for block in request.block_table.block_ids:
                owners[block] += 1
        cached = set(cache._by_block)
        counts = [toy.pool.ref_count(i) for i in range(toy.pool.num_blocks)]
        assert counts == [owners[i] + (i in cached) for i in range(toy.pool.num_blocks)]
        assert toy.pool.num_free == counts.count(0)
        assert toy.memory.available == owners.count(0)

    @invariant()
    def waste_is_less_than_a_block(self) -> None:
        for request in self.toy.live:
            assert 0 <= len(request.block_table.block_ids) * SIZE - request.num_computed_tokens < SIZE

    def teardown(self) -> None:
        self.toy.run()
        assert self.toy.memory.available == self.toy.pool.num_blocks
        assert not self.toy.scheduler.running and not len(self.toy.scheduler.waiting)


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestSchedulerMachine = SchedulerMachine.TestCase


@pytest.mark.slow
def test_the_machine_for_long() -> None:
    """100,000 operations."""
    run_state_machine_as_test(SchedulerMachine, settings=settings(max_examples=1000, stateful_step_count=100))


class KeepsBlocks(Scheduler):
    """The mistake: a preempted sequence keeps its blocks."""

    def _preempt(self, plan: StepPlan, request: Sequence) -> None:
        plan.drop(request)
        plan.preempted.append(request)
        self.running.remove(request)
        self.waiting.add(request)


class ForgetsForks(Scheduler):
    """The mistake: the forks' copies of a prompt's last block are not counted."""

    def _copies(self, request: Sequence) -> int:
        return 0


class PreemptsNobody(Scheduler):
    """The mistake: a sequence that lacks a block waits and preempts no other."""

    def _fits(self, plan: StepPlan, request: Sequence, num_tokens: int, forks: int = 0) -> bool:
        needed = self._memory.shortage(request, num_tokens) + forks
        if plan.num_blocks + needed > self._memory.available:
            return False
        plan.take(request, needed)
        return True


@pytest.mark.parametrize("broken", [KeepsBlocks, ForgetsForks, PreemptsNobody])
def test_the_machine_catches(broken: type[Scheduler]) -> None:
    class BrokenToy(Toy):
        scheduler_class = broken

    class Machine(SchedulerMachine):
        toy_class = BrokenToy

    with pytest.raises((AssertionError, OutOfBlocks)):
        run_state_machine_as_test(
            Machine,
            settings=settings(max_examples=300, stateful_step_count=30, phases=[Phase.generate]),
        )


# ---- the engine's queue under many threads ----------------------------------------------------------


def test_many_threads_one_small_queue(tmp_path: Any) -> None:
    """64 threads submit 1,000 requests to a queue of 8: it never overflows, and every request is answered."""
    llm = tiny.load(tiny.make_folder(tmp_path), max_queued_requests=8, max_num_seqs=16)
    engine, accepted, refused = llm.engine, list[str](), list[int]()
    numbers, most = iter(range(1000)), 0
    lock = threading.Lock()

    def submit() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            while True:
                try:
                    request_id = engine.add_request(
                        [number % 200, 5], SamplingParams(max_tokens=2, ignore_eos=True)
                    )
                    with lock:
                        accepted.append(request_id)
                    break
                except QueueFull:
                    refused.append(number)
                    time.sleep(0.001)

    threads = [threading.Thread(target=submit) for _ in range(64)]
    for thread in threads:
        thread.start()
    answers: list[str] = []
    while any(t.is_alive() for t in threads) or engine.has_unfinished_requests():
        most = max(most, engine.stats()["waiting"])
        answers += [o.request_id for o in engine.step() if o.finished]
    assert len(accepted) == len(set(accepted)) == 1000 and sorted(answers) == sorted(accepted)
    assert most <= 8 and refused, "the queue was sometimes full and never overfull"
    assert tiny.all_free(llm)


def test_bad_requests_leave_good_streams_alone(tmp_path: Any) -> None:
    """Bad input of every kind arrives while eight streams run; their logprobs do not change."""
    folder = tiny.make_folder(tmp_path)
    params = [SamplingParams(max_tokens=12, seed=i, logprobs=1, ignore_eos=True) for i in range(8)]
    prompts = [[i, 7, 30 + i] for i in range(8)]

    def run(llm: LLM, disturb: bool) -> dict[str, Any]:
        ids = [llm.engine.add_request(p, s) for p, s in zip(prompts, params, strict=True)]
        done = {}
        while llm.engine.has_unfinished_requests():
            for bad in ([], [10**6], "x" * 10_000, None, [1.5], [True]) if disturb else ():
                with pytest.raises((ValueError, TypeError)):
                    llm.engine.add_request(bad, params[0])
            if disturb:
                llm.engine.abort_request(llm.engine.add_request([9] * 20, params[0]))
            done |= {o.request_id: o for o in llm.engine.step() if o.finished}
        return {request_id: done[request_id].logprobs for request_id in ids}

    calm, disturbed = run(tiny.load(folder), False), run(tiny.load(folder), True)
    assert list(calm.values()) == list(disturbed.values())
