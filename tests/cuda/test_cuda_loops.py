"""The record of loops (minillm/bench/sass.json) is what nvcc makes of the kernels. Needs nvcc, no GPU.

MINILLM_RECORD=1 pytest tests/cuda/test_cuda_loops.py      after a deliberate change of a kernel
"""

from __future__ import annotations

import json
import os

import pytest
from gpu_objects import compile_once
from sass import Instruction, require_tools
from sass_loops import Scheduled, find_loops, trip_cycles
from sass_record import FILES, record_of

from minillm.bench.chips import CHIPS, H100
from minillm.bench.sass import RECORD
from minillm.toolchain.cuda_toolkit import find_cuda, nvcc_version
from minillm.toolchain.sources import find_sources

TOOL = require_tools()


@pytest.mark.parametrize("file", FILES)
def test_the_record_is_what_nvcc_makes_today(file, gpu_objects):
    (source,) = find_sources("cuda", f"{file}.cu")
    compiled, said = compile_once(source, gpu_objects)
    found: dict[str, dict[str, object]] = {}
    for chip in CHIPS.values():
        for name, code in record_of(TOOL, compiled, said, chip.arch).items():
            found.setdefault(name, {})[chip.arch] = code
    record = json.loads(RECORD.read_text())
    if os.environ.get("MINILLM_RECORD") == "1":
        record["kernels"] |= found
        RECORD.write_text(json.dumps(record, sort_keys=True) + "\n")
    if record["nvcc"] == nvcc_version(find_cuda()):  # others order instructions in another way
        assert found == {name: record["kernels"][name] for name in found}, "set MINILLM_RECORD=1 if intended"
    assert found


# ---- how the machine code is read ----------------------------------------------------------------------


def step(
    name: str, operands: str = "", stall: int = 1, sets: int = 7, waits: tuple[int, ...] = ()
) -> Scheduled:
    word = stall << 41 | sets << 46 | 7 << 49 | sum(1 << 52 + i for i in waits)
    return Scheduled(Instruction(None, name, operands), word)


def test_a_trip_takes_its_fixed_cycles_and_its_waits():
    body = [step("IADD3", stall=4), step("FFMA", stall=5)]
    assert trip_cycles(body, H100, 500) == 9
    alone = [step("LDG", sets=0), step("FADD", stall=4, waits=(0,))]
    assert trip_cycles(alone, H100, 500) == 504
    both = [step("LDG", sets=0), step("LDG", sets=1), step("FADD", stall=4, waits=(0, 1))]
    assert trip_cycles(both, H100, 500) == 505  # under way together
    serial = [step("LDG", sets=0), step("LDG", sets=1, waits=(0,)), step("FADD", stall=4, waits=(1,))]
    assert trip_cycles(serial, H100, 500) == 1004


def test_loops_are_found_and_what_they_seldom_run_is_left_out():
    code = [
        step("IADD3"),  # 0
        step("LDS"),  # 1: the outer loop begins
        step("FFMA"),  # 2: the inner loop
        step("BRA", "0x20"),  # 3
        step("BRA", "0x60"),  # 4: jumps over 5
        step("MUFU"),  # 5
        step("BRA", "0x10"),  # 6
    ]
    outer, inner = find_loops(code)
    assert [(loop.first, loop.last) for loop in (outer, inner)] == [(1, 6), (2, 3)]
    assert [s.name for s in outer.own] == ["LDS", "BRA", "BRA"]
    assert len(find_loops(code, keep_all=True)[0].own) == 4


def test_every_kernel_of_the_record_is_there():
    kernels = json.loads(RECORD.read_text())["kernels"]
    assert {name.split()[0] for name in kernels} == {
        *("v1", "v2", "v3", "d1", "d2", "d3", "d3_combine", "l1", "l2", "l3", "l4", "l5")
    }
    assert all({"80", "90"} <= set(code) for code in kernels.values())
