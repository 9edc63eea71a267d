"""The instructions of a compiled kernel (SASS), and how many of its loads are under way at once.

cuobjdump -sass linear.o      Function : _ZN7minillm...linear_kernel...
                                  /*0460*/   @P2 LDG.E.U16 R21, desc[UR8][R16.64] ;
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from minillm.toolchain.cuda_toolkit import Disassembler, find_cuda, find_disassembler

FUNCTION = re.compile(r"^\s*Function : (\S+)$")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?)(U?P\d+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
REGISTER = re.compile(r"\bR(\d+)\b")
MAX_THREADS = re.compile(r"EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+((?:0x[0-9a-f]+ ?)+)")


def require_tools() -> Disassembler:
    """The disassembler. Skips the module without it or nvcc; nvcc alone is an error with MINILLM_CI=1."""
    if find_cuda() is None:
        pytest.skip("no nvcc: the kernels are only simulated here", allow_module_level=True)
    if tool := find_disassembler():
        return tool
    if os.environ.get("MINILLM_CI") == "1":
        raise RuntimeError("no cuobjdump and nvdisasm, which scripts/test.sh installs with the tests")
    pytest.skip("no cuobjdump and nvdisasm: install minillm[test]", allow_module_level=True)


@dataclass(frozen=True)
class Instruction:
    """`guard` is ("", "P2") of an instruction that runs where P2 is true, ("!", "P2") where it is false."""

    guard: tuple[str, str] | None
    name: str
    operands: str

    def is_a(self, *names: str) -> bool:
        """Whether the name has these parts, the first one in front: LDG, 128 of LDG.E.128."""
        parts = self.name.split(".")
        return parts[0] == names[0] and set(names) <= set(parts)

    def registers(self) -> set[int]:
        return {int(number) for number in REGISTER.findall(self.operands)}

    def loaded(self) -> set[int]:
        """The registers that a load fills."""
        first = int(REGISTER.findall(self.operands)[0])
        return set(
            range(first, first + (4 if self.is_a("LDG", "128") else 2 if self.is_a("LDG", "64") else 1))
        )

    def excludes(self, other: Instruction) -> bool:
        """Whether a thread runs one of the two at most."""
        if self.guard is None or other.guard is None:
            return False
        return self.guard[1] == other.guard[1] and self.guard[0] != other.guard[0]


def disassemble(tool: Disassembler, compiled: Path, arch: str) -> dict[str, list[Instruction]]:
    """The instructions of each function in an object file, by its mangled name."""
    found: dict[str, list[Instruction]] = {}
    for line in tool.show("sass", compiled, f"sm_{arch}").splitlines():
        if match := FUNCTION.match(line):
            instructions = found.setdefault(match[1], [])
        elif match := INSTRUCTION.match(line):
            guard = (match[1], match[2]) if match[2] else None
            instructions.append(Instruction(guard, match[3], match[4].strip()))
    return found


def launch_bounds(tool: Disassembler, compiled: Path, arch: str) -> dict[str, int]:
    """The most threads that a block may have, of each function with __launch_bounds__."""
    found = {}
    for section in tool.show("elf", compiled, f"sm_{arch}").split("\n.nv.info.")[1:]:
        if threads := MAX_THREADS.search(section.partition("\n.")[0]):
            found[section.split("\n", 1)[0].strip()] = math.prod(int(n, 16) for n in threads[1].split())
    return found


def loads_under_way(instructions: list[Instruction], narrow: bool = False) -> int:
    """The most loads from global memory of which no result has been touched yet, in the order of the text.

    With `narrow` those of one number for each thread.
    """
    under_way: list[Instruction] = []
    most = 0
    for instruction in instructions:
        touched = instruction.registers()
        under_way = [
            load for load in under_way if not (load.loaded() & touched) or instruction.excludes(load)
        ]
        if instruction.is_a("LDG") and not (
            narrow and (instruction.is_a("LDG", "128") or instruction.is_a("LDG", "64"))
        ):
            under_way.append(instruction)
            most = max(most, len(under_way))
    return most


def before_the_first(instructions: list[Instruction], name: str) -> list[Instruction]:
    """The instructions in front of the first with this name."""
    numbers = [i for i, instruction in enumerate(instructions) if instruction.is_a(name)]
    return instructions[: numbers[0]] if numbers else instructions
