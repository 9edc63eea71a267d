"""Runs tests in forked children of a process that has imported the third parties, but nothing of the package.

    this process --fork--> child: chdir into a copy of the tree, import package and tests, run pytest, exit
                 --fork--> child: ...

So a mutant costs the seconds of its tests, not those of importing torch. Children never see the checkout: the
copy comes first in sys.path, and a package module from anywhere else is an error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_IGNORED = (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info")
STUCK_AFTER = 60.0  # seconds without any processor time
MOST_MEMORY = 16 << 30  # bytes of address space for a child
# Exit codes of children in which something else is wrong than the mutant: pytest's own for an error inside
# itself, wrong arguments and no tests; and two of ours.
FOREIGN_MODULE, MISSING_TEST = 70, 71
NO_VERDICT = (3, 4, 5, FOREIGN_MODULE, MISSING_TEST)


def preload(names: Iterable[str]) -> None:
    """Import what the tests need and mutants cannot change; what is not installed is left to the tests."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if hypothesis := sys.modules.get("hypothesis"):
        # The same examples each time, and a failure is enough: nobody reads the smallest one.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
        hypothesis.settings.load_profile("mutants")


@dataclass
class Slot:
    """A copy of the tree, used by one child at a time."""

    tree: Path
    log: Path
    original: Path
    pid: int = 0
    mutated: str = ""
    ticks: int = 0  # of processor time that the child and its children had used
    since: float = 0.0  # when that was first so

    def write(self, file: str, source: str) -> None:
        """Put a mutated file into the tree. Its compiled form goes, as its time may look unchanged."""
        self.mutated = file
        (self.tree / file).write_text(source, encoding="utf-8")

    def is_stuck(self, now: float) -> bool:
        """Whether the child has computed nothing for `STUCK_AFTER` seconds: it waits for ever."""
        if now - self.since > 5:
            ticks = _ticks(self.pid)
            if ticks == 0 or ticks != self.ticks:  # 0: the system does not say
                self.ticks, self.since = ticks, now
        return now - self.since > STUCK_AFTER

    def restore(self) -> None:
        if self.mutated:
            shutil.copyfile(self.original / self.mutated, self.tree / self.mutated)
            self.mutated = ""


@contextlib.contextmanager
def slots(root: Path, count: int) -> Iterator[list[Slot]]:
    """Copies of the tree, removed at the end. No compiled files are written in them."""
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        made = []
        for i in range(count):
            tree = Path(name) / str(i)
            shutil.copytree(root, tree, ignore=shutil.ignore_patterns(*_IGNORED), symlinks=True)
            made.append(Slot(tree, Path(name) / f"{i}.log", root))
        try:
            yield made
        finally:
            for slot in made:
                _kill(slot)


def run_all(jobs: Iterable[Any], free: list[Slot], start: Callable[[Slot, Any], None]) -> Iterator[Any]:
    """Give each job to a free slot, whose child `start` forks.

    Yields (slot, job, exit status, processor seconds) as they end. Status None: it waited for ever.
    """
    queue, running, idle = list(jobs), dict[int, tuple[Slot, Any]](), list(free)
    while queue or running:
        while queue and idle:
            slot, job = idle.pop(), queue.pop(0)
            start(slot, job)
            slot.ticks, slot.since = 0, time.monotonic()
            running[slot.pid] = slot, job
        for pid, (slot, job) in list(running.items()):
            done, status, usage = os.wait4(pid, os.WNOHANG)
            is_stuck = not done and slot.is_stuck(time.monotonic())
            if not done and not is_stuck:
                continue
            _kill(slot)  # itself, or what it started
            if is_stuck:
                _, _, usage = os.wait4(pid, 0)
            del running[pid]
            idle.append(slot)
            code = None if is_stuck else os.waitstatus_to_exitcode(status)
            yield slot, job, code, usage.ru_utime + usage.ru_stime
        time.sleep(0.02)


def _ticks(group: int) -> int:
    """Processor time of all processes of a group, in the system's ticks."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(") ")[2].split()
            if fields[2] == str(group):
                total += sum(map(int, fields[11:15]))
    return total


def fork(slot: Slot, work: Callable[[], int]) -> None:
    """`work` in a child of its own session, its output in the slot's log."""
    sys.stdout.flush()
    slot.pid = os.fork()
    if slot.pid:
        return
    code = 1
    try:
        os.setsid()
        log = os.open(slot.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.RLIM_INFINITY))
        code = work()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run_pytest(tree: Path, root: Path, arguments: list[str], plugin: object, package: str) -> int:
    """pytest in `tree`, in this process; its exit code."""
    os.chdir(tree)
    outside = {str(root), str(root / "scripts" / "dev" / "mutants")}
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in outside and p)]
    os.environ["PYTHONPATH"] = str(tree)
    code = int(pytest.main([*arguments, "-q", "-p", "no:cacheprovider", "--tb=short"], plugins=[plugin]))
    foreign = [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package
        and not str(getattr(module, "__file__", tree)).startswith(str(tree))
    ]
    if foreign:
        print(f"imported from outside the copy: {foreign[:3]}")
        return FOREIGN_MODULE
    return code


@dataclass(eq=False)  # pytest keeps plugins in sets
class Chosen:
    """A pytest plugin: these tests, in this order, and none for much longer than without the mutant.

    `seconds` is what each test took, of processor time, so that a busy machine does not count against it. The
    signal ends the process: pytest would go on after an exception.
    """

    seconds: dict[str, float]
    patience: float = 5.0
    missing: list[str] = field(default_factory=list)
    is_importable: bool = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.is_importable &= not report.failed

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        found = {item.nodeid: item for item in items}
        if self.is_importable:  # else the mutant is killed by that
            self.missing = [name for name in self.seconds if name not in found]
        items[:] = [found[name] for name in self.seconds if name in found]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, self.patience + 5 * self.seconds[item.nodeid])
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _kill(slot: Slot) -> None:
    """End the slot's child and whatever it started."""
    if slot.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(slot.pid, signal.SIGKILL)
