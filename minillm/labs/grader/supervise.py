"""Run a student's file in child processes, and make a result of everything that happens there.

    parent ---- starts ----> child: loads the file, judges tasks 1 2 3 ...
           <-- report pipe -- result, result, ...    a deadline for each; after it: kill, result "timeout"
           <-- stdout/stderr - first few KiB kept    the rest is read and dropped

If a child ends before its last result, the task it was running fails; the next child starts with the task
after it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import minillm
from minillm.labs.grader.lab import Lab, Task
from minillm.labs.grader.report import Report
from minillm.labs.grader.result import Status, TaskResult, failed

KEPT_OUTPUT = 4096
START_SECONDS = 120.0  # importing torch from a cold disk; no student code runs in this time
# The path must not contain cwd (a student's random.py would be found first), but must contain this minillm.
BOOT = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from minillm.labs.grader import child; child.main()"
)


@dataclass(frozen=True)
class Limits:
    """The limits of a check: seconds for each task (and for loading), bytes in addition to torch's own."""

    seconds: float = 20.0
    memory: int = 1 << 30


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    pipe: int
    pending: bytes = b""
    is_late: bool = False
    output: bytearray = field(default_factory=bytearray)


def check(lab: Lab, file: Path, limits: Limits | None = None) -> Report:
    """Judge every task of `lab` on `file`. Nothing that the file does raises an error here."""
    limits = limits or Limits()
    results: list[TaskResult] = []
    output = b""
    with tempfile.TemporaryDirectory(prefix="minillm-lab-") as scratch:
        while len(results) < len(lab.tasks):
            with _child(lab, file.resolve(), len(results), limits, scratch) as child:
                results += _results(child, lab.tasks[len(results) :], limits)
            output += bytes(child.output)
    return Report(results, output[:KEPT_OUTPUT].decode(errors="replace"))


def _results(child: _Child, tasks: Sequence[Task], limits: Limits) -> list[TaskResult]:
    """The results of one child: at least one. If the file does not load, every task has the same failure."""
    if _next(child, START_SECONDS).get("event") != "ready":
        return [failed(task, "crash", f"the check could not start: {_last_words(child)}") for task in tasks]
    loaded = _next(child, limits.seconds)
    if loaded.get("event") == "earlier":
        return [failed(task, "earlier", str(loaded.get("message"))) for task in tasks]
    if loaded.get("event") != "loaded":
        why = str(loaded.get("message") or _end(child, limits)[1])
        return [failed(task, "unloadable", f"the file cannot be loaded: {why}") for task in tasks]
    results: list[TaskResult] = []
    for task in tasks:
        result = _as_result(_next(child, limits.seconds))
        if result is None or result.task != task.number:
            return [*results, failed(task, *_end(child, limits))]
        results.append(result)
    return results


def _as_result(message: dict[str, Any]) -> TaskResult | None:
    """The result in a report; None if there is none, for example if the file itself writes to the pipe."""
    try:
        return TaskResult(**message["result"])
    except (KeyError, TypeError):
        return None


def _next(child: _Child, seconds: float) -> dict[str, Any]:
    """The next report; empty if none arrives in time, the child has ended, or the line is not a report."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(child.pipe, selectors.EVENT_READ)
        while b"\n" not in child.pending:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                child.is_late = True
                return {}
            data = os.read(child.pipe, 65536)
            if not data:
                with suppress(subprocess.TimeoutExpired):  # the child has ended or is ending
                    child.process.wait(timeout=1)
                return {}
            child.pending += data
    line, _, child.pending = child.pending.partition(b"\n")
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _end(child: _Child, limits: Limits) -> tuple[Status, str]:
    """The reason why no report arrived, as the status and message of a result."""
    code = child.process.poll()
    if code is None and child.is_late:
        return "timeout", f"no answer after {limits.seconds:g} s: an endless loop?"
    if code is None:
        return "crash", "the report pipe is broken: does the file close or write to files it did not open?"
    if code < 0:
        return "crash", f"the process was ended by {signal.Signals(-code).name}"
    return "crash", f"the process ended itself with exit code {code}"


def _last_words(child: _Child) -> str:
    text = bytes(child.output).decode(errors="replace").strip().splitlines()
    return text[-1] if text else f"exit code {child.process.poll()}"


@contextmanager
def _child(lab: Lab, file: Path, first: int, limits: Limits, scratch: str) -> Iterator[_Child]:
    """Start a child in its own session; at the end kill all processes of this session."""
    read, write = os.pipe()
    cpu = int(limits.seconds * (len(lab.tasks) + 1) + START_SECONDS)  # a limit in case this process is killed
    root = str(Path(minillm.__file__).resolve().parent.parent)
    numbers = [str(n) for n in (write, lab.number, file, first, limits.memory, cpu)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, root, *numbers],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[write],
        env={**os.environ, "TMPDIR": scratch, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    os.close(write)
    child = _Child(process, read)
    drain = threading.Thread(target=_drain, args=(process.stdout, child.output), daemon=True)
    drain.start()
    try:
        yield child
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        drain.join(timeout=1)
        os.close(read)


def _drain(stream: IO[bytes], kept: bytearray) -> None:
    """Read the whole stream, so that the child never blocks; keep the beginning."""
    with stream:
        while data := os.read(stream.fileno(), 65536):
            kept += data[: KEPT_OUTPUT - len(kept)]
