"""What the machine code of a kernel says, on record: registers, shared memory, and the loops that take its
time.

nvcc and a disassembler made the record (tests/cuda/test_cuda_loops.py), and keep it true where they are.
Without them the record is read. The cycles are those of one warp that is alone on its sub-core: nothing is
in its way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from minillm.errors import UsageError

RECORD = Path(__file__).with_name("sass.json")


@dataclass(frozen=True)
class Loop:
    """One trip of a loop, without the loops inside it; what a trip seldom runs is left out.

    `fp32`, `alu`, `special` and `mma` are instructions for these units, `ffma` multiply-adds among them,
    `loads` those from global memory. A trip takes `cycles` where a load takes none, `cycles_at_1000` where
    one takes 1000 cycles. `waits`: how many latencies of global memory a trip waits for, one after another.
    """

    instructions: int
    fp32: int
    alu: int
    special: int
    ffma: int
    mma: int
    loads: int
    cycles: int
    cycles_at_1000: int
    waits: float

    def alone(self, latency: float) -> float:
        """Cycles of a trip where a load takes `latency`: it has its own length, or that of its waits."""
        return max(self.cycles, self.cycles_at_1000 - self.waits * (1000 - latency))


@dataclass(frozen=True)
class Code:
    """A compiled kernel. `shared` are its static bytes of shared memory."""

    registers: int
    shared: int
    loops: dict[str, Loop]


@cache
def _record() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(RECORD.read_text())["kernels"]
    return found


@cache
def code_of(kernel: str, arch: str) -> Code:
    """The compiled kernel of a name such as "v2 bfloat16 128", for sm_`arch`.

    Raises:
        UsageError: it is not on record, or this architecture cannot run it.
    """
    if kernel not in _record():
        raise UsageError(f"no machine code of {kernel!r} is on record", "predict heads of 64 or 128")
    if arch not in _record()[kernel]:
        raise UsageError(f"no machine code of {kernel!r} for sm_{arch} is on record", "choose a later chip")
    code = _record()[kernel][arch]
    loops = {name: Loop(*numbers) for name, numbers in code["loops"].items()}
    return Code(code["registers"], code["shared"], loops)
