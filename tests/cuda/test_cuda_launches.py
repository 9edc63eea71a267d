"""The launches of the launchers that nvcc compiled, beside what a chip refuses. No GPU is needed.

kernels/launches.cpp takes the place of the CUDA runtime: it calls every launcher and keeps what each launch
asks for.
Registers and static shared memory are ptxas's. sm_80 has less shared memory than sm_90.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from gpu_objects import changed, compile_once
from sass import launch_bounds, require_tools

from minillm.toolchain.compiler import find_compiler
from minillm.toolchain.sources import find_sources, include_flags

TOOL = require_tools()
DRIVER = Path(__file__).parent / "kernels" / "launches.cpp"
KB = 1024
MOST_SHARED = {"sm_80": 163 * KB, "sm_90": 227 * KB}  # of a block that asked for it; 48 KB if it did not
FUNCTION = re.compile(
    r"Compiling entry function '(\S+)' for '(\S+)'.*?Used (\d+) registers(.*?)(?=ptxas|\Z)", re.DOTALL
)


class Resources(NamedTuple):
    """What a kernel needs on one architecture."""

    registers: int
    shared: int
    bound: int  # of __launch_bounds__; 0 without


class Launch(NamedTuple):
    """`shared` is dynamic; `allowed` is how much of it the launcher has asked for, -1 if it has not."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    allowed: int
    symbol: str


def resources(compiled: Path, said: str) -> dict[tuple[str, str], Resources]:
    """{(symbol, architecture): what it needs}, of an object file and nvcc's output."""
    found = {}
    bounds = {arch: launch_bounds(TOOL, compiled, arch.removeprefix("sm_")) for arch in MOST_SHARED}
    for symbol, arch, registers, rest in FUNCTION.findall(said):
        shared = re.search(r"(\d+) bytes smem", rest)
        if arch in MOST_SHARED:
            bound = bounds[arch].get(symbol, 0)
            found[symbol, arch] = Resources(int(registers), int(shared[1]) if shared else 0, bound)
    return found


def every_launch(objects: list[Path], folder: Path) -> list[Launch]:
    """What the launchers in these object files ask for."""
    library = folder / "launches.so"
    compiler = find_compiler().path
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-Wl,-Bsymbolic",
        *include_flags("cuda"),
        str(DRIVER),
    ]
    subprocess.run([*command, *map(str, objects), "-o", str(library)], check=True, capture_output=True)
    function = ctypes.CDLL(str(library)).every_launch
    function.restype = ctypes.c_char_p
    found = []
    for line in function().decode().splitlines():
        *numbers, symbol = line.split()
        n = [int(number) for number in numbers]
        found.append(Launch(tuple(n[:3]), tuple(n[3:6]), n[6], n[7], symbol))
    return found


def refused(launch: Launch, needs: Resources, arch: str) -> str:
    """Why a chip refuses this launch; "" if it does not."""
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    of_warp = -(-needs.registers // 8) * 8 * 32
    most = MOST_SHARED[arch] if launch.allowed >= launch.shared else 48 * KB
    reasons = {
        "grid": min(launch.grid) < 1 or launch.grid[0] > 2**31 - 1 or max(launch.grid[1:]) > 65535,
        "block": min(launch.block) < 1
        or max(launch.block[:2]) > 1024
        or launch.block[2] > 64
        or threads > 1024,
        "shared memory": needs.shared + launch.shared > most
        or needs.shared + launch.allowed > MOST_SHARED[arch],
        "registers": -(-threads // 128) * of_warp > 65536 // 4,  # each fourth warp has a quarter of them
        "launch bounds": threads > needs.bound > 0,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def faults(launches: list[Launch], needs: dict[tuple[str, str], Resources]) -> set[str]:
    """What a chip refuses, of any launch."""
    return {
        refused(launch, needs[launch.symbol, arch], arch)
        for launch in launches
        for arch in MOST_SHARED
        if (launch.symbol, arch) in needs
    } - {""}


@pytest.fixture(scope="module")
def compiled(gpu_objects) -> dict[str, tuple[Path, str]]:
    """{file: (object, what nvcc said)} of the engine's kernels."""
    return {path.stem: compile_once(path, gpu_objects) for path in find_sources("cuda", ".cu")}


@pytest.fixture(scope="module")
def needs(compiled) -> dict[tuple[str, str], Resources]:
    return {key: need for made in compiled.values() for key, need in resources(*made).items()}


def test_a_chip_refuses_no_launch(compiled, needs, tmp_path):
    launches = every_launch([path for path, _ in compiled.values()], tmp_path)
    assert {launch.symbol for launch in launches} == {symbol for symbol, _ in needs}, (
        "every kernel is launched"
    )
    assert all(need.bound > 0 for need in needs.values()), "ptxas knows how many threads a block has"
    assert max(launch.shared for launch in launches) > 100 * KB
    assert faults(launches, needs) == set()


# (kernel, file, text, replacement, what a chip refuses)
MUTANTS = [
    ("linear_l5", "dialect.h", "(shared_bytes) ? ALLOW_SHARED", "false ? ALLOW_SHARED", "shared memory"),
    ("linear_l5", "dialect_cuda.h", "static_cast<int>(bytes)", "48 * 1024", "shared memory"),
    ("linear_l5", "linear_l5.cu", "Shape<2, 2, 4, 8, 3, 2>", "Shape<2, 2, 4, 8, 8, 1>", "shared memory"),
    ("copy_blocks", "copy_blocks.cu", "dim3(p.count, per_pair)", "dim3(per_pair, p.count)", "grid"),
    ("combine", "combine.cu", "kThreads)), kThreads, 0", "kThreads)), 2 * kThreads, 0", "launch bounds"),
    ("verify", "verify.cu", "kMinWarps = 4, kMaxWarps = 32", "kMinWarps = 4, kMaxWarps = 40", "block"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "file", "text", "replacement", "why"),
    [pytest.param(*mutant, id=f"{mutant[1]}: {mutant[3]}") for mutant in MUTANTS],
)
def test_each_mutant_is_refused(kernel, file, text, replacement, why, compiled, needs, tmp_path):
    source = changed(kernel, tmp_path, [(file, text, replacement)])
    own = compile_once(source, tmp_path / "compiled", ["90"])
    others = [path for name, (path, _) in compiled.items() if name != kernel]
    found = faults(every_launch([own[0], *others], tmp_path), {**needs, **resources(*own)})
    assert any(why in fault for fault in found), found
