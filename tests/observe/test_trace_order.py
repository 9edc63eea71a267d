"""Lines of a recorded run that contradict themselves or each other are refused, with the line's number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny

from minillm.errors import NotATrace
from minillm.observe import trace_file
from minillm.observe.events import Event
from minillm.observe.online import EngineMetrics
from minillm.observe.speculation import summarize_speculation
from minillm.observe.trace_file import read_trace
from minillm.observe.trace_schema import LARGEST

QUEUE = {"prompt_tokens": 3, "n": 1, "prompt": "0" * 64, "tenant": "0" * 16}
LINE = {"kind": "queue", "step": 0, "time": 1e9, "request_id": "req-1", "data": QUEUE}
STEP = {
    **{"seconds": 0.1, "prefill_tokens": 3, "decode_rows": 0, "context": 3, "waiting": 0, "running": 1},
    **{"used": 1, "cached": 0, "free": 8, "slots": 16, "waste": 13, "phases": {}, "held": {}},
}
DRAFT = {
    **{"requests": [["req-1", 0]], "outcomes": [[3, 2, 1]], "rows": 1},
    **{"draft_seconds": 0.0, "verify_seconds": 0.0},
}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("run")
    llm = recorded.load(tiny.make_folder(place / "m"), place / "run.jsonl")
    assert llm.engine.pool.num_blocks == 9
    return (place / "run.jsonl").read_text().split("\n")[0]


# What one line or two contradict each other in: each would give a page with wrong or negative numbers.
AGREE = {
    "step": ("step", STEP),
    "speculate": ("speculate", DRAFT),
    "chunk": ("prefill_chunk", {"start": 0, "end": 3, "tokens": 3}),
    "sample": ("sample", {"requests": [["req-1", 0]]}),
    "warmup": ("warmup", {"phase": "end", "load": 0.5}),
    "admit": ("admit", {"cached_tokens": 0, "waited": 0.0}),
}
CONTRADICTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "more waste than slots": ("step", {"data": {**STEP, "waste": 17}}),
    "a negative step": ("step", {"data": {**STEP, "seconds": -1.0}}),
    "a negative phase": ("step", {"data": {**STEP, "phases": {"run": -1.0}}}),
    "more blocks than there are": ("step", {"data": {**STEP, "free": 9}}),
    "more accepted than drafted": ("speculate", {"data": {**DRAFT, "outcomes": [[3, 2, 3]]}}),
    "deeper than its tokens": ("speculate", {"data": {**DRAFT, "outcomes": [[3, 4, 1]]}}),
    "an endless draft": ("speculate", {"data": {**DRAFT, "outcomes": [[1 << 50, 1 << 50, 0]]}}),
    "outcomes of nobody": ("speculate", {"data": {**DRAFT, "requests": []}}),
    "a chunk that ends before it starts": ("chunk", {"data": {"start": 4, "end": 3, "tokens": 3}}),
    "a token before its request": ("sample", {"time": 9e8}),
    "a start before its request": ("admit", {"time": 9e8}),
    "negative time in the queue": ("admit", {"data": {"cached_tokens": 0, "waited": -1.0}}),
    "before the header": ("step", {"time": 0.0, "request_id": ""}),
    "half a warm-up": ("warmup", {"data": {"phase": "middle"}}),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_lines_that_contradict_each_other_are_named(header: str, tmp_path: Path, name: str) -> None:
    good, changes = CONTRADICTIONS[name]
    kind, data = AGREE[good]
    path = tmp_path / "bad"
    line = dict(LINE, kind=kind, data=data)
    path.write_text("\n".join([header, json.dumps(LINE), json.dumps(line), ""]))
    assert len(read_trace(path).events) == 2  # the control
    path.write_text("\n".join([header, json.dumps(LINE), json.dumps(line | changes), ""]))
    with pytest.raises(NotATrace, match="line 3: "):
        read_trace(path)


def test_tokens_that_go_back_in_time_and_a_request_that_comes_twice(header: str, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    samples = [dict(LINE, kind="sample", data=AGREE["sample"][1], time=1e9 + at) for at in (2, 1)]
    for lines, number in (([LINE, *samples], 4), ([LINE, LINE], 3), ([dict(LINE, request_id="")], 2)):
        path.write_text("\n".join([header, *map(json.dumps, lines), ""]))
        with pytest.raises(NotATrace, match=f"line {number}: "):
            read_trace(path)


def test_a_request_of_a_million_samples_costs_nothing() -> None:
    """Metrics keep what has ended, not what has not: a hostile trace could ask for all memory."""
    queue = {**QUEUE, "n": LARGEST}
    metrics = EngineMetrics().replay([Event("queue", 0, 1.0, "req-1", queue)])
    assert metrics.num_live == 1 and metrics.waiting == 1


def test_positions_are_counted_from_lengths() -> None:
    """A long draft costs as much as a short one, and the counts are those of each token for itself."""
    outcomes = [[3, 2, 1], [3, 3, 0], [4, 2, 2], [1, 1, 1], [0, 0, 0]]
    data = {**DRAFT, "requests": [["req-1", 0]] * 5, "outcomes": outcomes}
    found = summarize_speculation([Event("speculate", 0, 1.0, "", data)])
    assert found.drafted_at == {1: 4, 2: 3, 3: 1} and found.accepted_at == {1: 3, 2: 1}
    none = summarize_speculation([])
    assert none.drafted_at == {} and none.acceptance_by_position == []


def test_a_record_ends_before_it_is_too_long_to_be_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace_file, "FILE_LIMIT", 20_000)
    llm = recorded.load(folder, tmp_path / "run")
    live = recorded.run(llm)
    assert caplog.text.count("the recorded run ends here: it would be longer than 19.5 KiB") == 1
    found = read_trace(tmp_path / "run")
    assert 10_000 < (tmp_path / "run").stat().st_size <= 20_000 and llm.engine.events.detail is None
    assert 0 < len(found.events) < len(live) and not found.is_cut
    monkeypatch.setattr(trace_file, "FILE_LIMIT", 1 << 30)  # the control
    live = recorded.run(recorded.load(folder, tmp_path / "whole"))
    assert len(read_trace(tmp_path / "whole").events) == len(live)
