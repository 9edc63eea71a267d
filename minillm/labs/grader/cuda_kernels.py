"""A CUDA lab's texts, compiled for the simulator and run in it, with checks for races and byte counts.

A compiler reads the headers for two seconds, and each text for half a second. So texts that are used together
(the known mistakes of a task) are compiled together, each in a namespace of its own:

    #define run_load v3_run_load
    namespace v3 {                      text 3, its launcher is called v3_run_load
    ...
    }

The lab's own texts never change, so their libraries stay in the cache. A student's is compiled in a temporary
folder.
"""

from __future__ import annotations

import re
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from minillm.errors import UsageError
from minillm.labs.grader.cuda_errors import in_words
from minillm.labs.grader.cuda_text import for_task, replaced, sections
from minillm.ops.simt import KernelLibrary, Profile, SimtError, compile_kernels, flavour, profile

# The compiler makes calls of library functions of these, and the simulator does not see what they read.
_COUNTED_COPIES = """
extern "C" void* __tsan_memcpy(void*, const void*, size_t);
extern "C" void* __tsan_memset(void*, int, size_t);
#ifndef SIMT_ASAN
#define memcpy __tsan_memcpy
#define memmove __tsan_memcpy
#define memset __tsan_memset
#define __builtin_memcpy __tsan_memcpy
#define __builtin_memmove __tsan_memcpy
#define __builtin_memset __tsan_memset
#endif
"""


class Build:
    """Texts that are compiled together, when the first of them runs."""

    def __init__(self, name: str, is_kept: bool = False) -> None:
        self.name, self.is_kept = name, is_kept
        self.texts: list[str] = []

    def add(self, text: str) -> Kernels:
        """The kernels of one more text."""
        self.texts.append(text)
        return Kernels(self, len(self.texts) - 1)

    @cached_property
    def library(self) -> KernelLibrary:
        """The compiled texts.

        Raises:
            UsageError: a text does not compile.
        """
        # The folder must live as long as the kernels: errors read line numbers from the library's debug data.
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / self.name
        path.write_text(
            '#include "dialect.h"\n'
            + _COUNTED_COPIES
            + "".join(map(_apart, range(len(self.texts)), self.texts)),
            encoding="utf-8",
        )
        try:
            return compile_kernels(path, folder=None if self.is_kept else path.parent)
        except UsageError as error:
            raise UsageError(error.message.replace(f"{path.parent}/", "")) from None


class Kernels:
    """One text of a build. Runs are checked for races and counted."""

    def __init__(self, build: Build, index: int) -> None:
        self.build, self.index = build, index
        self.counted = Profile()

    def run(self, launcher: str, is_checked: bool = True, **arguments: Any) -> None:
        """Call a launcher; `counted` becomes the traffic of its kernels.

        Without `is_checked` races and reads of uninitialised memory are no errors. Then the numbers show what
        they do, always the same, because the simulator's order is fixed.

        Raises:
            SimtError: the name of its class says what happened to what in which functions, so two errors are
                equal answers if they are the same error at the same place.
            UsageError: the text does not compile.
        """
        library = self.build.library  # compile before the profile begins
        try:
            with flavour("check" if is_checked else "fast"), profile() as self.counted:
                library.run(_name(self.index, launcher), **arguments)
        except SimtError as error:
            raise in_words(error, self.build.name) from None


@cache
def finished(file: Path, number: str = "") -> Kernels:
    """The finished file of a lab, with the check kernels of task `number`."""
    return Build(file.name, is_kept=True).add(for_task(file, number))


class Edits:
    """The finished file with mistakes in the section of one task."""

    def __init__(self, file: Path, number: str) -> None:
        self._file, self._number, self._build = file, number, Build(file.name, is_kept=True)

    def __call__(self, *changes: tuple[str, str]) -> Kernels:
        """The file with each `old` of the section replaced by its `new`."""
        text = self._file.read_text(encoding="utf-8")
        body = sections(text)[self._number][1]
        for old, new in changes:
            if body.count(old) != 1:
                raise LookupError(f"section {self._number} has {old!r} {body.count(old)} times")
            body = body.replace(old, new)
        return self._build.add(for_task(self._file, self._number, replaced(text, self._number, body)))


def _name(index: int, launcher: str) -> str:
    return f"v{index}_{launcher}"


def _apart(index: int, text: str) -> str:
    """`text` in its own namespace, its launchers under their own names."""
    launchers = sorted(set(re.findall(r"\bvoid (run_\w+)\(", text)))
    defined = "".join(f"#define {name} {_name(index, name)}\n" for name in launchers)
    undefined = "".join(f"#undef {name}\n" for name in launchers)
    return f"{defined}namespace v{index} {{\n{text}\n}}\n{undefined}"
