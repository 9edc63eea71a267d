"""`minillm labs bench 14`: the time of a student's product on this CPU, beside the memory's bandwidth.

No points depend on the times: a shared or slow machine would lose points for its student.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import minillm
from minillm.config.files import read_file
from minillm.config.line_files import json_object
from minillm.errors import UsageError
from minillm.labs.grader import workspace
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.registry import find_lab, find_task
from minillm.labs.grader.sandbox import sandboxed
from minillm.tables import folding_table

# The sections of each lab that run on a CPU.
TIMED = {14: [f"14.{i}" for i in range(1, 7)]}
SECONDS = 300.0
_BOOT = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from minillm.bench import own_matmul; own_matmul.main()"
)


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `bench`."""
    bench = commands.add_parser("bench", help="time your product of lab 14 on this CPU; gives no points")
    bench.add_argument("lab", metavar="N", help="the lab's number: 14")
    bench.add_argument("--dir", type=Path, help="the lab's folder (default: labN_name here)")
    bench.set_defaults(func=lambda args: bench_lab(args.lab, args.dir))


def bench_lab(number: str, folder: Path | None) -> int:
    """Time the student's file and print a table."""
    lab = find_lab(number)
    if lab.number not in TIMED:
        raise UsageError(f"lab {lab.number} has nothing to time", "minillm labs bench 14")
    file = workspace.find_file(lab, folder)
    _print(file, _timing(_source(lab, file)))
    return 0


def _source(lab: Lab, file: Path) -> str:
    """The finished file with the student's sections for the CPU.

    Raises:
        UnreadableFile: the system does not let it be read.
        UsageError: a section is missing or not written.
    """
    from minillm.labs.grader.cuda_judge import NotJudged, section_kernels  # imports torch
    from minillm.labs.grader.cuda_lab import CudaLab
    from minillm.labs.grader.cuda_text import filled

    text, numbers = read_file(file).decode(errors="replace").replace("\r\n", "\n"), TIMED[lab.number]
    if not isinstance(lab, CudaLab):
        raise TypeError(f"lab {lab.number} has no sections")
    for number in numbers:
        try:
            section_kernels(lab, find_task(number)[1], text, file)
        except NotJudged as why:
            raise UsageError(str(why), f"a timing needs {numbers[0]} to {numbers[-1]}") from None
    return filled(lab.solution(), text, numbers, lab.file)


def _timing(source: str) -> dict[str, Any]:
    """What a process of its own measures, in the sandbox if there is one.

    Raises:
        UsageError: the file does not compile, crashes, or takes too long.
    """
    from minillm.toolchain.simt import machine_library

    machine_library().build()  # into the cache, which a sandbox cannot write to
    root = Path(minillm.__file__).resolve().parent.parent
    caches = [Path(os.environ["MINILLM_CACHE"])] if "MINILLM_CACHE" in os.environ else []
    with tempfile.TemporaryDirectory(prefix="minillm-lab-") as scratch:
        command = sandboxed([sys.executable, "-P", "-c", _BOOT, str(root)], scratch, [root, *caches])
        variables = {**os.environ, "TMPDIR": scratch, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, input=source.encode(), capture_output=True, env=variables, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"the product takes longer than {SECONDS:g} s", "is there an endless loop?"
            ) from None
    found = json_object(done.stdout)
    if done.returncode or found is None:
        raise UsageError("the product ends its process", "minillm labs check 14 finds accesses out of bounds")
    if "problem" in found:
        raise UsageError(f"the file does not compile: {found['problem']}", "minillm labs check 14")
    return found


def _print(file: Path, timing: dict[str, Any]) -> None:
    nbytes, memory, weights = timing["nbytes"], timing["bandwidth"], timing["out"] * timing["inputs"]
    headers = "rows", "ms", "ms a row", "GFLOP/s", "GB/s of chunks", "of the memory's rate"
    table = folding_table(*headers, title=str(file), title_justify="left")
    for rows, seconds in timing["seconds"].items():
        flops, rate = 2 * weights * int(rows) / seconds, nbytes / seconds
        times = f"{seconds * 1e3:.1f}", f"{seconds * 1e3 / int(rows):.1f}"
        cells = str(rows), *times, f"{flops / 1e9:.1f}", f"{rate / 1e9:.2f}", f"{rate / memory:.0%}"
        table.add_row(*(Text(cell, justify="right") for cell in cells))
    Console().print(table)
    print(f"the matrix: {timing['out']:,} x {timing['inputs']:,}, {nbytes >> 20} MiB of chunks")
    print(f"one thread reads {memory / 1e9:.1f} GB/s from memory. So a product takes at least")
    print(f"{nbytes / memory * 1e3:.1f} ms, and {2 * weights / memory * 1e3:.1f} ms with weights in bf16")
    print("no points depend on these times")
