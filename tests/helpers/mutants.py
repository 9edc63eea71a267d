"""Mutants: kernels with one wrong line. How they are built quickly, and which check catches them.

    dialect.h ---- parsed once a test run ----> first.h.gch --+
    copies of a kernel's files, one line changed -- compile --+-> a library of its own
                                                                    |
                       wrong numbers? (fast, check)    an error?    other traffic than the right kernel's?

The headers of the dialect take longer to parse than most kernels, so they are compiled ahead. There is no
debug information: a verdict names no line.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from minillm.ops.simt import KernelLibrary, Profile, SimtError, compile_kernels, flavour, profile
from minillm.toolchain.compiler import require_compiler
from minillm.toolchain.simt import kernel_unit
from minillm.toolchain.sources import find_sources

BARRIER = "__syncthreads();"
WRONG, BYTES, WAVEFRONTS, SURVIVED = "wrong numbers", "bytes", "wavefronts", "survived"
FLOAT32_ONLY = ("case DType::bf16", "case DType::f16")
KERNELS = Path(__file__).parents[1] / "cuda" / "kernels"
run_folder = Path()  # of this test run, shared by its processes: tests/cuda/conftest.py sets it
Edit = tuple[str, str, str]
Run = Callable[[KernelLibrary], tuple[Tensor, Tensor]]


@cache
def parsed_dialect() -> Path:
    """A file that includes the dialect, compiled ahead once for all processes of this run."""
    folder = run_folder / "dialect"
    folder.mkdir(exist_ok=True)
    first, compiled = folder / "first.h", folder / "first.h.gch"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not compiled.is_file():
            first.write_text('#include "dialect.h"\n')
            unit = kernel_unit(first, ["-g0", "-x", "c++-header"])
            subprocess.run([require_compiler().path, *unit.arguments(compiled)], check=True)
    return first


def copy_sources(folder: Path, names: Iterable[str]) -> None:
    """Copies of these files of csrc/cuda."""
    for name in names:
        (source,) = [path for path in find_sources("cuda", name) if path.name == name]
        shutil.copy(source, folder)


def make_edits(folder: Path, edits: Iterable[Edit]) -> None:
    """Replace the first place of a text in a file; the file must have it."""
    for file, old, new in edits:
        text = (folder / file).read_text()
        assert old in text, f"{file} has no {old!r} any more"
        (folder / file).write_text(text.replace(old, new, 1))


def drop_lines(path: Path, starts: tuple[str, ...]) -> None:
    """Remove lines that begin so: types and sizes that the test does not run need not be compiled."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.strip().startswith(starts)))


def compile_here(folder: Path, harness: str, flags: Sequence[str]) -> KernelLibrary:
    """Compile one of tests/cuda/kernels beside the copies in `folder`, into a library there."""
    shutil.copy(KERNELS / harness, folder)
    return compile_kernels(folder / harness, [*flags, "-g0", "-include", str(parsed_dialect())], folder)


def traffic(p: Profile) -> tuple[object, ...]:
    return p.tensors, p.global_read_bytes, p.launches, p.blocks


@cache
def right_profile(run: Run, right: KernelLibrary) -> Profile:
    with profile() as expected:
        run(right)
    return expected


def verdict(
    run: Run, library: KernelLibrary, right: KernelLibrary, is_right: Callable[[Tensor, Tensor], bool]
) -> str:
    """The check that catches the mutant, or "survived". `run` gives its result and the exact one."""
    for name in ("fast", "check"):
        try:
            with flavour(name), profile() as p:
                found, exact = run(library)
        except SimtError as error:
            return error.kind
        if not is_right(found, exact):
            return WRONG
    expected = right_profile(run, right)
    if traffic(p) != traffic(expected):
        return BYTES
    return WAVEFRONTS if p.shared_wavefronts > expected.shared_wavefronts else SURVIVED
