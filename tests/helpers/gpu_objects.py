"""The CUDA kernels as nvcc compiles them: each source once in a test run, whatever the number of processes.

gpu-objects/linear.o      SASS for all architectures
            linear.txt    what nvcc and ptxas said: registers, spills, static shared memory of each function
            linear.lock   held by the process that compiles
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from minillm.toolchain.cuda import ARCHITECTURES, compile_command
from minillm.toolchain.cuda_toolkit import find_cuda
from minillm.toolchain.sources import csrc, find_sources

RECORD = Path(__file__).parents[1] / "cuda" / "cuda_registers.json"


def compile_once(
    source: Path, folder: Path, architectures: Sequence[str] = ARCHITECTURES
) -> tuple[Path, str]:
    """The object file, and the output of nvcc; the test fails with this output if nvcc fails or warns."""
    cuda = find_cuda()
    assert cuda is not None, "tests that compile for a GPU are skipped without nvcc"
    folder.mkdir(exist_ok=True)
    compiled, said = folder / f"{source.stem}.o", folder / f"{source.stem}.txt"
    with (folder / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.is_file():
            command = [*compile_command(cuda, source, compiled, architectures), "-Xptxas", "-v"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "warning" not in done.stderr, done.stderr
            said.write_text(done.stderr)
    return compiled, said.read_text()


def recorded_registers() -> dict[str, int]:
    """{kernel as a profile names it: registers of a thread, the most of sm_80 and sm_90}, on record."""
    found = {}
    for kernels in json.loads(RECORD.read_text())["registers"].values():
        for name, per_arch in kernels.items():
            found[name.removesuffix("_kernel")] = max(per_arch["sm_80"], per_arch["sm_90"])
    return found


def changed(kernel: str, folder: Path, edits: Sequence[tuple[str, str, str]]) -> Path:
    """A copy of a kernel's file with all headers beside it; each edit is (file, text, replacement).

    Only heads of 128 remain, so that it compiles in a few seconds.
    """
    (source,) = find_sources("cuda", f"{kernel}.cu")
    for path in (source, *(csrc() / "cuda").glob("*/*.h")):
        shutil.copy(path, folder)
    others = tuple(f"case {dim}:" for dim in (32, 64, 96, 256))
    dispatch = (folder / "dispatch.h").read_text().splitlines()
    (folder / "dispatch.h").write_text(
        "\n".join(line for line in dispatch if not line.strip().startswith(others))
    )
    for file, text, replacement in edits:
        before = (folder / file).read_text()
        assert text in before, f"{file} has no {text!r} any more"
        (folder / file).write_text(before.replace(text, replacement))
    return folder / source.name
