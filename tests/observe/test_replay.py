"""The replay page: every number in it is computed again from the file, by code of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny

from minillm.observe.events import Event
from minillm.observe.replay import frames as frames_module
from minillm.observe.replay import lives as lives_module
from minillm.observe.replay.data import replay_data
from minillm.observe.replay.page import FOLDER, SCRIPTS, embedded, make_page
from minillm.observe.trace_file import Trace, read_trace

Lines = list[dict[str, Any]]
LEVELS = ("waiting", "running", "used", "cached", "free", "slots", "waste")


@pytest.fixture(scope="module", params=["plain", "drafts", "tenants"])
def run_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    recorded.run(recorded.load(tiny.make_folder(place / "m"), place / "run.jsonl", request.param))
    return place / "run.jsonl"


def embedded_in(page: str) -> Any:
    """The data of a page, found as a browser finds them."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def page_of(path: Path) -> Any:
    return embedded_in(make_page(replay_data(read_trace(path))))


def lines_of(path: Path) -> tuple[dict[str, Any], Lines]:
    header, *lines = map(json.loads, path.read_text().splitlines())
    return header, lines


# ---- computed again -------------------------------------------------------------------------------


def steps_of(lines: Lines) -> list[tuple[dict[str, Any], Lines]]:
    """Each `step` line with the lines since the one before; `blocks` belongs to the step before it."""
    found: list[tuple[dict[str, Any], Lines]] = []
    since: Lines = []
    for line in lines:
        if line["kind"] == "blocks":
            found[-1][1].append(line)
        elif line["kind"] == "step":
            found.append((line, since))
            since = []
        else:
            since.append(line)
    found[-1][1].extend(since)
    return found


def expected_columns(clock: float, lines: Lines) -> dict[str, Any]:
    made: dict[str, Any] = defaultdict(list)
    for step, inside in steps_of(lines):
        data, kinds = step["data"], Counter(line["kind"] for line in inside)
        outcomes = [o for line in inside if line["kind"] == "speculate" for o in line["data"]["outcomes"]]
        values = {
            "first": step["step"], "step": step["step"], "time": step["time"] - clock,
            "seconds": data["seconds"],
            "prefill": data["prefill_tokens"], "decode": data["decode_rows"],
            "output": sum(len(line["data"]["requests"]) for line in inside if line["kind"] == "sample"),
            "drafted": sum(o[0] for o in outcomes), "accepted": sum(o[2] for o in outcomes),
            "hits": sum(
                line["data"]["cached_tokens"] for line in inside if line["kind"] in ("admit", "resume")
            ),
            "evicted": sum(line["data"]["blocks"] for line in inside if line["kind"] == "evict"),
            "queued": kinds["queue"], "finished": kinds["finish"], "preempted": kinds["preempt"],
            "refused": kinds["refuse"], **{name: data[name] for name in LEVELS},
        }  # fmt: skip
        for name, value in values.items():
            made[name].append(value)
    steps = [step["data"] for step, _ in steps_of(lines)]
    phases, held = ("schedule", "reserve", "run", "commit"), ("blocks", "seqs", "tokens", "quota")
    made["phases"] = {name: [step["phases"].get(name, 0) for step in steps] for name in phases}
    made["held"] = {name: [step["held"].get(name, 0) for step in steps] for name in held}
    return made


def test_every_column_is_the_file_s(run_file: Path) -> None:
    header, lines = lines_of(run_file)
    page = page_of(run_file)
    assert page["columns"] == expected_columns(header["clock"], lines) and page["every"] == 1
    assert page["steps"] == len(page["columns"]["step"]) == sum(line["kind"] == "step" for line in lines)
    assert {name: header[name] for name in page["run"]} == page["run"]
    assert set(header) - set(page["run"]) == {"format", "clock"}


def test_every_table_is_the_file_s(run_file: Path) -> None:
    """The page's changes, applied, are the tables that the file's events say."""
    _, lines = lines_of(run_file)
    page = page_of(run_file)
    ids = [request["id"] for request in page["requests"]]
    tables: dict[tuple[str, int], list[int]] = {}
    told: dict[tuple[str, int], list[int]] = {}
    cached, told_cached = set[int](), set[int]()
    blocks = [line["data"] for line in lines if line["kind"] == "blocks"]
    for change, data in zip(page["tables"], blocks, strict=True):
        for number, sample, keep, new in change["t"]:
            key = ("" if number == -1 else ids[number]), sample
            tables[key] = tables.get(key, [])[:keep] + new
        told |= {(request_id, index): table for request_id, index, table in data["tables"]}
        cached = (cached | set(change["c"])) - set(change["u"])
        told_cached = (told_cached | set(data["cached"])) - set(data["uncached"])
        assert tables == told and cached == told_cached
    assert any(change["c"] for change in page["tables"])


def test_every_request_is_the_file_s(run_file: Path) -> None:
    header, lines = lines_of(run_file)
    page, clock = page_of(run_file), header["clock"]
    frame_of = {id(line): i for i, (step, inside) in enumerate(steps_of(lines)) for line in (step, *inside)}
    queued = [line for line in lines if line["kind"] == "queue"]
    assert [request["id"] for request in page["requests"]] == [line["request_id"] for line in queued]
    for request, queue in zip(page["requests"], queued, strict=True):
        own = [line for line in lines if line["request_id"] == queue["request_id"]]
        samples = [line for line in lines if line["kind"] == "sample"]
        got = [
            (line, index)
            for line in samples
            for name, index in line["data"]["requests"]
            if name == request["id"]
        ]
        first = [line["time"] for line, index in got if index == 0]
        ends = [line["time"] for line in own if line["kind"] == "finish"]
        admits = [line for line in own if line["kind"] == "admit"]
        last = max([*(line["time"] for line, _ in got), *ends], default=queue["time"])
        drafts = [
            outcome
            for line in lines
            if line["kind"] == "speculate"
            for (name, _), outcome in zip(line["data"]["requests"], line["data"]["outcomes"], strict=True)
            if name == request["id"]
        ]
        expected = {
            "tenant": queue["data"]["tenant"], "samples": queue["data"]["n"],
            "prompt_tokens": queue["data"]["prompt_tokens"], "output_tokens": len(got),
            "cached_tokens": admits[-1]["data"]["cached_tokens"] if admits else 0,
            "submitted": queue["time"] - clock, "e2e": last - queue["time"],
            "queue": (admits[-1]["time"] if admits else last) - queue["time"],
            "ttft": first[0] - queue["time"] if first else None,
            "tpot": (first[-1] - first[0]) / (len(first) - 1) if len(first) > 1 else None,
            "drafted": sum(o[0] for o in drafts), "accepted": sum(o[2] for o in drafts),
            "preemptions": sum(line["kind"] == "preempt" for line in own), "left_out": 0,
        }  # fmt: skip
        assert {name: request[name] for name in expected} == expected
        tokens = Counter(frame_of[id(line)] for line, _ in got)
        assert request["tokens"] == sorted([frame, count] for frame, count in tokens.items())
        assert request["life"] == [
            entry for line in own if (entry := life_entry(line, frame_of[id(line)], clock))
        ]


def life_entry(line: dict[str, Any], frame: int, clock: float) -> list[Any] | None:
    kind, data = line["kind"], line["data"]
    values = {
        "queue": ["prompt_tokens"], "admit": ["cached_tokens"], "prefill_chunk": ["start", "end"],
        "preempt": ["tokens"], "resume": ["cached_tokens"], "cancel": ["reason"],
        "finish": ["index", "reason"],
    }.get(kind)  # fmt: skip
    if values is None:
        return None
    return [
        frame,
        "chunk" if kind == "prefill_chunk" else kind,
        line["time"] - clock,
        *(data[v] for v in values),
    ]


def test_the_summary_is_the_file_s(run_file: Path) -> None:
    _, lines = lines_of(run_file)
    page = page_of(run_file)
    summary, columns, requests = page["summary"], page["columns"], page["requests"]
    sums = {
        "prefill_tokens": "prefill",
        "output_tokens": "output",
        "preemptions": "preempted",
        "refused": "refused",
    }
    sums |= {"evicted_blocks": "evicted", "drafted": "drafted", "accepted": "accepted", "requests": "queued"}
    assert {name: summary[name] for name in sums} == {
        name: sum(columns[column]) for name, column in sums.items()
    }
    assert summary["peak_used_blocks"] == max(columns["used"])
    assert summary["cached_tokens"] == sum(
        line["data"]["cached_tokens"] for line in lines if line["kind"] == "admit"
    )
    started = [request for request in requests if any(entry[1] == "admit" for entry in request["life"])]
    assert summary["prompt_tokens"] == sum(request["prompt_tokens"] for request in started)
    first = sorted(request["ttft"] for request in requests if request["ttft"] is not None)
    assert summary["ttft"] == [first[-(-len(first) * share // 100) - 1] for share in (50, 90, 99)]
    outcomes = [o for line in lines if line["kind"] == "speculate" for o in line["data"]["outcomes"]]
    depths = range(1, 1 + max((o[1] for o in outcomes), default=0))
    assert summary["drafted_at"] == [sum(o[1] >= i for o in outcomes) for i in depths]
    assert summary["accepted_at"] == [sum(o[2] >= i for o in outcomes) for i in depths]


@pytest.mark.parametrize("kind", ["sample", "prefill_chunk", "preempt", "step", "admit"])
def test_control_a_line_less_gives_another_page(tmp_path: Path, folder: Path, kind: str) -> None:
    recorded.run(recorded.load(folder, tmp_path / "run"))
    lines = (tmp_path / "run").read_text().splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if f'"kind":"{kind}"' in line)
    (tmp_path / "less").write_text("".join(lines[:lost] + lines[lost + 1 :]))
    less = page_of(tmp_path / "less")
    header, rest = lines_of(tmp_path / "run")
    assert (
        less["columns"] != expected_columns(header["clock"], rest)
        or less["requests"] != page_of(tmp_path / "run")["requests"]
    )


# ---- long runs ------------------------------------------------------------------------------------


def long_run(steps: int, running: int = 32) -> Trace:
    """A run of `running` sequences at a time, each of which decodes 100 tokens in 8 blocks and ends."""
    header = {"clock": 0.0, "block_size": 16, "num_blocks": running * 8, "model": {}, "options": {}}
    events, tables = list[Event](), {}
    for step in range(1, steps + 1):
        at, names = step * 0.01, [f"req-{(step + 3 * slot) // 100}-{slot}" for slot in range(running)]
        changed = []
        for slot, name in enumerate(names):
            if tables.get(slot) != name:
                digest = {"prompt": "0" * 64, "tenant": "0" * 16}
                events.append(
                    Event("queue", step - 1, at - 0.005, name, {"prompt_tokens": 9, "n": 1, **digest})
                )
                events.append(Event("admit", step, at - 0.004, name, {"cached_tokens": 0, "waited": 0.001}))
                changed.append([name, 0, [slot * 8 + i for i in range(8)]])
                tables[slot] = name
        events.append(Event("sample", step, at, "", {"requests": [[name, 0] for name in names]}))
        counts = dict.fromkeys(("prefill_tokens", "context", *LEVELS), 0)
        step_data = {**counts, "seconds": 0.01, "decode_rows": running, "phases": {}, "held": {}}
        events.append(Event("step", step, at, "", step_data))
        events.append(Event("blocks", step, at, "", {"tables": changed, "cached": [], "uncached": []}))
    return Trace("long", header, events)


def test_ten_thousand_steps_make_a_page_of_bounded_size() -> None:
    page = make_page(replay_data(long_run(10_000)))
    data = embedded_in(page)
    assert len(page) < 4 << 20
    assert data["every"] == 5 and data["steps"] == 10_000 and len(data["tables"]) == 2000
    assert sum(data["columns"]["output"]) == sum(data["columns"]["decode"]) == 320_000
    assert data["columns"]["first"][:2] == [1, 6] and data["columns"]["step"][-1] == 10_000
    assert len(data["requests"]) == lives_module.MAX_REQUESTS < data["summary"]["requests"]
    assert any(change[0] == -2 for frame in data["tables"] for change in frame["t"])  # unlisted requests


def test_frames_of_several_steps_add_up(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page_of(run_file)
    monkeypatch.setattr(frames_module, "MAX_FRAMES", 10)
    monkeypatch.setattr(lives_module, "MAX_LIFE", 3)
    few = page_of(run_file)
    every = few["every"]
    assert every == -(-whole["steps"] // 10) and len(few["columns"]["step"]) <= 10
    for name in ("prefill", "decode", "output", "preempted", "evicted", "hits", "accepted"):
        assert sum(few["columns"][name]) == sum(whole["columns"][name])
    ends = [min(i + every, whole["steps"]) - 1 for i in range(0, whole["steps"], every)]
    for name in ("used", "waiting", "step", "time"):
        assert few["columns"][name] == [whole["columns"][name][end] for end in ends]
    assert few["summary"] == whole["summary"]
    for short, long in zip(few["requests"], whole["requests"], strict=True):
        assert len(short["life"]) + short["left_out"] == len(long["life"])
        assert [e[1] for e in short["life"] if e[1] == "finish"] == [
            e[1] for e in long["life"] if e[1] == "finish"
        ]


@pytest.mark.parametrize("events", [[], [Event("refuse", 0, 1.0, "", {"reason": "QueueFull", "tenant": ""})]])
def test_a_run_without_a_step_has_a_page(events: list[Event]) -> None:
    trace = long_run(0)
    trace.events[:] = events
    data = embedded_in(make_page(replay_data(trace)))
    assert data["steps"] == 0 and data["requests"] == [] and len(data["columns"]["step"]) == len(events)


# ---- the file -------------------------------------------------------------------------------------


def test_data_cannot_leave_their_element() -> None:
    bad = "</script><script>alert(1)</script><!-- & \u2028\u2029 {{script}}"
    text = embedded({"a": bad})
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == {"a": bad}
    trace = long_run(3)
    trace.header["model"]["dtype"] = bad  # type: ignore[index]
    page = make_page(replay_data(trace))
    assert embedded_in(page)["run"]["model"]["dtype"] == bad
    assert page.count("<script") == page.count("</script") == 2 and "alert" not in page.replace(
        embedded({"a": bad})[6:-2], ""
    )


def test_the_page_needs_and_allows_nothing_else() -> None:
    page = make_page(replay_data(long_run(3)))
    assert "{{" not in page and not re.search(
        r"\b(src|href)=|url\(|@import|import\(|fetch\(|XMLHttp|eval\(", page
    )
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none'; ")
    for element in ("style", "script"):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short(name: str) -> None:
    lines = (FOLDER / f"{name}.js").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"(  )?(function )?\w+\(.*\) \{$", line)]
    ends = [next(j for j in range(i, len(lines)) if lines[j] in ("}", "  }")) for i in starts]
    assert len(lines) < 250 and max(map(len, lines)) <= 110 and starts
    assert max(end - start for start, end in zip(starts, ends, strict=True)) <= 30
