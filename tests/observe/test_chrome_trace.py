"""The Chrome trace: what its format demands, and the numbers of the run."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny

from minillm.observe.chrome_trace import ENGINE, PHASES, REQUESTS, chrome_trace
from minillm.observe.metrics import summarize
from minillm.observe.trace_file import Trace, read_trace

Span = dict[str, Any]


@pytest.fixture(scope="module", params=["plain", "tenants"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    place = tmp_path_factory.mktemp("run")
    recorded.run(recorded.load(tiny.make_folder(place / "m"), place / "run", request.param))
    return read_trace(place / "run")


def micros(seconds: float) -> int:
    return round(seconds * 1e6)


def spans_of(made: list[Span], process: int) -> dict[int, list[Span]]:
    """The spans of each thread."""
    found: dict[int, list[Span]] = {}
    for entry in made:
        if entry["ph"] == "X" and entry["pid"] == process:
            found.setdefault(entry["tid"], []).append(entry)
    return found


def faults(made: list[Span]) -> list[str]:
    """Breaches of the format: missing keys, negative lengths, spans of a thread that overlap in part."""
    needed = {"X": {"ts", "dur"}, "C": {"ts", "args"}, "i": {"ts", "s"}, "M": {"args"}}
    found = [f"{e}" for e in made if not {"name", "ph", "pid", "tid"} | needed[e["ph"]] <= set(e)]
    found += [f"negative {e}" for e in made if e["ph"] == "X" and e["dur"] < 0]
    for process in (ENGINE, REQUESTS):
        for spans in spans_of(made, process).values():
            open_until: list[int] = []
            for span in sorted(spans, key=lambda s: (s["ts"], -s["dur"])):
                while open_until and open_until[-1] <= span["ts"]:
                    open_until.pop()
                if open_until and span["ts"] + span["dur"] > open_until[-1]:
                    found.append(f"overlap {span}")
                open_until.append(span["ts"] + span["dur"])
    return found


def test_it_is_valid(trace: Trace) -> None:
    text = json.dumps(chrome_trace(trace), allow_nan=False)
    made = json.loads(text)["traceEvents"]
    assert faults(made) == [] and {e["ph"] for e in made} == {"X", "C", "i", "M"}
    assert all(type(e["ts"]) is int and e["ts"] >= 0 for e in made if e["ph"] != "M")


def test_control_a_broken_trace_is_noticed(trace: Trace) -> None:
    made = chrome_trace(trace)["traceEvents"]
    first, second = (next(e for e in made if e["name"] == name) for name in ("step 1", "step 2"))
    first["dur"] = second["ts"] + second["dur"] // 2 - first["ts"]
    assert faults(made) != []


def test_steps_phases_and_counters_are_the_run_s(trace: Trace) -> None:
    made = chrome_trace(trace)["traceEvents"]
    steps = [event for event in trace.events if event.kind == "step"]
    spans = spans_of(made, ENGINE)[1]
    drawn = [span for span in spans if span["name"].startswith("step ")]
    for step, span in zip(steps, drawn, strict=True):
        end = step.time - trace.clock
        assert (span["name"], span["ts"]) == (f"step {step.step}", micros(end - step["seconds"]))
        assert span["ts"] + span["dur"] == micros(end)
        inside = [
            s for s in spans if s["name"] in PHASES and span["ts"] <= s["ts"] <= span["ts"] + span["dur"]
        ]
        for name in PHASES:
            expected = micros(step["phases"].get(name, 0))
            assert min(abs(s["dur"] - expected) for s in inside if s["name"] == name) <= 1
    counters = {"KV blocks": ("used", "cached", "free"), "sequences": ("running", "waiting")}
    for name, fields in counters.items():
        values = [list(e["args"].values()) for e in made if e["ph"] == "C" and e["name"] == name]
        assert values == [[step[field] for field in fields] for step in steps]


def test_spans_of_requests_are_their_latencies(trace: Trace) -> None:
    made = chrome_trace(trace)["traceEvents"]
    threads, summary = spans_of(made, REQUESTS), summarize(trace.events)
    names = [e["args"]["name"] for e in made if e["ph"] == "M" and e["pid"] == REQUESTS and e["tid"]]
    assert names == [f"r{i}: {r.prompt_tokens} tokens" for i, r in enumerate(summary.requests.values(), 1)]
    preempted = 0
    for number, times in enumerate(summary.requests.values(), 1):
        spans = threads[number]
        assert all(a["ts"] + a["dur"] == b["ts"] for a, b in pairwise(spans) if b["name"] != "ended")
        assert spans[0]["name"] == "queue" and spans[0]["ts"] == micros(times.submitted - trace.clock)
        if times.admitted is not None:
            assert spans[0]["dur"] == micros(times.admitted - trace.clock) - spans[0]["ts"]
        if times.ttft is not None:
            first = next(span for span in spans if span["name"] == "decode")
            assert first["ts"] == micros(times.tokens[0][0] - trace.clock)
        preempted += sum(span["name"] == "preempted" for span in spans)
    assert preempted > 0


def test_an_empty_run_is_valid() -> None:
    header = {"clock": 0.0, "block_size": 16, "num_blocks": 4}
    assert faults(chrome_trace(Trace("run", header))["traceEvents"]) == []


def test_it_names_no_tenant(trace: Trace, tmp_path: Path) -> None:
    labels = {event["tenant"] for event in trace.events if event.kind == "queue"}
    text = json.dumps(chrome_trace(trace))
    assert labels and not any(label in text for label in labels)
