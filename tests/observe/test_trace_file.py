"""Recorded runs: what is read is what happened, a failing file disturbs nobody, any file is one line."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import SamplingParams
from minillm.config import EngineConfig
from minillm.config.new_file import LineFile
from minillm.errors import NotATrace, StorageError, UnreadableFile, UsageError
from minillm.observe import events as events_module
from minillm.observe import trace_file
from minillm.observe.metrics import summarize
from minillm.observe.trace_file import read_trace
from minillm.observe.trace_schema import FIELDS

PARAMS = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    recorded.run(recorded.load(tiny.make_folder(place / "m"), place / "run.jsonl"))
    return place / "run.jsonl"


# ---- round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recorded.OPTIONS)
def test_the_file_is_the_run(folder: Path, tmp_path: Path, name: str) -> None:
    """Every event, every field, every bit of every time; so all metrics are the same."""
    llm = recorded.load(folder, tmp_path / "run", name)
    live = recorded.run(llm)
    read = read_trace(tmp_path / "run")
    assert recorded.as_json(read.events) == recorded.as_json(live) and not read.is_cut
    assert summarize(read.events) == summarize(live) and summarize(live).preemptions > 0
    assert read.header["num_blocks"] == recorded.BLOCKS.get(name, 9) and read.header["block_size"] == 16
    assert read.header["model"]["num_hidden_layers"] == 2 and read.clock < live[0].time


def test_the_schema_lists_the_documented_events() -> None:
    listed = re.findall(r"^    ([a-z][a-z_, ]*?)  ", events_module.__doc__ or "", re.MULTILINE)
    assert {name for names in listed for name in names.split(", ")} == set(FIELDS)


def test_nothing_private_is_written(folder: Path, tmp_path: Path) -> None:
    limits = {"a-secret-tenant": recorded.LIMITS["ann"]}
    options: dict[str, Any] = {
        "tenant_limits": limits,
        "public_prefixes": ["a secret prefix of all the tenants here"],
    }
    llm = tiny.load(folder, record=tmp_path / "run", **options)
    llm.generate("a secret word", PARAMS, tenant="a-secret-tenant")
    text = (tmp_path / "run").read_text()
    assert "secret" not in text and str(folder) not in text
    assert read_trace(tmp_path / "run").header["options"]["tenant_limits"] is True


PROGRAM = """
import sys
from minillm import LLM
llm = LLM(sys.argv[1], device="cpu", kv_memory="1MiB", record=sys.argv[2])
llm.engine.add_request([1])
"""


def test_what_follows_the_last_step_is_written_in_the_end(folder: Path, tmp_path: Path) -> None:
    """When the engine is gone, and when the process ends."""
    llm = tiny.load(folder, record=tmp_path / "a")
    llm.engine.add_request([1, 2], PARAMS)
    assert read_trace(tmp_path / "a").events == []
    del llm
    gc.collect()
    assert [event.kind for event in read_trace(tmp_path / "a").events] == ["queue"]
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "b")], check=True)
    assert [event.kind for event in read_trace(tmp_path / "b").events] == ["queue"]


def test_events_without_a_step_do_not_pile_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "MAX_KEPT", 3)
    llm = tiny.load(folder, record=tmp_path / "run")
    for _ in range(8):
        llm.engine.add_request([1, 2], PARAMS)
    assert len(read_trace(tmp_path / "run").events) == 6


# ---- the file -------------------------------------------------------------------------------------


def test_only_the_owner_reads_it_and_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    tiny.load(folder, record=tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o600
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(UsageError, match=r"record: .* exists already"):
        tiny.load(folder, record=tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == before
    with pytest.raises(StorageError, match="cannot be made"):
        tiny.load(folder, record=tmp_path / "missing" / "run")


@pytest.mark.parametrize("value", ["", 3, b"a", True, Path()], ids=repr)
def test_what_is_no_path_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^record must be the path"):
        EngineConfig(record=value)


def test_a_full_disk_ends_the_record_and_no_request(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llm = recorded.load(folder, tmp_path / "run")
    real, left = os.write, [3]

    def full(file: int, data: Any) -> int:
        left[0] -= 1
        if left[0] > 0:
            return real(file, data)
        if left[0] == 0:
            return real(file, bytes(data)[:10])  # a part of it
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    outputs = llm.generate(recorded.PROMPTS, PARAMS)
    assert all(len(output.token_ids) == 4 and output.error is None for output in outputs)
    assert caplog.text.count("the recorded run ends here: No space left") == 1 and left == [-1]
    found = read_trace(tmp_path / "run")
    assert not found.is_cut and sum(event.kind == "step" for event in found.events) == 2
    assert llm.engine.events.detail is None


def test_an_interrupted_write_is_repeated_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LineFile(tmp_path / "a", "record", "the file")
    file.add("first")
    file.flush()
    real = os.write

    def interrupted(number: int, data: Any) -> int:
        real(number, bytes(data)[:3])
        raise KeyboardInterrupt

    file.add("second")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.flush()
    file.add("third")
    file.close()
    file.close()
    assert (tmp_path / "a").read_text() == "first\nsecond\nthird\n" and not file.is_open


def test_a_forked_process_writes_nothing(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "a", "record", "the file")
    file.add("mine")
    child = os.fork()
    if child == 0:
        file.add("the child's")
        file.close()
        os._exit(0)
    os.waitpid(child, 0)
    file.close()
    assert (tmp_path / "a").read_text() == "mine\n"


# ---- hostile files --------------------------------------------------------------------------------


def test_a_cut_file_is_whole_up_to_its_last_line(run_file: Path, tmp_path: Path) -> None:
    data, whole = run_file.read_bytes(), read_trace(run_file)
    header = data.index(b"\n") + 1
    for size in range(header, len(data), len(data) // 40):
        (tmp_path / "cut").write_bytes(data[:size])
        cut = read_trace(tmp_path / "cut")
        assert cut.events == whole.events[: len(cut.events)]
        assert cut.is_cut == (data[size - 1 : size] != b"\n")
    (tmp_path / "cut").write_bytes(data[:20])
    with pytest.raises(NotATrace, match="is no recorded run"):
        read_trace(tmp_path / "cut")


def changed(line: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**line, **changes}


QUEUE = {"prompt_tokens": 3, "n": 1, "prompt": "0" * 64, "tenant": "0" * 16}
LINE = {"kind": "queue", "step": 0, "time": 1e9, "request_id": "req-1", "data": QUEUE}
BLOCKS = {"kind": "blocks", "data": {"tables": [["req-1", 0, [3]]], "cached": [], "uncached": []}}
WRONG_LINES = {
    "not json": b"{",
    "not utf-8": b'{"kind": "\xff"}',
    "a list": b"[]",
    "deep": b"[" * 100000,
    "a huge number": json.dumps(LINE).replace("1000000000.0", "1" * 5000).encode(),
    "unknown kind": changed(LINE, kind="quene"),
    "kind is a list": changed(LINE, kind=["queue"]),
    "step is true": changed(LINE, step=True),
    "step is negative": changed(LINE, step=-1),
    "step is huge": changed(LINE, step=1 << 60),
    "time is text": changed(LINE, time="1"),
    "time is infinite": json.dumps(LINE).replace("1000000000.0", "1e999").encode(),
    "time is NaN": json.dumps(LINE).replace("1000000000.0", "NaN").encode(),
    "markup as id": changed(LINE, request_id="<script>"),
    "long id": changed(LINE, request_id="a" * 65),
    "no data": {key: value for key, value in LINE.items() if key != "data"},
    "a field too few": changed(LINE, data={"n": 1}),
    "a field too many": changed(LINE, data={**QUEUE, "text": "once"}),
    "tokens are text": changed(LINE, data={**QUEUE, "prompt_tokens": "3"}),
    "digest with a line break": changed(LINE, data={**QUEUE, "prompt": "0" * 64 + "\n"}),
    "a block too high": changed(LINE, **BLOCKS | {"data": BLOCKS["data"] | {"cached": [9]}}),  # type: ignore[operator]
    "a negative block": changed(LINE, **BLOCKS | {"data": BLOCKS["data"] | {"cached": [-1]}}),  # type: ignore[operator]
    "a short table": changed(LINE, **BLOCKS | {"data": BLOCKS["data"] | {"tables": [["a", 0]]}}),  # type: ignore[operator]
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_a_damaged_line_is_named(run_file: Path, tmp_path: Path, name: str) -> None:
    line, path = WRONG_LINES[name], tmp_path / "bad"
    header = run_file.read_bytes().split(b"\n")[0]
    good = json.dumps(changed(LINE, **BLOCKS)).encode()
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(b"\n".join([header, json.dumps(LINE).encode(), good, b""]))
    assert len(read_trace(path).events) == 2  # the control: without the line it is a trace
    path.write_bytes(b"\n".join([header, json.dumps(LINE).encode(), bad, good, b""]))
    with pytest.raises(NotATrace, match="line 3: ") as caught:
        read_trace(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "minillm divergence record"}, {"version": 2}, {"version": True}, {"num_blocks": 0},
        {"num_blocks": 1 << 70}, {"block_size": "16"}, {"clock": None}, {"model": []}, {"options": {"a": {}}},
        {"model": {"dtype": "x" * 65}}, {"device": ["cpu"]}, {"a b": 1},
        {"device": None}, {"backend": 3}, {"clock": -1.0}, {"model": {}},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_header_is_refused(run_file: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    first, *rest = run_file.read_text().split("\n")
    (tmp_path / "bad").write_text("\n".join([json.dumps({**json.loads(first), **changes}), *rest]))
    with pytest.raises(NotATrace):
        read_trace(tmp_path / "bad")


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableFile, match="No such file"):
        read_trace(tmp_path / "missing")
    with pytest.raises(UnreadableFile, match=r"not an ordinary file|Is a directory"):
        read_trace(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(NotATrace, match="is empty"):
        read_trace(tmp_path / "empty")
    (tmp_path / "zeros").write_bytes(bytes(5000))
    with pytest.raises(NotATrace, match="is no recorded run"):
        read_trace(tmp_path / "zeros")
    monkeypatch.setattr(trace_file, "LINE_LIMIT", 1000)
    with pytest.raises(NotATrace, match="line 1: longer than 1000 B"):
        read_trace(tmp_path / "zeros")


def test_a_file_that_is_too_long_is_refused(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "FILE_LIMIT", 10_000)
    with pytest.raises(NotATrace, match="the file is longer than"):
        read_trace(run_file)


@settings(max_examples=150)
@given(st.data())
def test_any_change_of_a_file_gives_a_trace_or_one_error(run_file: Path, data: st.DataObject) -> None:
    lines = run_file.read_bytes().split(b"\n")
    number = data.draw(st.integers(0, len(lines) - 1))
    line = bytearray(lines[number] + b"\n")
    at = data.draw(st.integers(0, len(line) - 1))
    line[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    path = run_file.with_name("changed")
    path.write_bytes(b"\n".join([lines[0], *lines[1:4]]) + b"\n" + bytes(line) if number else bytes(line))
    outcome = ""
    try:
        read_trace(path)
    except NotATrace as error:
        outcome = str(error)
    assert "\n" not in outcome and ("changed" in outcome or not outcome)


def test_the_log_is_silent_when_nothing_fails(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        recorded.run(recorded.load(folder, tmp_path / "run"))
    assert caplog.text == ""
