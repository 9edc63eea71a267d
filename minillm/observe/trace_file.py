"""A recorded run: every event of an engine in a file, and the file as events again.

    LLM(record="run.jsonl")     ->   lines, each one JSON object:

    {"format": "minillm trace", "version": 1, "clock": .., "block_size": 16, "num_blocks": 256, ..}   a header
    {"kind": "queue", "step": 0, "time": .., "request_id": "req-..", "data": {"prompt_tokens": 9, ..}}

The recorder is a listener, so it changes nothing (contract C8). It writes once a step (`config/new_file.py`);
what a killed process leaves is whole up to its last line break. A file that cannot be written, or would be
too long to be read, ends the record and no request. `clock` is the time of the header on the clock of the
events. The file holds what events hold: no text, no token id, no name. It shows what was asked when, so only
its owner can read it.

A reader believes nothing. The file may be another program's, changed by hand, a gigabyte without a line
break. Each line is checked (`trace_schema.py`), also against those before it (`trace_order.py`), and an error
is one line that names the line of the file. A last line without a line break was being written when the
process ended; it is left out, and `is_cut` says so.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.config.checks import shown
from minillm.config.files import shown_path
from minillm.config.line_files import json_object, numbered_lines
from minillm.config.new_file import LineFile
from minillm.config.sizes import format_bytes
from minillm.errors import NotATrace, UnreadableFile
from minillm.observe.events import Event, Events
from minillm.observe.trace_order import Order
from minillm.observe.trace_schema import (
    FIELDS,
    is_count,
    is_duration,
    is_number,
    is_plain,
    is_request,
    is_some,
    wrong_field,
    wrong_shape,
)

FORMAT, VERSION = "minillm trace", 1
LINE_LIMIT = 16 << 20  # bytes; the tables of a million blocks take 8 MB
MAX_KEPT = 1000  # events that wait for the end of a step
FILE_LIMIT = 1 << 30  # bytes, where a record ends, too; read, it takes several times as much
_MAKE = 'make one with LLM(record="run.jsonl")'
_AGAIN = "record the run again"


class TraceRecorder:
    """A listener that writes every event. `header`: what the first line says about the engine.

    Raises:
        UsageError, StorageError: the file exists, or cannot be made.
    """

    def __init__(self, path: str | Path, events: Events, header: Mapping[str, Any]) -> None:
        self._file = LineFile(path, "record", "the recorded run", FILE_LIMIT)
        self._events = weakref.ref(events)
        weakref.finalize(self, self._file.close)  # also when the process ends
        first = {"format": FORMAT, "version": VERSION, "clock": time.perf_counter(), **header}
        self._file.add(json.dumps(first))
        self._file.flush()

    def __call__(self, event: Event) -> None:
        """Keep one event; at the end of a step, or of very many events without a step, write them."""
        self._file.add(as_line(event))
        if event.kind == "blocks" or self._file.num_kept >= MAX_KEPT:  # `blocks` is the last of a step
            self._file.flush()
        if not self._file.is_open and (events := self._events()) is not None:
            events.detail = None  # nobody wants `blocks` any more


def as_line(event: Event) -> str:
    """An event as JSON, without a line break."""
    fields = {"kind": event.kind, "step": event.step, "time": event.time, "request_id": event.request_id}
    return json.dumps({**fields, "data": dict(event.data)}, separators=(",", ":"), allow_nan=False)


@dataclass
class Trace:
    """A recorded run. `is_cut`: its last line was written in part, and is left out."""

    name: str
    header: Mapping[str, Any]
    events: list[Event] = field(default_factory=list)
    is_cut: bool = False

    @property
    def clock(self) -> float:
        """The time of the header, on the clock of the events."""
        return float(self.header["clock"])


def read_trace(path: str | Path) -> Trace:
    """Read a recorded run. Tuples in the data of events have become lists.

    Raises:
        UnreadableFile: there is no such file, or it cannot be read.
        NotATrace: it is no recorded run, one of another version, a damaged or a too large one.
    """
    name, trace, order = shown_path(Path(path)), None, Order(0, 0)
    try:
        for number, line in _lines(Path(path), name):
            if not line.endswith(b"\n"):
                if trace is None:
                    raise NotATrace(f"{name} is no recorded run", _MAKE)
                trace.is_cut = True
                break
            found = _object(line, name, number)
            if trace is None:
                trace = Trace(name, _header(found, name))
                order = Order(trace.clock, trace.header["num_blocks"])
            else:
                trace.events.append(_event(found, trace, order, number))
    except UnreadableFile as error:
        raise UnreadableFile(error.message, _MAKE) from None
    except MemoryError:
        raise NotATrace(f"{name} does not fit the memory", "record a shorter run") from None
    if trace is None:
        raise NotATrace(f"{name} is empty", _MAKE)
    return trace


def _lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    def too_long(number: int) -> NotATrace:
        return NotATrace(f"{name}, line {number}: longer than {format_bytes(LINE_LIMIT)}", _AGAIN)

    size = 0
    for number, line in numbered_lines(path, LINE_LIMIT, too_long):
        size += len(line)
        if size > FILE_LIMIT:
            limit = format_bytes(FILE_LIMIT)
            raise NotATrace(f"{name}, line {number}: the file is longer than {limit}", "record a shorter run")
        yield number, line


def _object(line: bytes, name: str, number: int) -> dict[str, Any]:
    if (found := json_object(line)) is not None:
        return found
    if number == 1:
        raise NotATrace(f"{name} is no recorded run", _MAKE)
    raise NotATrace(f"{name}, line {number}: no JSON object", _AGAIN)


def _header(found: dict[str, Any], name: str) -> Mapping[str, Any]:
    if found.get("format") != FORMAT:
        raise NotATrace(f"{name} is no recorded run", _MAKE)
    version = found.get("version")
    if type(version) is not int or version != VERSION:
        raise NotATrace(
            f"{name} has version {shown(version)} of the format, not {VERSION}",
            "record the run with this version of minillm",
        )
    sizes = ("block_size", "num_blocks", "kv_bytes_per_token")
    wrong = [key for key in sizes if not is_some(found.get(key))]
    wrong += ["clock"] if not is_duration(found.get("clock")) else []
    wrong += [key for key in ("device", "backend") if not isinstance(found.get(key), str)]
    wrong += [key for key in ("model", "options") if not isinstance(found.get(key), dict)]
    wrong += [] if "model" in wrong else wrong_shape(found["model"])
    if wrong or not is_plain({**found, "model": None, "options": None}):
        raise NotATrace(f"{name}, line 1: {(wrong or ['a value'])[0]} is wrong", _AGAIN)
    if not is_plain(found["model"]) or not is_plain(found["options"]):
        raise NotATrace(f"{name}, line 1: a value is wrong", _AGAIN)
    return found


def _event(found: dict[str, Any], trace: Trace, order: Order, number: int) -> Event:
    kind, data = found.get("kind"), found.get("data")
    step, at, request_id = found.get("step"), found.get("time"), found.get("request_id")
    where = f"{trace.name}, line {number}"
    if not isinstance(kind, str) or kind not in FIELDS:
        raise NotATrace(f"{where}: kind is {shown(kind)}", _AGAIN)
    if not isinstance(data, dict) or not is_count(step) or not is_number(at) or not is_request(request_id):
        raise NotATrace(f"{where}: step, time, request_id or data is wrong", _AGAIN)
    if (wrong := wrong_field(kind, data)) is not None:
        raise NotATrace(f"{where}: {shown(wrong)} of {kind} is wrong", _AGAIN)
    if kind == "blocks" and max(_blocks(data), default=0) >= trace.header["num_blocks"]:
        raise NotATrace(f"{where}: there is no such block", _AGAIN)
    event = Event(kind, step, float(at), request_id, data)  # type: ignore[arg-type]
    if (wrong := order.wrong(event)) is not None:
        raise NotATrace(f"{where}: {wrong} contradicts the lines before it", _AGAIN)
    return event


def _blocks(data: Mapping[str, Any]) -> Iterator[int]:
    """Every block id in a `blocks` event."""
    yield from data["cached"]
    yield from data["uncached"]
    for _, _, ids in data["tables"]:
        yield from ids
