"""A pytest plugin that notes which lines of the package each test runs, and its seconds of processor time.

Lines that a test runs itself are its own. Lines that fixtures run before it are put down for the whole file:
a shared fixture is set up by whichever test comes first, and every test of the file may depend on it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

Lines = dict[str, set[int]]  # by file, relative to the tree


def cpu_seconds() -> float:
    """Processor time of this process and of its ended children: a busy machine does not add to it."""
    return sum(os.times()[:4])


class LineTracer:
    """Lines run since `start`. A function is traced until each of its lines has been seen once."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self._files = {str(root / file): file for file in files}
        self._codes: dict[int, tuple[CodeType, str, frozenset[int]]] = {}  # by id, which the code keeps
        self._missing: dict[int, set[int]] = {}
        self._seen: Lines = {}

    def start(self) -> None:
        self._missing, self._seen = {}, {}
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def stop(self) -> Lines:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        return self._seen

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        missing = self._missing.get(id(code))
        if missing is None:
            missing = self._missing[id(code)] = self._lines_of(code)
        return self._step if missing else None

    def _lines_of(self, code: CodeType) -> set[int]:
        if id(code) not in self._codes:
            file = self._files.get(code.co_filename, "")
            lines = frozenset(line for _, _, line in code.co_lines() if line) if file else frozenset[int]()
            self._codes[id(code)] = code, file, lines
        return set(self._codes[id(code)][2])

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            missing = self._missing.get(id(frame.f_code), set())
            if frame.f_lineno in missing:
                missing.discard(frame.f_lineno)
                self._seen.setdefault(self._codes[id(frame.f_code)][1], set()).add(frame.f_lineno)
        return self._step


class Recorder:
    """`setup` are the lines of fixtures, `tests` what each test that passed ran, and its seconds."""

    def __init__(self, tracer: LineTracer) -> None:
        self._tracer = tracer
        self.setup: Lines = {}
        self.tests: dict[str, dict[str, Any]] = {}
        self._passed: dict[str, bool] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        started = cpu_seconds()
        self._tracer.start()
        try:
            return (yield)
        finally:
            for file, lines in self._tracer.stop().items():
                self.setup.setdefault(file, set()).update(lines)
            self.tests[item.nodeid] = {"setup": cpu_seconds() - started}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        started = cpu_seconds()
        self._tracer.start()
        try:
            return (yield)
        finally:
            self.tests[item.nodeid]["lines"] = self._tracer.stop()
            self.tests[item.nodeid]["seconds"] = cpu_seconds() - started

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._passed[report.nodeid] = self._passed.get(report.nodeid, True) and report.passed

    def result(self) -> dict[str, Any]:
        """As plain values. Tests that failed or were skipped tell nothing about a mutant: left out."""
        return {
            "setup": _plain(self.setup),
            "tests": {
                name: {**test, "lines": _plain(test["lines"])}
                for name, test in self.tests.items()
                if self._passed.get(name) and "lines" in test
            },
        }


def _plain(lines: Lines) -> dict[str, list[int]]:
    return {file: sorted(found) for file, found in lines.items()}
