"""The load generator on a clock that is made up: every figure is computed by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from virtual import ScriptedEngine, VirtualClock

from minillm.bench.load import generator
from minillm.bench.load.clock import RealClock
from minillm.bench.load.figures import figures, intended_times
from minillm.bench.load.generator import LOST, NOT_SENT, Generator, Run
from minillm.bench.load.plan import LoadRequest
from minillm.bench.load.validity import late_limit
from minillm.observe.metrics import percentile, summarize
from minillm.observe.slo import Slo

STALL, FAST, GAP, MANY = 2.0, 1 / 16, 1 / 8, 200


@pytest.fixture(autouse=True)
def binary_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """All times are sums of powers of two: they are exact, and are compared with `==`."""
    monkeypatch.setattr(generator, "LEAD_SECONDS", 0.25)


def play(
    requests: list[LoadRequest], seconds: Callable[[int], float], late: float = 0.0, **engine: Any
) -> Run:
    clock = VirtualClock(late)
    return Generator(ScriptedEngine(clock, seconds, **engine), clock, requests).run()


def request(at: float = 0.0, tokens: int = 1, **more: Any) -> LoadRequest:
    return LoadRequest((1, 2, 3), tokens, at, **more)


def test_three_requests_by_hand() -> None:
    """Steps of 1 s, two at a time: A from 0 s, B from 0.5 s (waits for a step), C from 0.75 s (for two)."""
    run = play([request(0, 2), request(0.5, 2), request(0.75, 1)], lambda step: 1.0, batch=2)
    found = figures(run, Slo(ttft=1.5), 16)
    times = [t for _, t in intended_times(run, summarize(run.events)) if t]
    assert [t.ttft for t in times] == [1.0, 1.5, 2.25]
    assert [t.tpot for t in times] == [1.0, 1.0, None]
    assert [t.queue for t in times] == [0.0, 0.5, 1.25]
    assert [t.e2e for t in times] == [2.0, 2.5, 2.25]
    assert found["ttft"] == {"p50": 1.5, "p90": 2.25, "p95": 2.25, "p99": 2.25}
    assert found["tpot"]["p99"] == found["itl"]["p50"] == 1.0
    assert found["seconds"] == 3.0 and found["output_tokens_per_s"] == 5 / 3
    assert found["goodput_per_s"] == 2 / 3 and found["slo_met"] == 2 / 3


def test_a_stall_is_seen_by_those_who_came_during_it() -> None:
    """8 requests per second, steps of 1/16 s; the step of request 100, from 12.5 s on, takes 2 s.

    It waits 2 s itself. Requests 101 to 116 come during the stall and are served in the step after it, which
    ends at 14.5625 s: they wait 1.9375, 1.8125, ... s. Of 200, p99 is the third longest, p95 the eleventh.
    """
    run = play([request(i * GAP) for i in range(MANY)], lambda step: STALL if step == 100 else FAST)
    ttft = figures(run, Slo(), 16)["ttft"]
    assert ttft == {"p50": FAST, "p90": FAST, "p95": 0.8125, "p99": 1.8125}


def test_control_a_closed_loop_hides_the_stall() -> None:
    """The same engine with one user who sends when the answer has come: one request of 200 was slow."""
    chain = [request(gap=0.0, after=i - 1 if i else None) for i in range(MANY)]
    run = play(chain, lambda step: STALL if step == 100 else FAST)
    found = figures(run, Slo(), 16)
    assert found["ttft"]["p99"] == FAST and found["requests"] == MANY and found["failed"] == 0


def test_latency_counts_from_the_intended_start() -> None:
    """A generator that is half a second late makes users wait half a second longer, and the run says so."""
    run = play([request(i) for i in range(4)], lambda step: FAST, late=0.5)
    assert figures(run, Slo(), 16)["ttft"]["p50"] == 0.5 + FAST
    assert [record.lag for record in run.records] == [0.5] * 4
    from_submission = [t.ttft for t in summarize(run.events).requests.values()]
    assert from_submission == [FAST] * 4  # what the engine itself would say


def test_a_turn_waits_for_the_answer_and_thinks() -> None:
    run = play([request(0, 2), request(after=0, gap=3.0)], lambda step: 1.0)
    first, second = run.records
    assert first.ended is not None and second.intended == first.ended + 3.0
    assert second.started == second.intended
    prompts = [event["prompt_tokens"] for event in run.events if event.kind == "queue"]
    assert prompts == [3, 3 + 2 + 3]  # the prompt, the answer, and what the turn adds


def test_a_cancelled_request_ends_and_its_conversation_goes_on() -> None:
    run = play([request(0, 50, cancel_after=2.5), request(after=0, gap=1.0)], lambda step: 1.0)
    found = figures(run, Slo(), 16)
    assert run.records[0].is_cancelled and not run.records[1].is_cancelled
    assert found["cancelled"] == 1 and found["failed"] == 0 and all(r.is_over for r in run.records)
    assert [event["prompt_tokens"] for event in run.events if event.kind == "queue"] == [3, 3 + 3 + 3]


def test_a_cancel_that_comes_after_the_end_changes_nothing() -> None:
    run = play([request(0, 1, cancel_after=5.0), request(9)], lambda step: 1.0)
    assert not run.records[0].is_cancelled and figures(run, Slo(), 16)["cancelled"] == 0


def test_a_cancelled_request_without_a_token_is_a_miss() -> None:
    run = play([request(0, 9), request(0.5, cancel_after=0.25)], lambda step: 1.0)
    assert figures(run, Slo(), 16)["slo_met"] == 0.5


def test_refused_requests_are_misses_and_their_turns_are_not_sent() -> None:
    """The first of four starts at once, two wait, and there is no room for the last."""
    many = [request(0.5, 9) for _ in range(4)]
    run = play([*many, request(after=3, gap=0.0)], lambda step: 1.0, queue=2)
    assert [record.failure for record in run.records] == [None, None, None, "QueueFull", NOT_SENT]
    found = figures(run, Slo(ttft=100.0), 16)
    assert found["failed"] == 2 and found["slo_met"] == 3 / 5


def test_a_request_that_the_engine_forgets_does_not_hang_the_run() -> None:
    run = play([request(0), request(1), request(after=1)], lambda step: FAST, forgets=[1])
    assert [record.failure for record in run.records] == [None, LOST, NOT_SENT]


def test_a_step_that_fails_once_is_told_and_one_that_always_fails_is_raised() -> None:
    def once(step: int) -> None:
        if step == 1:
            raise RuntimeError

    run = play([request(0, 3)], lambda step: 1.0, fails=once)
    assert run.failed_steps == ["RuntimeError"] and run.records[0].ended is not None

    def always(step: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        play([request(0, 3)], lambda step: 1.0, fails=always)


def test_an_interrupted_run_ends_its_requests() -> None:
    def interrupt(step: int) -> None:
        raise KeyboardInterrupt

    clock = VirtualClock()
    engine = ScriptedEngine(clock, lambda step: 1.0, fails=interrupt)
    with pytest.raises(KeyboardInterrupt):
        Generator(engine, clock, [request(0, 3)]).run()
    assert engine._aborted == {"r0"} and engine.events.listeners == []


def test_the_watched_tenant_has_its_own_figures() -> None:
    """One request at a time: the watched one comes last and waits for the two of the flood."""
    flood = [request(0, 1, tenant="flooding") for _ in range(2)]
    run = play([*flood, request(0, 1, tenant="watched")], lambda step: 1.0, batch=1)
    found = figures(run, Slo(ttft=2.0), 16, "watched")
    assert found["watched"]["requests"] == 1 and found["watched"]["ttft"]["p50"] == 3.0
    assert found["slo_met"] == 2 / 3 and found["watched"]["slo_met"] == 0.0


def test_the_limit_of_lateness_is_a_share_of_the_mean_gap() -> None:
    seldom = play([request(0), request(2)], lambda step: FAST)
    often = play([request(0), request(0.0625)], lambda step: FAST)
    assert late_limit(seldom) == 0.02 and late_limit(often) == 1e-3


@pytest.mark.parametrize(
    ("ttft", "tpot", "met"), [(1.0, None, 1), (0.99, None, 0), (None, 1.0, 1), (None, 0.99, 0), (1.0, 1.0, 1)]
)
def test_an_slo_is_met_at_its_limit(ttft: float | None, tpot: float | None, met: int) -> None:
    run = play([request(0, 3)], lambda step: 1.0)
    assert figures(run, Slo.of(ttft=ttft, tpot=tpot), 16)["slo_met"] == met


# ---- the real clock: what it does, not when ----------------------------------------------------------


def test_the_real_clock_calls_actions_in_order_from_its_own_thread() -> None:
    seen = list[tuple[str, int]]()

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append((name, threading.get_ident()))

    with RealClock() as clock:
        now = clock.now()
        clock.at(now + 0.02, note("second"))
        clock.at(now + 0.01, note("first"))
        while len(seen) < 2:
            assert clock.wait()
        clock.wait()
        assert not clock.wait()  # there is nothing left to wait for
    assert [name for name, _ in seen] == ["first", "second"]
    assert all(thread != threading.get_ident() for _, thread in seen)


def test_an_earlier_action_does_not_wait_for_a_later_one() -> None:
    seen = list[str]()
    with RealClock() as clock:
        clock.at(clock.now() + 3600, lambda: seen.append("late"))
        clock.at(clock.now() + 0.01, lambda: seen.append("early"))
        assert clock.wait()
    assert seen == ["early"]


def test_an_error_of_an_action_is_raised_in_the_thread_that_waits() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def wait() -> None:
        with RealClock() as clock:
            clock.at(clock.now(), fail)
            clock.wait()

    with pytest.raises(ZeroDivisionError):
        wait()


def test_percentiles_are_those_of_the_metrics() -> None:
    run = play([request(i / 4) for i in range(10)], lambda step: 0.5, batch=1)
    ttft = [t.ttft for _, t in intended_times(run, summarize(run.events)) if t and t.ttft is not None]
    found = figures(run, Slo(), 16)["ttft"]
    assert found == {f"p{n}": percentile(ttft, n / 100) for n in (50, 90, 95, 99)}
