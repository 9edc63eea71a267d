"""Lab 12: observing and operating: exact figures from a trace, and the culprit of an incident."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Lab, Part, Task
from minillm.labs.lab12_operating.collect_cases import COLLECT_CASES, COLLECT_MISTAKES, more_traces
from minillm.labs.lab12_operating.goodput_cases import GOODPUT_CASES, GOODPUT_MISTAKES, more_goodputs
from minillm.labs.lab12_operating.incident_cases import INCIDENT_CASES, more_incidents
from minillm.labs.lab12_operating.incident_mistakes import INCIDENT_MISTAKES
from minillm.labs.lab12_operating.latency_cases import (
    TOKEN_CASES,
    TOKEN_MISTAKES,
    WHOLE_CASES,
    WHOLE_MISTAKES,
    more_runs,
)
from minillm.labs.lab12_operating.memory_cases import MEMORY_CASES, MEMORY_MISTAKES, more_memory
from minillm.labs.lab12_operating.percentile_cases import (
    PERCENTILE_CASES,
    PERCENTILE_MISTAKES,
    more_workers,
)
from minillm.labs.lab12_operating.recorder import Recorded
from minillm.labs.lab12_operating.runs import hidden, leaving, samples
from minillm.observe.slo import Slo

METRICS = "minillm.observe.metrics"
PROMISE = Slo(0.25, 0.02)


def report(run: Callable[[], Recorded], parts: Any) -> list[Any]:
    """The whole report of a run of the engine: all parts work on each other's results."""
    found = run()
    times = parts.request_times(found.events)
    workers = list(times.values())[::2], list(times.values())[1::2]
    ttft = [[t.ttft for t in worker if t.ttft is not None] for worker in workers]
    gaps = [[gap for t in worker for gap in t.itl] for worker in workers]
    return [
        [[name, t.queue, t.e2e, t.tpot] for name, t in times.items()],
        [parts.merged_percentile(values, share) for values in (ttft, gaps) for share in (0.5, 0.9, 0.99)],
        parts.goodput(found.sent, times, PROMISE, found.seconds),
        list(parts.memory_use(found.events)),
        list(parts.diagnose(found.events)),
    ]


def report_case(name: str, run: Callable[[], Recorded]) -> Case:
    """The report of a run."""
    return Case(name, partial(report, run))


def report_cost(parts: Any) -> Counted:
    """The lines for the report of one run."""
    run = partial(hidden, "memory", 7)
    report(run, parts)
    return within(100 * len(run().events), counted_lines(partial(report, run, parts)), LINES)


LAB = Lab(
    12,
    "operating",
    "Observing and operating",
    (
        Task(
            "12.1",
            "the times of every request",
            15,
            Part(METRICS, "request_times"),
            COLLECT_CASES,
            COLLECT_MISTAKES,
            more_traces,
        ),
        Task(
            "12.2",
            "the whole request",
            5,
            Part(METRICS, "RequestTimes", ("queue", "e2e")),
            WHOLE_CASES,
            WHOLE_MISTAKES,
            more_runs,
        ),
        Task(
            "12.3",
            "token by token",
            10,
            Part(METRICS, "RequestTimes", ("ttft", "tpot", "itl")),
            TOKEN_CASES,
            TOKEN_MISTAKES,
            more_runs,
        ),
        Task(
            "12.4",
            "the percentile of a fleet",
            10,
            Part(METRICS, "merged_percentile", helpers=("percentile",)),
            PERCENTILE_CASES,
            PERCENTILE_MISTAKES,
            more_workers,
        ),
        Task(
            "12.5",
            "promises that were kept",
            15,
            Part("minillm.observe.goodput", "goodput"),
            GOODPUT_CASES,
            GOODPUT_MISTAKES,
            more_goodputs,
        ),
        Task(
            "12.6",
            "fragmentation and headroom",
            10,
            Part("minillm.observe.memory_use", "memory_use"),
            MEMORY_CASES,
            MEMORY_MISTAKES,
            more_memory,
        ),
        Task(
            "12.7",
            "the culprit",
            25,
            Part("minillm.observe.incident", "diagnose", helpers=("_longest_wait", "_excess")),
            INCIDENT_CASES,
            INCIDENT_MISTAKES,
            more_incidents,
        ),
        Task(
            "12.8",
            "your report of the running engine",
            10,
            None,
            (
                report_case("requests with several samples", samples),
                report_case("users who leave", leaving),
                report_case("a recorded run, number 6", partial(hidden, "tight burst", 6)),
                report_case("a recorded run, number 7", partial(hidden, "memory", 7)),
                Case("the work for a report", report_cost, "cost"),
            ),
        ),
    ),
)
