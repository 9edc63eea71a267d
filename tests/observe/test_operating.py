"""Goodput, memory use and the culprit of an incident, on traces with answers by hand and on real runs."""

import pytest

from minillm.labs.lab12_operating import runs
from minillm.labs.lab12_operating.incident_cases import grows, made
from minillm.labs.lab12_operating.memory_cases import step_event
from minillm.labs.lab12_operating.recorder import User, record
from minillm.observe.goodput import Sent, goodput
from minillm.observe.incident import PATIENCE, Finding, diagnose
from minillm.observe.memory_use import MemoryUse, memory_use
from minillm.observe.metrics import RequestTimes, merged_percentile, percentile, request_times, summarize
from minillm.observe.slo import Slo

CULPRITS = {
    "healthy": "none",
    "memory": "memory",
    "batching": "batching",
    "few tokens": "batching",
    "burst": "burst",
    "tight burst": "burst",
}


def culprits(kind, seeds):
    return {diagnose(runs.hidden(kind, seed).events).culprit for seed in seeds}


@pytest.mark.parametrize("kind", CULPRITS)
def test_incidents_of_known_cause_are_recognised(kind):
    assert culprits(kind, range(3)) == {CULPRITS[kind]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CULPRITS)
def test_many_incidents_of_known_cause_are_recognised(kind):
    assert culprits(kind, range(100, 160)) == {CULPRITS[kind]}


def test_control_one_number_does_not_find_the_culprit():
    """No free block, and preemption, are in incidents of another cause, too."""
    batching, crowd = (runs.hidden(kind, 0).events for kind in ("batching", "tight burst"))
    assert any(event.kind == "step" and event["held"] and not event["free"] for event in batching)
    assert any(event.kind == "preempt" for event in crowd)


@pytest.mark.parametrize("num_steps", [PATIENCE - 1, PATIENCE])
def test_an_incident_has_at_least_patience_steps(num_steps):
    finding = Finding("batching", 9, PATIENCE) if num_steps == PATIENCE else Finding("none")
    assert diagnose(made(grows(["seqs"] * num_steps))) == finding


def test_the_excess_is_counted_by_hand():
    """8 come in 8 s, then 24 at once: 24 - 32 / 8 = 20 is more than 12; with 110 more it is not."""
    held = [*[{}] * 8, *({"blocks": 24 - i} for i in range(20)), {}]
    crowd = {**{i: 1 for i in range(8)}, 8: 24}
    assert diagnose(made(held, crowd)) == Finding("burst", 9, 24)
    assert diagnose(made(held, {**crowd, 9: 110})) == Finding("memory", 9, 24)


def test_memory_use_by_hand():
    steps = [step_event(4, 8, 6), step_event(5, 80, 8, cached=2, free=1), step_event(6, 0, 0)]
    assert memory_use(steps) == MemoryUse(14 / 88, 4, 3)
    assert memory_use([]) == MemoryUse(0.0, None, None)


def test_goodput_by_hand():
    """Of six, two are good: one exactly at both limits, and one with a single token."""
    times = {
        name: RequestTimes(1.0, 4, 1.0, tokens={0: tokens})
        for name, tokens in {"a": [2.0, 2.5], "b": [1.5], "c": [2.5], "d": [1.5, 2.5], "e": []}.items()
    }
    sent = [Sent(1.0, name) for name in times] + [Sent(1.0, "a", failed=True), Sent(1.0, None, True)]
    assert goodput(sent, times, Slo(1.0, 0.5), 4.0) == 2 / 4
    assert goodput([Sent(0.5, "a")], times, Slo(1.0, 0.5), 4.0) == 0  # the user waited from 0.5 on


def test_a_late_client_does_not_make_goodput_better():
    """The same requests, counted from when they were handed over: more of them seem good."""
    run = record(runs.SOUND, tuple(User(0.001 * i, 48, 6) for i in range(10)))
    times, promise = request_times(run.events), Slo(0.2, 1.0)
    as_sent = [Sent(times[one.request_id].submitted, one.request_id) for one in run.sent]
    honest, flattered = (goodput(sent, times, promise, run.seconds) for sent in (run.sent, as_sent))
    assert honest < flattered


def test_the_percentile_of_two_workers_is_not_the_mean_of_theirs():
    quick, slow = [1.0] * 98, [9.0, 8.0]
    assert merged_percentile([quick, slow], 0.99) == 8.0 == percentile(quick + slow, 0.99)
    assert (percentile(quick, 0.99) + percentile(slow, 0.99)) / 2 == 5.0


def test_the_times_of_requests_are_those_of_the_summary():
    run = runs.samples()
    assert request_times(run.events) == summarize(run.events).requests
    assert all(times.ends for times in request_times(run.events).values())
    assert {name for name, times in request_times(runs.leaving().events).items() if times.admitted is None}


def test_a_recorded_run_is_the_same_every_time_and_has_no_secrets():
    record.cache_clear()
    first = runs.preempting()
    record.cache_clear()
    again = runs.preempting()
    assert first == again and first is not again
    assert not {name for event in first.events for name in event.data} & {"prompt", "tenant", "answer"}
    assert {event.request_id for event in first.events} <= {"", *(f"r{i}" for i in range(6))}
