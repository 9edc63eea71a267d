"""A CUDA lab's text, compiled for the simulator and run in it: mistakes are found and bytes counted."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm.errors import UsageError
from minillm.labs.grader.cuda_text import check_kernels
from minillm.ops.simt import KernelLibrary, Profile, SimtError, compile_kernels, flavour, profile


class Kernels:
    """A .cu text, compiled when it is first run. Runs are checked for races and counted."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.counted = Profile()

    @cached_property
    def _library(self) -> KernelLibrary:
        # Kept as long as these kernels: an error's line is read from the library's debug information.
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / self.name
        path.write_text(self.text, encoding="utf-8")
        try:
            return compile_kernels(path, folder=path.parent)
        except UsageError as error:
            raise UsageError(error.message.replace(f"{path.parent}/", "")) from None

    def run(self, launcher: str, **arguments: Any) -> None:
        """Call a launcher under `check`; `counted` is what its kernels moved.

        Raises:
            SimtError: of a class named after its kind, so that two kinds are two answers.
            UsageError: the text does not compile.
        """
        library = self._library  # compiled outside of the profile
        try:
            with flavour("check"), profile() as self.counted:
                library.run(launcher, **arguments)
        except SimtError as error:
            error.__class__ = type(error.kind.replace(" ", "_"), (SimtError,), {})
            raise


def finished(file: Path) -> Kernels:
    """The finished file of a lab with its check kernels."""
    return Kernels(file.name, file.read_text(encoding="utf-8") + check_kernels(file))


def edited(file: Path, old: str, new: str) -> Kernels:
    """The finished file with one mistake in it."""
    text = file.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise LookupError(f"{file.name} has {old!r} {text.count(old)} times")
    return Kernels(file.name, text.replace(old, new) + check_kernels(file))
