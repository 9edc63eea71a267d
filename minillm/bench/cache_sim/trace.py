"""Reads a trace in Mooncake's format, line by line, and believes nothing in it.

    {"timestamp": 27482, "input_length": 1031, "output_length": 52, "hash_ids": [0, 46, 47]}
      ms, in order         tokens of prompt and answer                one id per block of the prompt

An id stands for a block and everything before it. So two prompts that share an id share the whole prefix.
Other keys are ignored. Each error is one line and names the line of the file (`trace_lines.py`).

Left out: the size of a block. The trace does not say it, and the simulator does not need it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from minillm.bench.trace_lines import TraceLine, trace_lines
from minillm.config import require_int, shown
from minillm.config.checks import require_number
from minillm.config.files import shown_path
from minillm.errors import NotATrace, UsageError

MAX_BLOCKS = 10_000_000  # of a whole trace: about 0.5 GB of memory
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
_LARGEST = (1 << 63) - 1
HINT = f"a trace has one JSON object a line, with {', '.join(FIELDS)}"


class TraceRequest(NamedTuple):
    """One line of a trace: arrival in milliseconds, lengths in tokens, an id per block of the prompt."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace(path: Path) -> list[TraceRequest]:
    """All requests, in the order of arrival.

    Raises:
        UnreadableFile: there is no such file, or it cannot be read.
        NotATrace: a line is damaged, times go backwards, or the trace is empty or too long.
    """
    trace: list[TraceRequest] = []
    blocks = 0
    for number, line in trace_lines(path, HINT):
        with TraceLine(path, number, HINT):
            request = mooncake_request(line)
            if trace and request.timestamp < trace[-1].timestamp:
                raise UsageError("timestamp is earlier than in the line before")
            blocks += len(request.hash_ids)
            if blocks > MAX_BLOCKS:
                raise UsageError(f"the trace has more than {MAX_BLOCKS:,} blocks")
        trace.append(request)
    if not trace:
        raise NotATrace(f"{shown_path(path)} is empty", HINT)
    return trace


def mooncake_request(line: bytes) -> TraceRequest:
    """The request of one line.

    Raises:
        UsageError: it is damaged; the message names the field.
    """
    found = _object(line)
    for name in FIELDS:
        if name not in found:
            raise UsageError(f"the line lacks {name}")
    ids = found["hash_ids"]
    if not isinstance(ids, list) or not ids:
        raise UsageError(f"hash_ids must be a list of at least one id, not {shown(ids)}")
    return TraceRequest(
        require_number("timestamp", found["timestamp"], 0, _LARGEST),
        require_int("input_length", found["input_length"], minimum=1, maximum=_LARGEST),
        require_int("output_length", found["output_length"], minimum=0, maximum=_LARGEST),
        tuple(require_int("an id of hash_ids", block, minimum=0, maximum=_LARGEST) for block in ids),
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):  # also no UTF-8, and numbers of thousands of digits
        raise UsageError("no JSON object, or one with a key twice") from None
    if not isinstance(found, dict):
        raise UsageError("no JSON object")
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError
    return made
