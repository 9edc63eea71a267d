"""The loops of a kernel in its machine code (SASS): instructions of a trip, and its cycles in a warp alone.

    /*0200*/  LDS R4, [R2] ;          /* 0x0000...1984 */     a loop is what a backward branch encloses
                                      /* 0x000e2400... */     this word has what ptxas tells the scheduler:
    /*0210*/  FFMA R8, R4, R5, R8 ;
              bits 41..44  cycles until the next instruction of the warp may be issued
              bits 46..48  the barrier, of six, that this instruction frees when its result is there (7: none)
              bits 49..51  the same for its operands
              bits 52..57  the barriers that must be free before this instruction is issued

A warp issues in order. So a trip of a lone warp can be timed on paper: the fixed cycles are written in the
code, and what varies (memory, special functions) has a barrier. How many loads are under way at once is then
known too: those that are issued before the first barrier is waited for.

The layout of the word: Jia et al., arXiv 1804.06826, chapter 2; it is the same from sm_70 to sm_90.
Latencies: shared memory 23 cycles (Abdelkhalik et al., arXiv 2208.11174), ldmatrix and constants 29,
shuffles 24, special functions 18. Left out: misses of the instruction cache, and what a barrier of the block
waits for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sass import FUNCTION, INSTRUCTION, Instruction

from minillm.bench.chips import SUBCORES, WARP, Chip
from minillm.toolchain.cuda_toolkit import Disassembler

MMA_FLOPS = 2 * 16 * 8 * 16
LATENCY = {"LDS": 23, "LDSM": 29, "LDC": 29, "ULDC": 29, "SHFL": 24, "MUFU": 18, "S2R": 24, "S2UR": 24}
OTHER_LATENCY = 14  # of conversions, and until a store has read its operands
WORD = re.compile(r"/\* (0x[0-9a-f]{16}) \*/\s*$")
FP32 = {"FFMA", "FMUL", "FADD", "IMAD", "HADD2", "HFMA2", "HMUL2"}
NO_ALU = FP32 | set(LATENCY) | {"BRA", "BAR", "NOP", "LDG", "STG", "STS", "LDGSTS", "HMMA", "BSSY", "BSYNC"}
NO_ALU |= {"LDGDEPBAR", "DEPBAR", "WARPSYNC", "EXIT", "CALL"}


@dataclass(frozen=True)
class Scheduled:
    """An instruction, and what ptxas tells the scheduler about it."""

    instruction: Instruction
    word: int  # the upper half of its 128 bits

    @property
    def name(self) -> str:
        return self.instruction.name.split(".")[0]

    @property
    def stall(self) -> int:
        return self.word >> 41 & 15

    def frees(self, latency: int) -> list[tuple[int, int]]:
        """(barrier, cycles until it is free): one for its result and one for its operands, if it has them."""
        result = latency if self.name == "LDG" else LATENCY.get(self.name, OTHER_LATENCY)
        both = (self.word >> 46 & 7, result), (self.word >> 49 & 7, OTHER_LATENCY)
        return [(barrier, cycles) for barrier, cycles in both if barrier < 6]

    @property
    def waits(self) -> set[int]:
        return {i for i in range(6) if self.word >> 52 + i & 1}

    @property
    def target(self) -> int:
        """The number of the instruction to which it branches, -1 of others. Each instruction has 16 bytes."""
        match = re.search(r"0x([0-9a-f]+)", self.instruction.operands)
        return int(match[1], 16) // 16 if self.instruction.name == "BRA" and match else -1


@dataclass
class Loop:
    """Instructions number `first` to `last`; `own` are those of no loop inside, in the order of the text."""

    first: int
    last: int
    own: list[Scheduled] = field(default_factory=list)

    def count(self, *names: str) -> int:
        return sum(i.name in names for i in self.own)


def schedules(tool: Disassembler, compiled: Path, arch: str) -> dict[str, list[Scheduled]]:
    """The instructions of each function in an object file, by its mangled name."""
    found: dict[str, list[Scheduled]] = {}
    last = None
    for line in tool.show("sass", compiled, f"sm_{arch}").splitlines():
        if match := FUNCTION.match(line):
            code = found.setdefault(match[1], [])
        elif match := INSTRUCTION.match(line):
            guard = (match[1], match[2]) if match[2] else None
            last = Instruction(guard, match[3], match[4].strip())
        elif last and (match := WORD.search(line)):
            code.append(Scheduled(last, int(match[1], 16)))
            last = None
    return found


def find_loops(code: Sequence[Scheduled], keep_all: bool = False) -> list[Loop]:
    """The loops in the order of the text, each without what its trips seldom run, unless `keep_all`.

    Seldom run, by the look of it: what a branch jumps over, if no global load, copy or mma is in it, nor a
    loop. That is the rest of an unrolled loop, the mask of a tile on the diagonal, the merge at the end of a
    split.
    """
    spans = sorted({(i.target, n) for n, i in enumerate(code) if 0 <= i.target < n})
    # Code of a divergent branch lies behind the end of a kernel and jumps back into the middle of a loop.
    spans = [s for s in spans if not any(a < s[0] <= b < s[1] for a, b in spans)]
    loops = []
    for first, last in spans:
        inside = [s for s in spans if s != (first, last) and first <= s[0] and s[1] <= last]
        left_out = {n for a, b in inside for n in range(a, b + 1)}
        for n in range(first, last + 1):
            skipped = range(n + 1, min(code[n].target, last + 1))
            busy = any(code[k].name in ("LDG", "LDGSTS", "HMMA", "BAR") for k in skipped)
            if not keep_all and not busy and not any(a in skipped for a, _ in inside):
                left_out |= set(skipped)
        loops.append(Loop(first, last, [code[n] for n in range(first, last + 1) if n not in left_out]))
    return loops


def trip_cycles(body: Sequence[Scheduled], chip: Chip, latency: int) -> int:
    """Cycles from one trip to the next of a lone warp, where a global load takes `latency`."""
    barrier = [0.0] * 6
    free: dict[str, float] = {}
    now = ended = 0.0
    for _ in range(4):
        ended = now
        for step in body:
            unit, interval = _unit(step, chip)
            now = max([now, free.get(unit, 0.0), *(barrier[i] for i in step.waits)])
            free[unit] = now + interval
            for i, cycles in step.frees(latency):
                barrier[i] = max(barrier[i], now + cycles)
            now += max(step.stall, 1)
    return round(now - ended)


def _unit(step: Scheduled, chip: Chip) -> tuple[str, float]:
    """The unit of a sub-core that runs an instruction, and the cycles until it takes the next one."""
    if step.name == "HMMA":
        return "mma", MMA_FLOPS * SUBCORES / max(chip.tensor_flops, 1)
    if step.name == "MUFU":
        return "special", WARP * SUBCORES / chip.special
    if step.name in FP32:
        return "fp32", WARP * SUBCORES / chip.fp32
    return ("", 0) if step.name in NO_ALU else ("alu", WARP * SUBCORES / chip.alu)


def described(loop: Loop, chip: Chip) -> dict[str, float]:
    """What the record keeps of a loop: minillm/bench/sass.py says what each number is."""
    near, far = trip_cycles(loop.own, chip, 1000), trip_cycles(loop.own, chip, 2000)
    return {
        "instructions": len(loop.own),
        "fp32": loop.count(*FP32),
        "alu": sum(i.name not in NO_ALU for i in loop.own),
        "special": loop.count("MUFU"),
        "ffma": loop.count("FFMA"),
        "mma": loop.count("HMMA"),
        "loads": loop.count("LDG"),
        "cycles": trip_cycles(loop.own, chip, 0),
        "cycles_at_1000": near,
        "waits": (far - near) / 1000,
    }
