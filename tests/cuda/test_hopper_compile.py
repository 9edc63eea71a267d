"""The words of sm_90 as nvcc compiles them: to which instructions, without spills, and on older chips at all.

Needs nvcc but no GPU; the instructions also need cuobjdump and nvdisasm.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from gpu_objects import compile_once
from sass import disassemble, require_tools

from minillm.toolchain.cuda import compile_command, wanted_architectures
from minillm.toolchain.cuda_toolkit import find_cuda
from minillm.toolchain.sources import find_sources

TOOL = require_tools()
KERNELS = Path(__file__).parent / "kernels"
# (kernel, what its instructions begin with)
INSTRUCTIONS = [
    ("bulk_reverse", "UBLKCP"),
    ("bulk_reverse", "SYNCS.EXCH"),  # mbarrier_init
    ("bulk_reverse", "SYNCS.ARRIVE.TRANS64"),
    ("bulk_reverse", "SYNCS.PHASECHK.TRANS64.TRYWAIT"),
    ("3boxILi2E", "UTMALDG.2D"),
    ("3boxILi3E", "UTMALDG.3D"),
    ("3boxILi4E", "UTMALDG.4D"),
    ("7productI13__nv_bfloat16Li64E", "HGMMA.64x64x16.F32.BF16"),
    ("7productI13__nv_bfloat16Li128E", "HGMMA.64x128x16.F32.BF16"),
    ("7productI6__halfLi64E", "HGMMA.64x64x16.F32"),
    ("7productI13__nv_bfloat16Li64E", "FENCE.VIEW.ASYNC"),
    ("two_groups", "WARPGROUP.DEPBAR"),
    ("9registers", "USETMAXREG"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_once(KERNELS / "hopper.cu", tmp_path_factory.mktemp("hopper"), ["90a"])


@pytest.fixture(scope="module")
def functions(compiled):
    return disassemble(TOOL, compiled[0], "90a")


def check_said(said: str) -> None:
    """What ptxas said of kernels for sm_90a."""
    assert "0 bytes spill stores" in said
    assert said.count(" spill stores") == said.count("0 bytes stack frame, 0 bytes spill stores")
    assert "Potential Performance Loss" not in said  # ptxas would serialise wgmma, or ignore setmaxnreg


def test_nothing_spills_and_no_wgmma_waits_alone(compiled):
    check_said(compiled[1])


@pytest.mark.parametrize(("kernel", "instruction"), INSTRUCTIONS)
def test_a_word_is_the_instruction_that_it_stands_for(functions, kernel, instruction):
    found = [code for name, code in functions.items() if kernel in name]
    assert found
    assert all(any(i.name.startswith(instruction) for i in code) for code in found)


def test_attention_v4_copies_and_multiplies_with_these_instructions(tmp_path):
    (source,) = find_sources("cuda", "attention_v4.cu")
    compiled, said = compile_once(source, tmp_path, ["90a"])
    check_said(said)
    functions = disassemble(TOOL, compiled, "90a")
    assert len(functions) == 4
    for name, code in functions.items():
        steps = 4 + (8 if "Li128E" in name else 4)  # of P V, and of Q K^T
        assert sum(i.name.startswith("HGMMA") for i in code) == steps, name
        for instruction in ("UTMALDG.3D", "LDGSTS", "SYNCS.PHASECHK", "USETMAXREG"):
            assert any(i.name.startswith(instruction) for i in code), (name, instruction)
        assert not any(i.is_a("HMMA") or i.is_a("LDSM") for i in code)


def test_control_what_ptxas_ignores_is_seen(tmp_path):
    """It cannot move registers if a kernel does not say how many it begins with."""
    source = tmp_path / "registers.cu"
    kernel = (
        "__global__ void __launch_bounds__(256) f(float* y) { raise_registers<240>(); y[threadIdx.x] = 1; }"
    )
    source.write_text(f'#include "dialect_hopper.h"\n{kernel}\n')
    said = compile_once(source, tmp_path / "objects", ["90a"])[1]
    with pytest.raises(AssertionError):
        check_said(said)


def test_control_plain_sm_90_has_no_wgmma(tmp_path):
    """There the word traps; a kernel that needs it is compiled for sm_90a."""
    target = tmp_path / "hopper.ptx"
    command = compile_command(find_cuda(), KERNELS / "hopper.cu", target, [])
    subprocess.run([*command, "-ptx", "-arch=compute_90"], check=True, capture_output=True)
    assert "wgmma" not in target.read_text()
    assert "cp.async.bulk.tensor" in target.read_text()


def test_a_file_with_these_words_compiles_for_older_chips(tmp_path):
    command = compile_command(find_cuda(), KERNELS / "hopper_bugs.cu", tmp_path / "out.o", ["75", "90"])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("named", "capability", "wanted"),
    [("", (9, 0), ["90a"]), ("", (8, 6), ["86"]), ("8.0 9.0a;12.0", (9, 0), ["80", "90a", "120"])],
)
def test_a_gpu_of_sm_90_gets_its_own_instructions(monkeypatch, named, capability, wanted):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert wanted_architectures() == wanted
