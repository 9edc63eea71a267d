"""What a chip refuses to launch the simulator refuses: each limit, and the last value before it.

The numbers are those of sm_80 and sm_90 (CUDA C++ Programming Guide, Compute Capabilities).
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from gpu_objects import recorded_registers

from minillm.ops.simt import SimtError, compile_kernels, registers, schedule
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sources import find_sources

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

FILE = Path(__file__).parent / "kernels" / "limits.cu"
KB = 1024
ARRAYS = 40_000  # bytes, of run_arrays_behind


@pytest.fixture(scope="module")
def limits():
    return compile_kernels(FILE)


def runs(library, launcher, *numbers) -> bool:
    """Whether the kernel ran to its end; a refused launch raises."""
    y = torch.zeros(1, dtype=torch.int32)
    with schedule(last_blocks=1):
        library.run(launcher, y=y, **{f"n{i}": n for i, n in enumerate(numbers)})
    return y.item() == 1


def refused(library, launcher, *numbers) -> str:
    with pytest.raises(SimtError) as caught:
        runs(library, launcher, *numbers)
    assert caught.value.kind == "launch"
    assert "thread 0" not in str(caught.value), "no thread has run"
    return str(caught.value)


@pytest.mark.parametrize(
    "shape",
    [
        (2**31 - 1, 1, 1, 32, 1, 1),
        (1, 65535, 1, 32, 1, 1),
        (1, 1, 65535, 32, 1, 1),
        (2, 65535, 65535, 32, 1, 1),
        (1, 1, 1, 1024, 1, 1),
        (1, 1, 1, 1, 1024, 1),
        (1, 1, 1, 4, 4, 64),
    ],
)
def test_the_largest_grids_and_blocks_run(limits, shape):
    assert runs(limits, "run_shape", *shape)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((0, 1, 1, 32, 1, 1), "the grid is empty"),
        ((1, 0, 1, 32, 1, 1), "the grid is empty"),
        ((1, 1, 0, 32, 1, 1), "the grid is empty"),
        ((-1, 1, 1, 32, 1, 1), "grid.x ends at 2147483647"),
        ((-(2**31), 1, 1, 32, 1, 1), "grid.x ends at 2147483647, this is 2147483648"),
        ((1, 65536, 1, 32, 1, 1), "grid.y and grid.z end at 65535, this is 65536"),
        ((1, 1, 65536, 32, 1, 1), "grid.y and grid.z end at 65535, this is 65536"),
        ((1, 1, 1, 0, 1, 1), "the block is empty"),
        ((1, 1, 1, 32, 0, 1), "the block is empty"),
        ((1, 1, 1, 32, 1, 0), "the block is empty"),
        ((1, 1, 1, 1, 1, 96), "block.z ends at 64, this is 96"),
        ((1, 1, 1, 1056, 1, 1), "block.x and block.y end at 1024"),
        ((1, 1, 1, 1, 1056, 1), "block.x and block.y end at 1024"),
        ((1, 1, 1, 64, 32, 1), "1 to 1024 threads, not 2048"),
        ((1, 1, 1, 2**16, 2**16, 32), "end at 1024"),  # a product that is 0 in 32 bits
        ((1, 1, 1, 33, 1, 1), "whole warps"),  # only the simulator refuses this one
    ],
)
def test_a_grid_or_block_past_a_limit_is_refused(limits, shape, says):
    assert says in refused(limits, "run_shape", *shape)


def test_shared_memory_above_48_kb_is_there_if_the_kernel_asks(limits):
    for size in (4, 48 * KB, 48 * KB + 4, 100 * KB, 227 * KB):
        assert runs(limits, "run_dynamic", size)
    assert "a block has 232448" in refused(limits, "run_dynamic", 227 * KB + 4)


def test_shared_memory_above_48_kb_is_refused_if_the_kernel_does_not_ask(limits):
    assert runs(limits, "run_without_asking", 48 * KB)
    for launcher in ("run_without_asking", "run_asked_for_less"):
        says = refused(limits, launcher, 100 * KB)
        assert "102400 of dynamic shared memory: a block has 49152, and more only if its kernel asks" in says


def test_a_launch_that_does_not_ask_is_noticed(tmp_path):
    """The mutant of LAUNCH, which both machines share."""
    (dialect,) = find_sources("cuda", "dialect.h")
    text, asks = dialect.read_text(), "(shared_bytes) ? ALLOW_SHARED"
    assert asks in text
    (tmp_path / "dialect.h").write_text(text.replace(asks, "false ? ALLOW_SHARED"))
    shutil.copy(FILE, tmp_path)
    mutant = compile_kernels(tmp_path / FILE.name, folder=tmp_path)
    assert runs(mutant, "run_dynamic", 48 * KB)
    assert "only if its kernel asks" in refused(mutant, "run_dynamic", 100 * KB)


def test_static_arrays_beside_dynamic_memory_count_together(limits):
    assert runs(limits, "run_arrays_behind", 128)
    assert runs(limits, "run_arrays_behind", 100 * KB)  # more than 48 KB of both, arrays declared last
    assert runs(limits, "run_arrays_behind", 227 * KB - ARRAYS)
    says = refused(limits, "run_arrays_behind", 227 * KB - ARRAYS + 4)
    assert f"40000 bytes of shared arrays and {227 * KB - ARRAYS + 4} of dynamic" in says


@pytest.mark.parametrize(
    ("count", "threads"), [(32, 1024), (64, 1024), (65, 768), (128, 512), (232, 256), (255, 256)]
)
def test_as_many_registers_as_a_multiprocessor_has(limits, count, threads):
    with registers({"mark": count}):
        assert runs(limits, "run_shape", 1, 1, 1, threads, 1, 1)


@pytest.mark.parametrize(("count", "threads"), [(65, 1024), (72, 928), (136, 512), (232, 288), (200, 320)])
def test_a_block_with_more_registers_is_refused(limits, count, threads):
    assert math.ceil(count / 8) * 8 * threads > 60_000, "near the limit of 65,536"
    with registers({"mark": count}):
        assert f"{threads} threads of {count} registers" in refused(
            limits, "run_shape", 1, 1, 1, threads, 1, 1
        )
    with registers({"another": count}):
        assert runs(limits, "run_shape", 1, 1, 1, threads, 1, 1), "control: a number for another kernel"


def test_the_registers_of_the_engines_kernels_are_known_here():
    """By conftest.py, in all tests of this folder."""
    assert len(recorded_registers()) > 15
    with registers({}) as before:
        assert before == recorded_registers()


def test_only_the_last_blocks_run_if_that_is_wanted():
    library = compile_kernels(FILE.parent / "counted.cu")
    for last, expected in ((0, range(12)), (1, [11]), (5, range(7, 12)), (50, range(12))):
        for reverse in (False, True):
            y = torch.full((12, 32), -1, dtype=torch.int32)
            with schedule(reverse=reverse, last_blocks=last):
                library.run("run_where", y=y)
            assert [b for b in range(12) if y[b].tolist() == [1000 * b + i for i in range(32)]] == list(
                expected
            )
            assert (y >= 0).sum() == 32 * len(expected)
