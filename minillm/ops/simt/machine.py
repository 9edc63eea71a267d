"""The simulator's Python interface: settings of a run, counters, errors.

with flavour("check"):            # also checks for races, uninitialised reads, copies not waited for
    with profile() as p:
        ...                       # anything that runs kernels
p["attention_v2"].global_read_bytes; p.shared_wavefronts

with schedule(reverse=True): ...  # blocks, warps and lanes in another order

A third flavour, "asan", needs a process of its own (toolchain/sanitizer.py); it has no profile.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import MinillmError, UsageError
from minillm.toolchain.sanitizer import require_preloaded, sanitizing
from minillm.toolchain.simt import machine_library

FLAVOURS = ("fast", "check", "asan")
# Frames in these files are left out: they are functions of the dialect, not of a kernel.
_DIALECT = (
    *("simt.h", "warp.h", "cuda_words.h", "mbarrier.h", "bulk.h", "warpgroup.h", "wgmma.h"),
    *("dialect.h", "dialect_cuda.h", "dialect_hopper.h", "tiles.h", "numbers.h"),
)
_lock = threading.Lock()


class Frame(NamedTuple):
    """A place in a kernel's source; `function` is "" where it is not known."""

    file: str
    line: int
    function: str


class SimtError(MinillmError):
    """A kernel made an error that the simulator detects.

    `frames` are the places of the error: the innermost function first, then its callers as far as the
    compiler put one into the other. `other_frames` are those of the second access of a race; `detail` says
    what happened at both.

    `kind` is "race", "uninitialised", "copy not waited for", "divergence", "deadlock", "out of bounds",
    "misaligned", "shared memory", "warp operation" or "launch"; with the words of sm_90 also "mbarrier",
    "copy", "no proxy fence", "warpgroup", "wgmma" or "wgmma not waited for". `file` and `line` are None if
    the debug information could not be read.
    """

    def __init__(
        self,
        kind: str,
        kernel: str,
        block: tuple[int, int, int],
        thread: tuple[int, int, int],
        file: str | None,
        line: int | None,
        what: str,
        detail: tuple[str, str] = ("", ""),
        frames: Sequence[Frame] = (),
        other_frames: Sequence[Frame] = (),
    ) -> None:
        self.kind, self.kernel, self.block, self.thread = kind, kernel, block, thread
        self.file, self.line, self.detail = file, line, detail
        self.frames, self.other_frames = tuple(frames), tuple(other_frames)
        # A launch that is refused has no threads yet.
        place = "" if kind == "launch" else f", block {_index(block)}, thread {_index(thread)}"
        at = f" at {file}:{line}" if file else ""
        super().__init__(f"{kind} in {kernel}{place}{at}: {what}")


@dataclass
class Counters:
    """The memory traffic of kernels. Caches are not simulated.

    Global bytes are counted per warp: a byte that several lanes access at once counts once. Shared bytes
    are counted per lane. A *sector* is 32 bytes of global memory, the smallest unit that is fetched. In one
    *wavefront* each of the 32 banks of shared memory serves one word. `shared_accesses` counts warp-wide
    instructions: wavefronts / accesses is 1 for 4-byte accesses without bank conflicts. `barriers` are
    counted once per block. `async_copy_bytes` are those of cp.async and of bulk copies. `mma` counts
    instructions of a warp, `wgmma` instructions of a warpgroup. `tensors` has the global bytes by tensor:
    (read, written).
    """

    launches: int = 0
    blocks: int = 0
    threads: int = 0
    global_read_bytes: int = 0
    global_write_bytes: int = 0
    global_read_sectors: int = 0
    global_write_sectors: int = 0
    shared_read_bytes: int = 0
    shared_write_bytes: int = 0
    shared_accesses: int = 0
    shared_wavefronts: int = 0
    barriers: int = 0
    warp_operations: int = 0
    async_copy_bytes: int = 0
    mma: int = 0
    wgmma: int = 0
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __add__(self, other: Counters) -> Counters:
        names = [f.name for f in fields(Counters) if f.name != "tensors"]
        total = Counters(**{name: getattr(self, name) + getattr(other, name) for name in names})
        for tensors in (self.tensors, other.tensors):
            for name, (read, written) in tensors.items():
                before = total.tensors.get(name, (0, 0))
                total.tensors[name] = (before[0] + read, before[1] + written)
        return total


class Profile(Counters):
    """The sum over all kernels. `profile["rms_norm"]` are one kernel's counters, `kernels` those of each.

    `copies_to_device`, `copies_to_host`, `waits`: what a pass over a whole model asked of the CUDA runtime
    besides launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: dict[str, Counters] = {}
        self.copies_to_device = self.copies_to_host = self.waits = 0

    def __getitem__(self, kernel: str) -> Counters:
        return self.kernels[kernel]

    def finish(self, kernels: dict[str, dict[str, Any]], host: dict[str, int]) -> None:
        """Store the counters of a finished run."""
        self.kernels = {name: Counters(**counts) for name, counts in kernels.items()}
        self.__dict__.update(vars(sum(self.kernels.values(), Counters())) | host)


@cache
def machine() -> Any:
    """The simulator's module, compiled and loaded on first use.

    Raises:
        BuildFailed: it cannot be compiled here.
        UsageError: MINILLM_SANITIZE is 1, but the sanitizers are not preloaded.
    """
    require_preloaded()
    with _lock:
        path = machine_library().build()
        # RTLD_GLOBAL: kernel libraries find the simulator's functions among the global symbols of the
        # process.
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        loader = ExtensionFileLoader("simt_machine", str(path))
        spec = importlib.util.spec_from_file_location("simt_machine", path, loader=loader)
        if spec is None:
            raise ImportError(f"{path} is no Python module")
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module


@contextlib.contextmanager
def profile() -> Iterator[Profile]:
    """Count the traffic of the kernels that run inside the `with`. Profiles do not nest.

    Raises:
        UsageError: the flavour is "asan", which has no counters.
    """
    if sanitizing():
        raise UsageError("the asan flavour counts nothing", "profile without MINILLM_SANITIZE")
    counts = Profile()
    machine().start_profile()
    try:
        yield counts
    finally:
        counts.finish(*machine().stop_profile())


def flavours() -> tuple[str, ...]:
    """The flavours of this process: only "asan" if MINILLM_SANITIZE is 1, otherwise the others."""
    return FLAVOURS[2:] if sanitizing() else FLAVOURS[:2]


@contextlib.contextmanager
def flavour(name: str) -> Iterator[None]:
    """Run kernels with "fast" (bounds, alignment, barriers) or with "check" (also races).

    Raises:
        UsageError: there is no flavour of this name, or this process cannot run it.
    """
    if name not in FLAVOURS:
        raise UsageError(f"there is no flavour {name!r}", f"use {', '.join(FLAVOURS[:-1])} or {FLAVOURS[-1]}")
    if name not in flavours():
        hint = "unset MINILLM_SANITIZE" if sanitizing() else "bash scripts/sanitize.sh runs tests in it"
        raise UsageError(f"flavour {name!r} cannot run in this process", hint)
    before = machine().set_check(name == "check")
    try:
        yield
    finally:
        machine().set_check(before)


@contextlib.contextmanager
def schedule(reverse: bool = False, seed: int = 0, last_blocks: int = 0) -> Iterator[None]:
    """Run blocks, warps and lanes in another order: shuffled if `seed` is not 0, then reversed if wanted.

    With `last_blocks` only so many blocks at the end of each grid run: for grids too large to simulate.
    """
    before = machine().set_order(reverse, seed, last_blocks)
    try:
        yield
    finally:
        machine().set_order(*before)


@contextlib.contextmanager
def registers(of_thread: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Refuse launches of these kernels, named as in a profile, whose blocks need too many registers.

    ptxas chooses how many a thread has: without this the simulator does not know them. Gives the numbers
    that were known before.
    """
    before = machine().set_registers(dict(of_thread))
    try:
        yield before
    finally:
        machine().set_registers(before)


def raise_error() -> None:
    """Raise the error since the last call, if there is one. Launches work again afterwards.

    Raises:
        SimtError: with the place in the kernel's source.
    """
    error = machine().take_error()
    if error is None:
        return
    frames, others = _frames(error["where"]), _frames(error["other_where"])
    file, line = frames[0][:2] if frames else (None, None)
    what = error["message"]
    if len(frames) > 1:
        what += f" (from {_places(frames[1:])})"
    if error["other"]:
        what += f"; {error['other']}" + (f" at {_places(others)}" if others else "")
    place = (error["kernel"], error["block"], error["thread"], file, line)
    detail = (error["message"], error["other"])
    raise SimtError(error["kind"], *place, what, detail, frames, others)


def _places(frames: list[Frame]) -> str:
    return ", from ".join(f"{frame.file}:{frame.line}" for frame in frames)


def _frames(where: tuple[str, int] | None) -> list[Frame]:
    """The frames of a place, innermost function first, without frames of the dialect.

    `where` is (file, line), or (library, negative offset in the library), or None.
    """
    if where is None:
        return []
    if where[1] >= 0:
        return [Frame(Path(where[0]).name, where[1], "")]
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if tool is None:
        return []
    command = [tool, "-i", "-f", "-C", "-e", where[0], hex(-where[1])]
    said = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found = []
    for function, place in zip(said[::2], said[1::2], strict=False):
        file, _, line = place.partition(" (")[0].rpartition(":")
        if line.isdigit() and Path(file).name not in _DIALECT:
            found.append(Frame(Path(file).name, int(line), _plain(function)))
    return found


def _plain(function: str) -> str:
    """ "v0::load_tile(float (&) [1280])" becomes "load_tile"."""
    found = re.search(r"(\w+)(?:<.*>)?\((?!anonymous)", function)
    return found[1] if found else function


def _index(v: tuple[int, int, int]) -> str:
    """An index without trailing zeros: (3, 0, 0) becomes 3, (3, 1, 0) becomes (3, 1)."""
    if v[2]:
        return str(v)
    return str(v[:2]) if v[1] else str(v[0])
