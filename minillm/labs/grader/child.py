"""The process that runs a student's file: load it, run its parts on the cases, send every answer at once.

It gives no verdict: the answers are compared in the grader's process. If the file ends this process, blocks
it or fills its memory, only the running task fails. Messages go through their own pipe, one line each: a key
that the file does not know, and a JSON object. So the file's output cannot disturb them.

    ready                          the limits begin to hold
    loaded                         or: earlier, unloadable {message}
    case {task, answer, passes}    for every case
    done {task, seconds}           or: end {task, status, message}
    refused {status, message}      at any time: the file did what a check does not allow
"""

from __future__ import annotations

import _thread
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from json.encoder import c_make_encoder, encode_basestring_ascii  # type: ignore[attr-defined]
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch

from minillm.labs.grader.answers import NoMemory, NotDone, answer
from minillm.labs.grader.audit import Watch
from minillm.labs.grader.cuda_judge import NotJudged
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.earlier import earlier_version
from minillm.labs.grader.hidden import with_hidden
from minillm.labs.grader.integrity import Snapshot
from minillm.labs.grader.lab import Lab, Task
from minillm.labs.grader.meter import counted_passes
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.seal import hide_grader, sealed, sealed_object
from minillm.labs.grader.student_file import load, load_error, part_of
from minillm.labs.grader.tripwire import Refused, tripwires
from minillm.ops.simt.machine import machine

MAX_FILE_BYTES = 64 << 20
Send = Callable[..., None]
Changed = Callable[[bool], str]
_count_threads = _thread._count  # all but the first


def main() -> None:
    """Read the order, one JSON object, from stdin, and carry it out."""
    order = json.loads(sys.stdin.buffer.read())
    send = _sender(order["pipe"], order["key"])
    lab = with_hidden(find_lab(order["lab"]), order["seed"], order["cases"])
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    if isinstance(lab, CudaLab):
        machine()  # the first use compiles it, which takes longer than the limit of a task
    file = Path(order["file"])
    check, changed = sealed(_check), _protected(lab, file, order["scratch"], send)
    set_limits(order["memory"], order["cpu"])
    first = order["first"]
    del order
    send("ready")
    check(lab, file, first, send, changed)
    with suppress(Exception):  # the file may have closed or replaced stdout
        sys.stdout.flush()
    os._exit(0)  # do not run the student's atexit handlers, do not wait for threads


def _protected(lab: Lab, file: Path, scratch: str, send: Send) -> Changed:
    """Arm the audit hook and hide the grader; return the function that says what the file has replaced."""
    if isinstance(lab, CudaLab):
        return cast(Changed, Snapshot().changed)
    watch = Watch(file.parent, scratch, lambda why: send("refused", status="refused", message=why))
    changed = sealed_object(Snapshot(hide_grader())).changed
    watch.arm()
    return cast(Changed, changed)


def _sender(pipe: int, key: str) -> Send:
    """A function that sends one message. It ends the process if it cannot: nothing may go unsaid."""
    dumps, write, leave = _encoder(), os.write, os._exit

    def send(event: str, **fields: Any) -> None:
        data = f"{key} {dumps({'event': event, **fields})}\n".encode()
        try:
            while data:
                data = data[write(pipe, data) :]
        except OSError:
            leave(1)

    return send


def _encoder() -> Callable[[Any], str]:
    """`json.dumps`, but all of it is C code: no class or function of `json` can be replaced in it."""
    make, join = c_make_encoder, "".join
    if make is None:  # a Python without C code for json
        return json.dumps
    encoder = make(None, str, encode_basestring_ascii, None, ": ", ", ", False, False, True)
    return lambda value: join(encoder(value, 0))


def _check(lab: Lab, file: Path, first: int, send: Send, changed: Changed) -> None:
    """Load the file and send the answers from task `first` on, or say why the file cannot be loaded."""
    try:
        if message := earlier_version(lab, file.read_text(encoding="utf-8", errors="replace")):
            send("earlier", message=message)
            return
        with tripwires(lab, None, file.parent, lambda why: send("refused", message=why)):
            module = load(file)
    except BaseException as error:
        send("unloadable", message=load_error(error, file))
        return
    _compare(changed, send)
    send("loaded")
    for task in lab.tasks[first:]:
        start = time.monotonic()
        reason = _run_task(lab, task, module, file, send, changed)
        _compare(changed, send)
        if reason:
            send("end", task=task.number, status=reason.status, message=str(reason))
        else:
            send("done", task=task.number, seconds=round(time.monotonic() - start, 2))


def _run_task(
    lab: Lab, task: Task, module: ModuleType, file: Path, send: Send, changed: Changed
) -> NotJudged | None:
    """Send the answer to every case; return why there are none."""

    def refuse(why: str) -> None:
        send("refused", status="engine", message=why)

    try:
        # Outside `part_of`: to look at a part may run the file's code, for example a metaclass.
        with tripwires(lab, task, file.parent, refuse), part_of(lab, task, module, file) as mine:
            for case in task.cases:
                with counted_passes() as passes:
                    found = answer(case, mine, file)
                _compare(changed, send, functions=False)
                send("case", task=task.number, answer=found, passes=astuple(passes))
    except NotJudged as reason:
        return reason
    except NotDone as todo:
        return NotJudged("todo", str(todo))
    except (MemoryError, NoMemory):
        return NotJudged("memory", "the file needs more memory than a check may use")
    except Refused as error:
        return NotJudged("refused", str(error))
    except BaseException as error:
        return NotJudged("crash", f"the check was ended by {type(error).__name__}: {error}")
    return None


def _compare(changed: Changed, send: Send, functions: bool = True) -> None:
    """Tell the grader if the file replaced something that the check uses."""
    if name := changed(functions):
        send("refused", status="refused", message=f"the file replaced {name}")
    if _count_threads() > 0:
        send("refused", status="refused", message="the file leaves a thread running")


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
