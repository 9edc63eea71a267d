"""A CUDA lab's text, compiled for the simulator and run in it, with checks for races and byte counts."""

from __future__ import annotations

import re
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm.errors import UsageError
from minillm.labs.grader.cuda_text import check_kernels, sections_by_line
from minillm.ops.simt import KernelLibrary, Profile, SimtError, compile_kernels, flavour, profile


class Kernels:
    """A .cu text, compiled when it is first run. Runs are checked for races and counted."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.counted = Profile()

    @cached_property
    def _library(self) -> KernelLibrary:
        # The folder must live as long as the kernels: errors read line numbers from the library's debug data.
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / self.name
        path.write_text(self.text, encoding="utf-8")
        try:
            return compile_kernels(path, folder=path.parent)
        except UsageError as error:
            raise UsageError(error.message.replace(f"{path.parent}/", "")) from None

    def run(self, launcher: str, **arguments: Any) -> None:
        """Call a launcher in the `check` flavour; `counted` becomes the traffic of its kernels.

        Raises:
            SimtError: its class has the name of the error's kind, so different kinds are different answers.
            UsageError: the text does not compile.
        """
        library = self._library  # compile before the profile begins
        try:
            with flavour("check"), profile() as self.counted:
                library.run(launcher, **arguments)
        except SimtError as error:
            error.__class__ = type(error.kind.replace(" ", "_"), (SimtError,), {"place": self._place(error)})
            raise

    def _place(self, error: SimtError) -> str:
        """The array, and the sections of the statements that the error names: the same in every file."""
        names = sections_by_line(self.text, self.name)
        found = re.findall(r"(?:at|from) ([^:;]*\.cu):(\d+)", str(error))
        array = re.search(r"(?:reads|writes) `?(\w+)", str(error))
        return " ".join(
            [array[1] if array else "", *(names.get((name, int(line)), "given") for name, line in found)]
        )


def finished(file: Path) -> Kernels:
    """The finished file of a lab with its check kernels."""
    return Kernels(file.name, file.read_text(encoding="utf-8") + check_kernels(file))


def edited(file: Path, old: str, new: str) -> Kernels:
    """The finished file with one mistake in it."""
    text = file.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise LookupError(f"{file.name} has {old!r} {text.count(old)} times")
    return Kernels(file.name, text.replace(old, new) + check_kernels(file))
