"""Reading a trace: every damaged line is one typed error that names the line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import hostile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.bench.cache_sim import trace as trace_file
from minillm.bench.cache_sim.trace import FIELDS, TraceRequest, read_trace
from minillm.bench.trace_lines import LINE_LIMIT
from minillm.errors import MinillmError, NotATrace, UnreadableFile

GOOD = {"timestamp": 5, "input_length": 700, "output_length": 3, "hash_ids": [0, 4]}


def written(folder: Path, *lines: Any) -> Path:
    """A file with these lines: bytes as they are, everything else as JSON."""
    path = folder / "a.jsonl"
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(data))
    return path


def refused(path: Path) -> MinillmError:
    with pytest.raises(MinillmError) as caught:
        read_trace(path)
    assert caught.value.message.isprintable() and len(caught.value.message) < 700
    return caught.value


def test_what_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, {**GOOD, "timestamp": 5.5, "type": "chat"}, b"")
    assert read_trace(path) == [TraceRequest(5, 700, 3, (0, 4)), TraceRequest(5.5, 700, 3, (0, 4))]


DAMAGED = {
    "no JSON": b"{",
    "cut": json.dumps(GOOD).encode()[:-3],
    "a list": [1],
    "a number": 7,
    "not UTF-8": b'{"timestamp": "\xff"}',
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "a BOM": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "a key twice": b'{"timestamp": 1, "timestamp": 2}',
    "nested": b"[" * 100_000,
    "a long number": b'{"timestamp": ' + b"9" * 5000 + b"}",
    "not a number": b'{"timestamp": NaN, "input_length": 1, "output_length": 1, "hash_ids": [1]}',
    "endless": b'{"timestamp": 1e999, "input_length": 1, "output_length": 1, "hash_ids": [1]}',
    "control characters": b"\x1b[31m\x00",
    "negative time": {**GOOD, "timestamp": -1},
    "no prompt": {**GOOD, "input_length": 0},
    "negative answer": {**GOOD, "output_length": -1},
    "half a token": {**GOOD, "output_length": 1.5},
    "a bool": {**GOOD, "input_length": True},
    "a text": {**GOOD, "input_length": "700"},
    "a huge length": {**GOOD, "input_length": 1 << 63},
    "a huge time": {**GOOD, "timestamp": 10**400},
    "no blocks": {**GOOD, "hash_ids": []},
    "blocks in a text": {**GOOD, "hash_ids": "0 4"},
    "a block that is no id": {**GOOD, "hash_ids": [0, None]},
    "a negative block": {**GOOD, "hash_ids": [0, -4]},
    "a huge block": {**GOOD, "hash_ids": [1 << 63]},
    "earlier": {**GOOD, "timestamp": 4},
    "too long": b" " * (LINE_LIMIT + 1),
} | {f"without {name}": {k: v for k, v in GOOD.items() if k != name} for name in FIELDS}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named(tmp_path: Path, line: Any) -> None:
    error = refused(written(tmp_path, GOOD, line, GOOD))
    assert isinstance(error, NotATrace) and error.exit_code == 2
    assert "a.jsonl, line 2: " in error.message and error.hint


def outcome(path: Path) -> str:
    try:
        return f"{len(read_trace(path))} read"
    except NotATrace as error:
        return error.message.partition("a.jsonl, ")[2]


@pytest.mark.parametrize("name", FIELDS)
def test_any_value_in_any_field(tmp_path: Path, name: str) -> None:
    """Hostile values: read, or one typed error of the line."""
    outcomes = [outcome(written(tmp_path, {**GOOD, name: value})) for value in hostile.VALUES]
    assert all(found == "1 read" or found.startswith(f"line 1: {NAMED[name]}") for found in outcomes)
    assert outcomes.count("1 read") == sum(READABLE[name](value) for value in hostile.VALUES)


NAMED = {name: name for name in FIELDS} | {"hash_ids": ""}
READABLE = {
    "timestamp": lambda v: type(v) in (int, float) and 0 <= v < (1 << 63) - 1,  # as a float that is too much
    "input_length": lambda v: type(v) is int and 1 <= v < 1 << 63,
    "output_length": lambda v: type(v) is int and 0 <= v < 1 << 63,
    "hash_ids": lambda v: False,
}


@given(data=st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    assert isinstance(refused(path), NotATrace | UnreadableFile)  # a git-LFS pointer is not the file


def test_a_gigabyte_without_a_line_break(tmp_path: Path) -> None:
    """A sparse file: only the first part of it is read."""
    path = written(tmp_path, GOOD, b"")
    os.truncate(path, 1 << 30)
    assert "line 2: longer than 1,048,576 bytes" in refused(path).message


def test_a_trace_of_too_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "MAX_BLOCKS", 5)
    assert len(read_trace(written(tmp_path, GOOD, GOOD))) == 2
    assert "line 3: the trace has more than 5 blocks" in refused(written(tmp_path, GOOD, GOOD, GOOD)).message


def test_an_empty_file(tmp_path: Path) -> None:
    error = refused(written(tmp_path))
    assert isinstance(error, NotATrace) and error.message.endswith("a.jsonl is empty")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("", "pipe", "nowhere", "gone", "x" * 5000, "a\0b"):
        error = refused(tmp_path / name)
        assert isinstance(error, UnreadableFile) and error.exit_code == 3
        assert "hash_ids" in error.hint
