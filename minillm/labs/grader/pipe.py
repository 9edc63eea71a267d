"""The grader's end of the student's process: start it, read its messages, end it.

grader ---- order (stdin) ----> child       one JSON object: lab, file, limits, hidden cases
       <--- pipe -------------- messages    a key and a JSON object on each line
       <--- stdout/stderr ----- output      the first few KiB are kept, the rest is read and dropped
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import minillm
from minillm.labs.grader.sandbox import sandboxed

KEPT_OUTPUT = 4096
MAX_LINE = 256 << 20  # bytes of one message; an answer is smaller than the memory that a check may use
# The path must not contain cwd (a student's random.py would be found first), but must contain this minillm.
BOOT = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from minillm.labs.grader import child; child.main()"
)


@dataclass
class Child:
    """A running process of a student's file."""

    process: subprocess.Popen[bytes]
    pipe: int
    key: str
    pending: bytearray = field(default_factory=bytearray)
    is_late: bool = False
    output: bytearray = field(default_factory=bytearray)

    def next(self, deadline: float) -> dict[str, Any]:
        """The next message; empty if none arrives in time, the child has ended, or it is no message."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.pipe, selectors.EVENT_READ)
            while (end := self.pending.find(b"\n")) < 0:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.is_late = True
                    return {}
                data = os.read(self.pipe, 1 << 20)
                if not data or len(self.pending) > MAX_LINE:
                    with suppress(subprocess.TimeoutExpired):  # the child has ended or is ending
                        self.process.wait(timeout=1)
                    return {}
                self.pending += data
        line = bytes(self.pending[:end])
        del self.pending[: end + 1]
        return self._message(line)

    def _message(self, line: bytes) -> dict[str, Any]:
        key, _, text = line.partition(b" ")
        if not secrets.compare_digest(key, self.key.encode()):
            return {}
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return message if isinstance(message, dict) else {}

    def exit_code(self) -> int | None:
        """As of `Popen.poll`. A sandbox reports a signal as 128 + its number."""
        code = self.process.poll()
        return 128 - code if code is not None and 128 < code < 193 else code

    def last_words(self) -> str:
        """The last line of the output, or the exit code."""
        text = bytes(self.output).decode(errors="replace").strip().splitlines()
        return text[-1] if text else f"exit code {self.process.poll()}"


@contextmanager
def started(order: dict[str, Any], file: Path, scratch: str) -> Iterator[Child]:
    """Start a child in its own session; at the end kill all processes of this session."""
    read, write = os.pipe()
    key = secrets.token_hex(16)
    root = Path(minillm.__file__).resolve().parent.parent
    command = [sys.executable, "-P", "-c", BOOT, str(root)]
    process = subprocess.Popen(
        sandboxed(command, scratch, [file.parent, root, *_caches()]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[write],
        env={**os.environ, "TMPDIR": scratch, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    os.close(write)
    child = Child(process, read, key)
    drain = threading.Thread(target=_drain, args=(process.stdout, child.output), daemon=True)
    drain.start()
    try:
        _give(process, {**order, "file": str(file), "scratch": scratch, "pipe": write, "key": key})
        yield child
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        drain.join(timeout=1)
        os.close(read)


def _caches() -> list[Path]:
    return [Path(os.environ["MINILLM_CACHE"])] if "MINILLM_CACHE" in os.environ else []


def _give(process: subprocess.Popen[bytes], order: dict[str, Any]) -> None:
    if process.stdin:
        with suppress(BrokenPipeError), process.stdin:  # it may have ended already
            process.stdin.write(json.dumps(order).encode())


def _drain(stream: IO[bytes], kept: bytearray) -> None:
    """Read the whole stream, so that the child never blocks; keep the beginning."""
    with stream:
        while data := os.read(stream.fileno(), 65536):
            kept += data[: KEPT_OUTPUT - len(kept)]
