"""What a chip will run, read from SASS: tensor cores, asynchronous copies, loads that are under way together.

    LDG R14               LDG R14
    HADD2.F32 R29, R14    LDG R15               left: the first load is waited for before the second is issued
    LDG R15               HADD2.F32 R29, R14

Needs nvcc and a disassembler, no GPU. The packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm have one.
"""

from __future__ import annotations

import pytest
from gpu_objects import changed, compile_once
from sass import Instruction, before_the_first, disassemble, loads_under_way, require_tools

from minillm.toolchain.sources import find_sources

TOOL = require_tools()

each_arch = pytest.mark.parametrize("arch", ["80", "90"])
ROWS_AHEAD = {
    "f": 16,
    "13__nv_bfloat16": 32,
    "6__half": 32,
}  # of V in decode_d1, by the name of its type in a symbol

HMMA = ("HMMA", "16816", "F32")
COPY = ("LDGSTS", "BYPASS", "128")
# What the functions of a file, whose symbol has this word, promise to use.
ATTENTION = [HMMA, COPY, ("LDSM", "M88", "4"), ("LDSM", "MT88", "4"), ("MUFU", "EX2")]
PROMISES = {
    ("linear_l4", "linear_l4_kernel"): [HMMA, COPY],
    ("linear_l5", "linear_l5_kernel"): [HMMA, COPY, ("LDSM", "M88", "4")],
    ("linear_l5", "linear_l5_experts_kernel"): [HMMA, COPY, ("LDSM", "M88", "4")],
    ("attention_v3", "attention_v3_kernel"): ATTENTION,
    ("decode_d2", "decode_d2_kernel"): ATTENTION,
    ("decode_d3", "decode_d3_kernel"): ATTENTION,
    ("attention_v2", "attention_v2_kernel"): [("LDG", "128")],
    ("decode_d1", "decode_d1_kernel"): [("LDG", "128")],
}


def functions(name: str, arch: str, folder) -> dict[str, list[Instruction]]:
    (source,) = find_sources("cuda", f"{name}.cu")
    return disassemble(TOOL, compile_once(source, folder)[0], arch)


def of_mutant(kernel: str, folder, edits: list[tuple[str, str, str]]) -> dict[str, list[Instruction]]:
    return disassemble(
        TOOL, compile_once(changed(kernel, folder, edits), folder / "compiled", ["90"])[0], "90"
    )


def uses(instructions: list[Instruction], parts: tuple[str, ...]) -> bool:
    return any(instruction.is_a(*parts) for instruction in instructions)


@each_arch
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise[1])
def test_each_instantiation_uses_what_is_promised(promise, arch, gpu_objects):
    found = {
        symbol: i for symbol, i in functions(promise[0], arch, gpu_objects).items() if promise[1] in symbol
    }
    assert len(found) >= 2
    for symbol, instructions in found.items():
        missing = [parts for parts in PROMISES[promise] if not uses(instructions, parts)]
        assert not missing, f"{symbol} has no {missing}"


@each_arch
def test_control_the_tile_kernel_uses_no_tensor_cores(arch, gpu_objects):
    for instructions in functions("linear_l2", arch, gpu_objects).values():
        assert not any(uses(instructions, parts) for parts in (HMMA, COPY, ("LDSM",), ("LDG", "128")))


def test_control_a_plain_copy_is_seen(tmp_path):
    plain = (
        "dialect_cuda.h",
        "#if __CUDA_ARCH__ >= 800\n  uint32_t to",
        "#if __CUDA_ARCH__ >= 9999\n  uint32_t to",
    )
    found = of_mutant("linear_l5", tmp_path, [plain])
    assert found and not any(uses(instructions, COPY) for instructions in found.values())


# ---- loads that are under way at once ----------------------------------------------------------------


def linear_loads(found: dict[str, list[Instruction]]) -> list[int]:
    """Loads under way before the first store to shared memory, in each function."""
    return [loads_under_way(before_the_first(instructions, "STS")) for instructions in found.values()]


@each_arch
def test_linear_has_four_loads_under_way(arch, gpu_objects):
    found = linear_loads(functions("linear_l2", arch, gpu_objects))
    assert len(found) == 6 and min(found) >= 4


def rows_ahead(found: dict[str, list[Instruction]]) -> dict[str, int]:
    """Loads of single numbers under way, in each function of decode_d1."""
    return {symbol: loads_under_way(instructions, narrow=True) for symbol, instructions in found.items()}


def too_few(found: dict[str, int]) -> list[str]:
    """The functions with fewer rows of V ahead than promised."""
    promised = {
        symbol: rows for symbol in found for kind, rows in ROWS_AHEAD.items() if f"kernelI{kind}Li" in symbol
    }
    assert set(promised) == set(found)
    return [symbol for symbol, rows in found.items() if rows < promised[symbol]]


@each_arch
def test_decode_d1_has_a_tile_of_v_under_way(arch, gpu_objects):
    found = rows_ahead(functions("decode_d1", arch, gpu_objects))
    assert len(found) == 30 and not too_few(found)


W_LOADED = (
    "    load_elements(w_next, static_cast<const T*>(p.weight), blockIdx.x * kTile, p.out, column, p.in);\n"
)
W_STORED = "    store_elements(w_tile, w_next);\n"


def test_control_loads_that_wait_for_a_store_are_seen(tmp_path):
    late = f"    __syncthreads();\n{W_LOADED}{W_STORED}"
    edits = [("linear_l2.cu", W_LOADED, ""), ("linear_l2.cu", W_STORED, late)]
    assert max(linear_loads(of_mutant("linear_l2", tmp_path, edits))) < 4


@pytest.mark.parametrize(
    ("text", "replacement", "kinds"),
    [
        pytest.param("__syncwarp();", "", ["half"], id="no order between loads and products"),
        pytest.param(
            "? kKeyTile :", "? kKeyTile / 2 :", ["half", "bfloat16"], id="half of the rows in 16 bits"
        ),
        pytest.param(": kKeyTile / 2)", ": kKeyTile / 4)", ["kernelIf"], id="half of the rows in float32"),
    ],
)
def test_control_fewer_rows_of_v_are_seen(text, replacement, kinds, tmp_path):
    few = too_few(rows_ahead(of_mutant("decode_d1", tmp_path, [("decode_d1.cu", text, replacement)])))
    assert all(any(kind in symbol for symbol in few) for kind in kinds)
