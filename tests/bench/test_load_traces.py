"""Readers of traces: both formats, and every kind of damage as one line that names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm.bench.load.plan import Settings
from minillm.bench.load.traces import TraceRow, read_azure, read_mooncake, read_trace
from minillm.bench.load.workloads import make_plan
from minillm.errors import NotATrace, UnreadableFile, UsageError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = {"timestamp": 5, "input_length": 513, "output_length": 2, "hash_ids": [0, 9]}


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.9305900,3,0")
    assert list(read_trace(path)) == [TraceRow(0.0, 374, 44), TraceRow(1.25, 3, 0)]


def test_mooncake(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"timestamp": 1500, "extra": 1}))
    assert list(read_trace(path)) == [TraceRow(0.005, 513, 2, (0, 9)), TraceRow(1.5, 513, 2, (0, 9))]


def line(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b"{", "no JSON object"),
        (b"\xff\xfe", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"timestamp": ' + b"9" * 5000 + b"}", "no JSON object"),
        (b"[1]", "no JSON object"),
        (b"x" * (1 << 20), "longer than"),
        (line(timestamp=-1), "timestamp"),
        (line(timestamp=4), "before the line above"),
        (line(timestamp=float("nan")), "timestamp"),
        (line(timestamp=None), "timestamp"),
        (line(timestamp=1 << 60), "timestamp"),
        (line(input_length=0), "input_length"),
        (line(input_length=True), "input_length"),
        (line(input_length=1 << 40), "input_length"),
        (line(output_length="3"), "output_length"),
        (line(hash_ids=[1]), "hash_ids"),
        (line(hash_ids="ab"), "hash_ids"),
        (line(hash_ids=[1, -1]), "hash_ids"),
        (line(hash_ids=[1, 2.0]), "hash_ids"),
        (b"{}", "timestamp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_mooncake_lines_are_named(tmp_path: Path, damaged: bytes, words: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(line() + b"\n" + damaged + b"\n")
    with pytest.raises(NotATrace, match=f"line 2: .*{words}") as raised:
        list(read_mooncake(path))
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("2023-11-16 18:15:47,3", "3 cells"),
        ("2023-11-16 18:15:47,3,4,5", "3 cells"),
        ("yesterday,3,4", "TIMESTAMP"),
        ("2023-11-16 18:15:47+00:00,3,4", "time zone"),
        ("2023-11-16 18:15:45,3,4", "before the line above"),
        ("2023-11-16 18:15:47,0,4", "ContextTokens"),
        ("2023-11-16 18:15:47,-3,4", "ContextTokens"),
        ("2023-11-16 18:15:47,nan,4", "ContextTokens"),
        ("2023-11-16 18:15:47,٣,4", "ContextTokens"),
        ("2023-11-16 18:15:47,3,1e3", "GeneratedTokens"),
        ("2023-11-16 18:15:47,3,99999999999", "GeneratedTokens"),
        ("2023-11-16 18:15:47,3," + "9" * 5000, "cannot be read"),
    ],
)
def test_damaged_azure_lines_are_named(tmp_path: Path, damaged: str, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{HEADER}2023-11-16 18:15:46,3,4\n{damaged}\n", encoding="utf-8")
    with pytest.raises(NotATrace, match=f"line 3: .*{words}") as raised:
        list(read_azure(path))
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    (tmp_path / "columns.csv").write_text("a,b,c\n")
    with pytest.raises(NotATrace, match="line 1: the columns"):
        list(read_trace(tmp_path / "columns.csv"))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(NotATrace, match="is empty"):
        list(read_trace(tmp_path / "empty.jsonl"))
    for name in ("missing.csv", "."):
        with pytest.raises((UnreadableFile, UsageError)):
            list(read_trace(tmp_path / name))
    with pytest.raises(UsageError, match="name of no trace"):
        read_trace(tmp_path / "trace.txt")


@pytest.mark.parametrize("rate", [None, 3.0])
@pytest.mark.parametrize(("name", "text"), [("a.csv", HEADER), ("b.csv", "\n\n"), ("c.jsonl", "\r\n  \n")])
def test_a_trace_without_a_request_says_so(tmp_path: Path, name: str, text: str, rate: float | None) -> None:
    """Neither another rate nor a longer run would help."""
    (tmp_path / name).write_text(text)
    with pytest.raises(NotATrace, match=r"is empty|has no requests"):
        make_plan("trace", Settings(rate=rate, trace=tmp_path / name), 64, 320)
    (tmp_path / "far.jsonl").write_bytes(line(timestamp=0) + b"\n" + line(timestamp=9e6))  # control
    assert len(make_plan("trace", Settings(trace=tmp_path / "far.jsonl"), 64, 320).requests) == 1


def test_a_blank_line_above_the_columns_is_left_out_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n" + HEADER + "2023-11-16 18:15:46,3,4\n")
    assert list(read_trace(tmp_path / "a.csv")) == [TraceRow(0.0, 3, 4)]
    (tmp_path / "b.csv").write_text("\n2023-11-16 18:15:46,3,4\n" + HEADER)
    with pytest.raises(NotATrace, match="line 2: the columns"):
        list(read_trace(tmp_path / "b.csv"))


def test_a_trace_at_one_moment_has_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(line() + b"\n" + line() + b"\n")
    with pytest.raises(NotATrace, match="at once"):
        make_plan("trace", Settings(rate=3.0, trace=path), 64, 320)
    assert len(make_plan("trace", Settings(trace=path), 64, 320).requests) == 2
