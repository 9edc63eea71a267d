"""CUDA's own words in the simulator: shuffles, vectors, arithmetic, and a clear error for what is absent."""

import math
from pathlib import Path

import pytest
import torch

from minillm.errors import UsageError
from minillm.ops.simt import SimtError, compile_kernels, flavour, profile
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

FILE = Path(__file__).parent / "kernels" / "words.cu"


@pytest.fixture(scope="module")
def words():
    return compile_kernels(FILE)


def sources(distance, width):
    """The lane that each lane reads, by the text of PTX ISA, shfl.sync: down, up, bfly, idx."""
    found = []
    for mode in ("down", "up", "bfly", "idx"):
        for lane in range(32):
            segment_mask = 32 - width
            first = lane & segment_mask
            last = first | (~segment_mask & (0 if mode == "up" else 31))
            source = {
                "down": lane + distance,
                "up": lane - distance,
                "bfly": lane ^ distance,
                "idx": first | (distance & ~segment_mask),
            }[mode]
            inside = source >= last if mode == "up" else source <= last
            found.append(source if inside else lane)
    return found


@pytest.mark.parametrize("width", [32, 16, 4, 1])
@pytest.mark.parametrize("distance", [0, 1, 2, 5, 16, 31])
def test_shuffles_read_the_lanes_that_ptx_names(words, distance, width):
    x, y = torch.arange(32, dtype=torch.int32) * 7, torch.zeros(128, dtype=torch.int32)
    words.run("run_shuffles", x=x, y=y, distance=distance, width=width)
    assert (y // 7).tolist() == sources(distance, width)


@pytest.mark.parametrize("width", [0, 3, 64])
def test_a_width_is_a_power_of_two(words, width):
    y = torch.zeros(128, dtype=torch.int32)
    with pytest.raises(SimtError, match="the width is 32, 16") as caught:
        words.run("run_shuffles", x=y[:32].clone(), y=y, distance=1, width=width)
    assert (caught.value.kind, caught.value.file) == ("warp operation", "words.cu")


def test_a_sum_by_halving_has_the_bits_of_the_same_additions(words):
    x, y = torch.randn(32, generator=torch.Generator().manual_seed(0)), torch.zeros(32)
    words.run("run_down_and_back", x=x, y=y)
    sums = x.clone()
    for step in (16, 8, 4, 2, 1):
        sums[: 32 - step] += sums[step:].clone()
    assert y.tolist() == [sums[0].item()] * 32


def test_a_float4_is_one_access_of_sixteen_bytes(words):
    x, y = torch.randn(128), torch.zeros(128)
    with flavour("check"), profile() as p:
        words.run("run_four_at_once", x=x, y=y)
    assert torch.equal(y, x.flip(0))
    assert (p.global_read_bytes, p.global_read_sectors) == (512, 16)
    assert (p.global_write_bytes, p.global_write_sectors) == (512, 16)
    assert (p.shared_accesses, p.shared_wavefronts) == (2, 8)  # 16 bytes: a quarter of a warp at a time


def test_a_float4_that_is_not_aligned_is_an_error_at_its_line(words):
    with pytest.raises(SimtError) as caught:
        words.run("run_four_unaligned", x=torch.zeros(64), y=torch.zeros(32))
    line = 1 + FILE.read_text().splitlines().index(
        "  float4 four = *reinterpret_cast<const float4*>(x + threadIdx.x + 1);"
    )
    assert (caught.value.kind, caught.value.file, caught.value.line) == ("misaligned", "words.cu", line)


def test_pairs_are_read_through_ldg(words):
    x, y = torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    words.run("run_pairs", x=x, y=y)
    assert torch.equal(y, x.reshape(32, 2).flip(1).flatten())


def test_arithmetic_is_that_of_cuda(words):
    a, y = 1.7, torch.zeros(32)
    words.run("run_arithmetic", x=torch.full((32,), a), y=y)
    x, half = torch.tensor(a), torch.tensor(0.5)
    exact = [x, half, x, half, 7, 3, x + half, x * half, None, x / half, x.sqrt(), x, 4, 31, 4, x, half]
    assert [y[i].item() for i in range(17) if i != 8] == [float(v) for v in exact if v is not None]
    assert y[8].item() == pytest.approx(1.5 * a)
    close = [1.5 * 0.5 + 0.6, a**-0.5, math.exp(a), math.exp(a), math.log(a), a / 0.5, 2**a]
    assert y[17:24].tolist() == pytest.approx(close, rel=1e-6)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("atomicAdd(x, 1.0f);", "no atomicAdd: the order of atomic operations"),
        ("x[0] = __reduce_add_sync(0xffffffff, 1);", "no __reduce_add_sync: exchange numbers"),
        ("x[0] = __activemask();", "no __activemask: CUDA does not say which lanes are active"),
        ("x[0] = __syncthreads_count(1);", "no __syncthreads_count: write to shared memory"),
        ("__threadfence();", "no __threadfence: blocks do not wait"),
        ("__shared__ float y[4];", "no __shared__: write SHARED"),
        ("x[0] = min(1, 2.0f);", "min of a whole number and a float"),
        ("float3 y; x[0] = y.x;", "float3"),
        ("x[0] = __vadd2(1, 2);", "__vadd2"),
    ],
)
def test_a_word_that_is_absent_is_named_by_a_compile_error(tmp_path, line, says):
    (tmp_path / "absent.cu").write_text(
        f'#include "dialect.h"\n__global__ void f(float* x) {{\n  {line}\n}}\n'
        'extern "C" void run(float* x) { LAUNCH(f, 1, 32, 0, 0, x); }\n'
    )
    with pytest.raises(UsageError) as caught:
        compile_kernels(tmp_path / "absent.cu", folder=tmp_path)
    assert says in str(caught.value), str(caught.value)
