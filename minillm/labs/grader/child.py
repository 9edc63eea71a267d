"""The process that runs a student's file: load it, judge its tasks one by one, report each at once.

If the file ends this process, blocks it or fills its memory, only the running task fails: results that are
already reported stay, and the parent starts another child for the other tasks. Reports go through their own
pipe, one JSON object per line, so the file's output cannot disturb them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from minillm.labs.grader.cuda_judge import judge_section, load_source
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.earlier import earlier_version
from minillm.labs.grader.judge import first_line, judge
from minillm.labs.grader.lab import Lab, Part, Task
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.result import TaskResult, failed
from minillm.ops.simt.machine import machine

MAX_FILE_BYTES = 64 << 20


def main() -> None:
    """argv: report pipe, lab, file, first task's index, memory bytes, CPU seconds."""
    pipe, number, file, first, memory, cpu = sys.argv[1:7]
    reports = os.fdopen(int(pipe), "w", encoding="utf-8")

    def report(event: str, **fields: Any) -> None:
        reports.write(json.dumps({"event": event, **fields}) + "\n")
        reports.flush()

    lab = find_lab(number)
    torch.set_num_threads(1)
    if isinstance(lab, CudaLab):
        machine()  # the first use compiles it, which takes longer than the limit of a task
    set_limits(int(memory), int(cpu))
    report("ready")
    _check(lab, Path(file), int(first), report)
    with suppress(Exception):  # the file may have closed or replaced stdout
        sys.stdout.flush()
    os._exit(0)  # do not run the student's atexit handlers, do not wait for threads


def _check(lab: Lab, file: Path, first: int, report: Callable[..., None]) -> None:
    """Load the file and report the results from task `first` on, or report why the file cannot be loaded."""
    try:
        if message := earlier_version(lab, file.read_text(encoding="utf-8", errors="replace")):
            report("earlier", message=message)
            return
        module = load(file)
    except BaseException as error:
        report("unloadable", message=_load_error(error, file))
        return
    report("loaded")
    for task in lab.tasks[first:]:
        report("result", result=asdict(judge_file(lab, task, module, file)))


def set_limits(memory: int, cpu: int) -> None:
    """Allow `memory` bytes more than are mapped now, `cpu` seconds, small files, no core dumps."""
    limits = {
        resource.RLIMIT_AS: mapped_bytes() + memory,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # macOS has RLIMIT_AS but does not allow to set it; the time limit still applies.
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


def mapped_bytes() -> int:
    """The mapped address space; torch maps gigabytes that it never uses. 8 GiB if it is unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 << 30


def load(file: Path) -> ModuleType:
    """Run the student's file as a module. It can import modules beside it, but these never hide others."""
    sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location("student_lab", file)
    if file.suffix == ".cu":
        sys.modules["student_lab"] = load_source(file)
        return sys.modules["student_lab"]
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["student_lab"] = module
    spec.loader.exec_module(module)
    return module


def judge_file(lab: Lab, task: Task, module: ModuleType, file: Path) -> TaskResult:
    """Judge one task of a loaded file."""
    if isinstance(lab, CudaLab):
        return judge_section(lab, task, module.source, file)
    needed = [task.part] if task.part else lab.parts
    for part in needed:
        lost = _missing(module, part)
        if lost:
            return failed(task, "missing", f"{file.name} has no {lost}: start from the skeleton")
    try:
        if task.part is None:
            return judge(task, module, lab.own(), file)
        with around(lab, task.part, module):
            return judge(task, getattr(module, task.part.name), task.part.own, file)
    except MemoryError:
        return failed(task, "memory", "the file needs more memory than a check may use")
    except BaseException as error:
        return failed(task, "crash", f"the check was ended by {type(error).__name__}: {error}")


@contextmanager
def around(lab: Lab, part: Part, module: ModuleType) -> Iterator[None]:
    """Replace all other parts by the engine's own, so that only `part` is judged."""
    saved: list[tuple[Any, str, Any]] = []
    for other in lab.parts:
        if other == part:
            continue
        mine = getattr(module, other.name, None)
        if other.name != part.name:
            saved.append((module, other.name, mine))
            setattr(module, other.name, other.own)
        else:
            for name in (*other.methods, *other.helpers):
                saved.append((mine, name, getattr(mine, name, None)))
                setattr(mine, name, getattr(other.own, name))
    try:
        yield
    finally:
        for holder, name, value in reversed(saved):
            setattr(holder, name, value)


def _missing(module: ModuleType, part: Part) -> str:
    """The name of the first function or method of `part` that the file does not have, or ""."""
    mine = getattr(module, part.name, None)
    if not callable(mine):
        return part.name
    return next((f"{part.name}.{name}" for name in part.methods if not hasattr(mine, name)), "")


def _load_error(error: BaseException, file: Path) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    at = f" in line {line}" if line else ""
    text = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return f"{type(error).__name__}{at}: {text}" if text else f"{type(error).__name__}{at}"
