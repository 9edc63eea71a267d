"""Recorded traces of requests: when each arrived and how long it was. They hold no text.

    Azure      TIMESTAMP,ContextTokens,GeneratedTokens            CSV (Splitwise, ISCA 2024)
               2023-11-16 18:15:46.6805900,374,44
    Mooncake   {"timestamp": 0, "input_length": 900,              JSON lines, milliseconds
                "output_length": 52, "hash_ids": [46, 47]}        (FAST 2025)

A hash id names the content of 512 tokens of a prompt, together with all tokens before them: two requests
with the same ids at the start begin with the same text. Nothing about a file is certain: every line is
checked, and the first wrong one is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from minillm.bench.cache_sim.trace import mooncake_request
from minillm.bench.trace_lines import TraceLine, trace_lines
from minillm.config import require_int
from minillm.config.checks import require_number
from minillm.config.files import shown_path
from minillm.errors import UsageError

HASH_BLOCK = 512  # tokens that a hash id stands for
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MAX_LENGTH = 1 << 24  # tokens of a request
_MAX_MILLISECONDS = 1 << 48
_HINT = "a trace is a .csv file in the Azure format or a .jsonl file in the Mooncake format"


@dataclass(frozen=True)
class TraceRow:
    """One request: `time` in seconds from the start of the trace, lengths in tokens."""

    time: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path) -> Iterator[TraceRow]:
    """The requests of a trace; the end of its name tells the format.

    Raises:
        UsageError: another name.
        NotATrace, UnreadableFile: as `read_mooncake`.
    """
    readers = {".csv": read_azure, ".jsonl": read_mooncake}
    if path.suffix not in readers:
        raise UsageError(f"{shown_path(path)} has the name of no trace", _HINT)
    return readers[path.suffix](path)


def read_mooncake(path: Path) -> Iterator[TraceRow]:
    """The requests of a trace in the Mooncake format.

    Raises:
        NotATrace: a line is damaged, or its time is before the line above; the message names the line.
        UnreadableFile: there is no such file, or it cannot be read.
    """
    last = 0.0
    for number, line in trace_lines(path, _HINT):
        with TraceLine(path, number, _HINT):
            row = _mooncake_row(line, last)
        last = row.time
        yield row


def read_azure(path: Path) -> Iterator[TraceRow]:
    """The requests of a trace in the Azure format; the first one is at time 0. Raises as `read_mooncake`."""
    first = last = None
    has_header = False
    for number, line in trace_lines(path, _HINT):
        with TraceLine(path, number, _HINT):
            if not has_header:
                _require_header(line)
                has_header = True
                continue
            moment, prompt, answer = _azure_cells(line)
            first = first or moment
            if moment < (last or moment):
                raise UsageError("its time is before the line above")
        last = moment
        yield TraceRow((moment - first).total_seconds(), prompt, answer)


def _mooncake_row(line: bytes, last: float) -> TraceRow:
    request = mooncake_request(line)
    if request.timestamp / 1000 < last:
        raise UsageError("its time is before the line above")
    for name in ("input_length", "output_length"):
        require_int(name, getattr(request, name), minimum=0, maximum=_MAX_LENGTH)
    require_number("timestamp", request.timestamp, 0, _MAX_MILLISECONDS)
    if len(request.hash_ids) != -(-request.input_length // HASH_BLOCK):
        raise UsageError(f"hash_ids must be a list of one id for every {HASH_BLOCK} tokens of the input")
    return TraceRow(request.timestamp / 1000, request.input_length, request.output_length, request.hash_ids)


def _require_header(line: bytes) -> None:
    if tuple(line.decode("utf-8-sig").strip().split(",")) != COLUMNS:
        raise UsageError(f"the columns must be {', '.join(COLUMNS)}")


def _azure_cells(line: bytes) -> tuple[datetime, int, int]:
    cells = line.decode().strip().split(",")
    if len(cells) != len(COLUMNS):
        raise UsageError(f"it needs {len(COLUMNS)} cells and has {len(cells)}")
    try:
        moment = datetime.fromisoformat(cells[0])
    except ValueError:
        raise UsageError("TIMESTAMP is no time") from None
    if moment.tzinfo is not None:
        raise UsageError("TIMESTAMP must have no time zone")
    return moment, _cell(cells, 1, 1), _cell(cells, 2, 0)


def _cell(cells: list[str], index: int, low: int) -> int:
    if not (cells[index].isascii() and cells[index].isdigit()):
        raise UsageError(f"{COLUMNS[index]} must be an integer")
    return require_int(COLUMNS[index], int(cells[index]), minimum=low, maximum=_MAX_LENGTH)
