"""The time of a product with weights of 4 bits that somebody wrote, beside the memory's bandwidth.

    source with run_plain(x, chunks, y, rows, out, in)  -- g++ -O3 -->  seconds in one thread

The matrix is larger than a cache, so a product of one row cannot be faster than the memory delivers the
chunks. With more rows there is more arithmetic for the same bytes. Both rates are measured in turns, and the
best of each counts: a shared machine is slower in some seconds. `minillm labs bench 14` uses this.

Left out: several threads.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minillm.bench.machine import bandwidth_reader, measure_in_turns
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import COMMON, BuildFailed
from minillm.toolchain.library import Library, Unit
from minillm.toolchain.sources import include_flags

SIDE, GROUP, WORDS = 16, 64, 160  # outputs and inputs of a chunk, and its words of 4 bytes
OUT, IN = 32_768, 4_096
ROWS = (1, 4, 16)
RUNS = 5
_FAST = [*COMMON, "-x", "c++", "-O3", "-march=native", "-Wno-unknown-pragmas"]


@dataclass(frozen=True)
class Timing:
    """The fewest `seconds` of a product by its rows; the best `bandwidth` of a thread, bytes per second."""

    out: int
    inputs: int
    nbytes: int
    bandwidth: float
    seconds: dict[int, float]


def measure(source: str, out: int = OUT, inputs: int = IN, runs: int = RUNS) -> Timing:
    """Compile `source` for this CPU, and time its `run_plain` in one thread.

    Raises:
        BuildFailed: it does not compile.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        product = _compiled(source, Path(folder))
        chunks = _chunks(out, inputs)
        rates = [_timed(product, chunks, rows, out, inputs) for rows in ROWS]
        *seconds, bandwidths = measure_in_turns([*rates, bandwidth_reader()], runs)
    best = dict(zip(ROWS, map(min, seconds), strict=True))
    return Timing(out, inputs, chunks.nbytes, max(bandwidths), best)


def _compiled(source: str, folder: Path) -> Any:
    """The function `run_plain`. The library is loaded when this returns, so the folder may go."""
    path = folder / "own_matmul.cu"
    path.write_text(source, encoding="utf-8")
    machine()  # kernels beside the function need the simulator's symbols
    library = Library("own-matmul", [Unit(path, _FAST, include_flags("cuda"))], folder=folder)
    return ctypes.CDLL(str(library.build())).run_plain


def _chunks(out: int, inputs: int) -> torch.Tensor:
    """Random chunks, int32 [chunks, words]: a scale and a minimum near 1 for each output, then codes."""
    count = -(-out // SIDE) * -(-inputs // GROUP)
    chunks = torch.randint(-(1 << 31), 1 << 31, (count, WORDS), dtype=torch.int32)
    chunks[:, : 2 * SIDE] = torch.rand(count, 2 * SIDE).add_(0.5).view(torch.int32)
    return chunks


def _timed(product: Any, chunks: torch.Tensor, rows: int, out: int, inputs: int) -> Callable[[], float]:
    """A function that runs the product once, and returns its seconds."""
    x, y = torch.randn(rows, inputs), torch.empty(rows, out)

    def once() -> float:
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, chunks, y)]
        start = time.perf_counter()
        product(*pointers, rows, out, inputs)
        return time.perf_counter() - start

    return once


def main() -> None:
    """In a process of its own: the source on stdin, the timing as JSON on stdout."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the product prints is no answer
    try:
        found = asdict(measure(sys.stdin.buffer.read().decode()))
    except BuildFailed as error:
        found = {"problem": str(error)}
    print(json.dumps(found), file=answer, flush=True)
