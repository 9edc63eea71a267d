"""Check submissions in several processes at once, and let no submission stop the others.

    main thread  <-- results as they come --  one thread per process  -- a line out, a line in -->  worker.py

If a process ends in the middle of a check, this submission gets no report and the next one a new process.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from typing import Any, TypeVar

from minillm.toolchain.python import module_command, module_environment

Item = TypeVar("Item")
Request = dict[str, Any]
SECONDS_TO_END = 10.0


class Pool:
    """Up to `jobs` processes. Use it in a `with` statement: at its end all processes are ended."""

    def __init__(self, jobs: int) -> None:
        self._threads = ThreadPoolExecutor(jobs)
        self._mine = threading.local()
        self._processes: list[subprocess.Popen[str]] = []
        self._is_ending = False

    def reports(
        self, items: Sequence[Item], request: Callable[[Item], Request]
    ) -> Iterator[tuple[Item, dict[str, Any] | None]]:
        """Each item with its report, in the order in which they are done; None if its process ended.

        `request` is called when a process is free, in that process's thread.
        """
        jobs: dict[Future[dict[str, Any] | None], Item] = {
            self._threads.submit(self._ask, request, item): item for item in items
        }
        for job in as_completed(jobs):
            yield jobs[job], job.result()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            with suppress(OSError):
                process.terminate()
        for process in self._processes:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            for stream in filter(None, (process.stdin, process.stdout)):
                with suppress(OSError):  # what was not sent yet is of no use
                    stream.close()

    def _ask(self, request: Callable[[Item], Request], item: Item) -> dict[str, Any] | None:
        process = getattr(self._mine, "process", None)
        if process is None or process.poll() is not None:
            if self._is_ending:
                return None
            process = self._mine.process = self._start()
        try:
            report = _exchange(process, request(item))
        except (OSError, ValueError):  # the process has ended
            self._mine.process = None
            return None
        return report

    def _start(self) -> subprocess.Popen[str]:
        """A process in its own session: Ctrl-C reaches only the main process, which then ends the others."""
        process = subprocess.Popen(
            module_command("minillm.labs.classroom.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=module_environment(),
            start_new_session=True,
        )
        self._processes.append(process)
        return process


def _exchange(process: subprocess.Popen[str], request: Request) -> dict[str, Any]:
    """Send a line, wait for a line."""
    if process.stdin is None or process.stdout is None:
        raise OSError("the process has no pipes")
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    report: dict[str, Any] = json.loads(process.stdout.readline())
    return report
