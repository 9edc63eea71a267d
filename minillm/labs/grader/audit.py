"""An audit hook in the student's process: what a part under check has no reason to do is refused.

Python calls the hook before it opens a file, starts a process, makes a code object. The hook is armed before
the student's file is loaded, and cannot be removed.

    read     the engine's sources (of loaded modules), files outside Python, the student's folder and scratch
    write    anything outside the scratch folder
    end      other processes
    start    processes, threads, sockets, ctypes, profilers
    look     at the engine's code objects, at all objects (gc), at the caller's frames (also through a
             traceback, a generator, or a function of Python's library that returns them)

A refused action raises PermissionError, and the grader is told at once, so the file cannot hide it by
catching the error. The hook stops ordinary ways, not every way: C code (an extension module) is not seen. The
sandbox (`sandbox.py`) is for that.
"""

from __future__ import annotations

import _posixsubprocess
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from minillm.labs.grader.seal import sealed_object
from minillm.labs.grader.tripwire import ENGINE, is_students, student_is_below

_NEVER = {
    "gc.get_objects": "searches all objects",
    "gc.get_referrers": "searches all objects",
    "gc.get_referents": "searches all objects",
    "sys._current_frames": "looks at the frames of the check",
    "sys.setprofile": "sets a profile function",
    "sys.settrace": "sets a trace function",
    "code.__new__": "makes code objects",
    "subprocess.Popen": "starts a process",
    "os.system": "starts a process",
    "os.exec": "starts a process",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.spawn": "starts a process",
    "pty.spawn": "starts a process",
    "_thread.start_new_thread": "starts a thread",
}
_FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
# Functions of Python's library that give a frame to their caller, by the end of their file's name.
_PASS_FRAMES_ON = {
    "/inspect.py": "",
    "/logging/__init__.py": "currentframe <lambda>",
    "/traceback.py": "walk_stack walk_tb",
}
_NEVER_IN = {"socket": "opens a socket", "ctypes": "uses ctypes"}
_CHANGES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
}
_START = _posixsubprocess.fork_exec
_MARSHAL = ("marshal.loads", "marshal.load")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SYSTEM = ("/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/")


@dataclass(frozen=True)
class Watch:
    """What the hook knows. `sources`: files that may not be read; `readable`: folders that may."""

    folder: Path
    scratch: str
    refuse: Callable[[str], None]
    sources: frozenset[str] = field(default_factory=lambda: frozenset(_sources()))
    trusted: frozenset[int] = field(default_factory=lambda: frozenset(map(id, _grader_code())))
    readable: tuple[str, ...] = field(default_factory=lambda: tuple(_readable()))
    busy: list[str] = field(default_factory=list)

    def arm(self) -> None:
        """Install the hook, for the rest of the process. No file can change a name in it (`seal.py`)."""
        sys.addaudithook(sealed_object(self)._hook)
        for module in (_posixsubprocess, subprocess):
            for name, value in list(vars(module).items()):
                if value is _START:
                    setattr(module, name, _refused_start)  # Python reports no event for it

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy:  # the hook itself looks at frames
            return
        is_frame = event == "object.__getattr__" and args[1] in _FRAMES
        if event == "object.__getattr__" and not is_frame and not _is_engines(args[0]):
            return
        self.busy.append(event)
        try:
            self._judge("sys._getframe" if is_frame else event, args)
        finally:
            self.busy.pop()

    def _judge(self, event: str, args: tuple[Any, ...]) -> None:
        caller = _caller() if event.startswith("object.") else None
        if caller is not None and id(caller.f_code) in self.trusted:
            return
        why = self._reason(event, args)
        if not why:
            return
        caller = _caller()
        if caller is not None and id(caller.f_code) in self.trusted:
            return
        if not _is_quiet(event, caller) and student_is_below(caller, str(self.folder)):
            self.refuse(f"the file {why}, which a check does not allow")
        raise PermissionError(f"a check does not allow this: the file {why}")

    def _reason(self, event: str, args: tuple[Any, ...]) -> str:
        """What is refused about the event, as a verb phrase; "" if nothing is."""
        if event == "open":
            return self._opens(*args)
        if event in ("os.kill", "os.killpg"):
            return "" if event == "os.kill" and args[0] == os.getpid() else "ends other processes"
        if event in _NEVER:
            return _NEVER[event]
        if event in ("object.__getattr__", "object.__setattr__", "sys._getframe", "compile", *_MARSHAL):
            return self._looks(event, args)
        if event in _CHANGES:
            return "" if self._may_write(_at(args)) else f"changes {_short(args[0])}"
        return _NEVER_IN.get(event.partition(".")[0], "") if event != "socket.gethostname" else ""

    def _looks(self, event: str, args: tuple[Any, ...]) -> str:
        frame = _caller()
        name = frame.f_code.co_filename if frame else ""
        if event == "sys._getframe":
            return "looks at the frames of the check" if _gets_frame(frame, str(self.folder)) else ""
        if event == "compile":
            is_spoof = str(args[1]).startswith(ENGINE) and not name.startswith("<frozen importlib")
            return "makes code in the engine's name" if is_spoof else ""
        if event in _MARSHAL:
            return "" if name.startswith("<frozen importlib") else "makes code objects"
        owner, attribute = args[0], args[1]
        if not attribute.startswith("__") or not _is_engines(owner):
            return ""
        if event == "object.__getattr__" and not student_is_below(frame, str(self.folder)):
            return ""  # the engine and torch may look at the signature of a function
        return f"looks at the code of {owner.__name__}"

    def _opens(self, path: Any, mode: Any, flags: Any) -> str:
        if not isinstance(path, str | bytes | os.PathLike):
            return ""  # a descriptor that is open already
        real = os.path.realpath(os.fsdecode(path))
        if isinstance(flags, int) and flags & _WRITES:
            return "" if self._may_write(real) else f"writes to {_short(path)}"
        if real in self.sources:
            return f"reads the engine's source {_short(path)}"
        near = (str(self.folder) + "/", self.scratch + "/", *self.readable)
        is_readable = real.startswith(near) and not real.endswith("/mem")
        return "" if is_readable or os.path.isdir(real) else f"reads {_short(path)}"

    def _may_write(self, real: str) -> bool:
        return real.startswith(self.scratch + "/") or real == self.scratch or real == os.devnull


def _caller() -> FrameType | None:
    """The frame that caused the event. Not `sys._getframe`, which is an event itself."""
    try:
        raise LookupError
    except LookupError as error:
        frame = error.__traceback__.tb_frame if error.__traceback__ else None
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


def _gets_frame(frame: FrameType | None, folder: str) -> bool:
    """Whether the student's code receives the frame that `frame` looks at."""
    while frame is not None:
        name, function = frame.f_code.co_filename, frame.f_code.co_name
        passing = [names for end, names in _PASS_FRAMES_ON.items() if name.endswith(end)]
        if not passing or (passing[0] and function not in passing[0].split()):
            return is_students(frame, folder)
        frame = frame.f_back
    return False


def _refused_start(*_: Any) -> None:
    """In place of the C function below `subprocess` and `multiprocessing`."""
    sys.audit("os.fork")
    raise PermissionError("a check does not allow this: the file starts a process")


def _is_quiet(event: str, frame: FrameType | None) -> bool:
    """Printing a traceback shows source lines if it may; that it may not is no offence."""
    names = []
    while frame is not None:
        names.append(os.path.basename(frame.f_code.co_filename))
        frame = frame.f_back
    return event == "open" and "linecache.py" in names[:3] and "inspect.py" not in names


def _at(args: tuple[Any, ...]) -> str:
    """The real path of the first argument; a relative one may be relative to an open folder."""
    path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
    if isinstance(args[-1], int) and args[-1] >= 0 and not os.path.isabs(path):
        path = os.path.join(os.path.realpath(f"/proc/self/fd/{args[-1]}"), path)
    return os.path.realpath(path)


def _short(path: Any) -> str:
    return os.path.basename(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else "a file"


def _is_engines(value: Any) -> bool:
    return isinstance(value, FunctionType) and str(value.__globals__.get("__name__")).startswith("minillm.")


def _sources() -> Iterator[str]:
    """The source and the compiled file of every loaded module of the engine."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "minillm" and isinstance(module, ModuleType):
            for path in (getattr(module, "__file__", None), getattr(module, "__cached__", None)):
                if path:
                    yield os.path.realpath(path)


def _readable() -> Iterator[str]:
    """Folders of Python, of installed packages and of the system, and the engine's other files."""
    places = [sys.prefix, sys.base_prefix, *(p for p in sys.path if p.endswith(("-packages", ".zip")))]
    cache = os.environ.get("MINILLM_CACHE")
    for place in (*places, *([cache] if cache else ())):
        yield os.path.realpath(place) + "/"
    yield from (ENGINE, *_SYSTEM)
    yield from (os.path.dirname(os.__file__) + "/", os.path.realpath(os.path.dirname(os.__file__)) + "/")


def _grader_code() -> Iterator[CodeType]:
    """The code objects of the grader: they may do what the file may not. A copy of one is another object."""
    for name, module in list(sys.modules.items()):
        if name.startswith("minillm.labs.grader."):
            for value in list(vars(module).values()):
                members = vars(value).values() if isinstance(value, type) else [value]
                for member in members:
                    code = getattr(getattr(member, "__wrapped__", member), "__code__", None)
                    if isinstance(code, CodeType) and code.co_filename.startswith(ENGINE):
                        yield from _with_inner(code)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _with_inner(const)
