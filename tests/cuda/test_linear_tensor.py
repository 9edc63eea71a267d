"""The tensor-core rung of `linear` in the simulator: odd sizes; one sum per output at every batch size."""

from __future__ import annotations

import shutil
from pathlib import Path

import oracle
import pytest
import torch
from cases import DTYPES, REFERENCE, check, random
from torch import Tensor

from minillm.ops.simt import KernelLibrary, SimtOps, compile_kernels, flavour, flavours, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sources import find_sources

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
each_dtype = pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
TILES = range(5)  # of linear_shapes in harness.cu, from 16 x 8 to 128 x 128


@pytest.fixture(autouse=True, params=flavours())
def simulated(request):
    """Every test runs in each flavour; all but the first in reversed order, so that order cannot matter."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> KernelLibrary:
    """Every shape of tile by its number, however many rows there are."""
    folder = tmp_path_factory.mktemp("linear_l5")
    (source,) = find_sources("cuda", "linear_l5.cu")
    for path in (source, Path(__file__).parent / "kernels" / "harness.cu"):
        shutil.copy(path, folder)
    return compile_kernels(folder / "harness.cu", ['-DKERNEL="linear_l5.cu"', "-DIS_LINEAR_MMA"])


def multiply(tiles: KernelLibrary, shape: int, x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in float32."""
    y, bias = torch.zeros(len(x), len(weight)), torch.zeros(len(weight), dtype=x.dtype)
    sizes = {"rows": len(x), "in": x.shape[1], "out": len(weight)}
    tiles.run("run", x=x, weight=weight, bias=bias, y=y, **sizes, shape=shape)
    return y


@each_dtype
def test_odd_sizes_against_float64(dtype):
    shapes = [(1, 8, 1), (1, 40, 17), (8, 64, 33), (9, 136, 50), (16, 1096, 16), (17, 200, 31), (70, 72, 66)]
    for n, (rows, size, out) in enumerate(shapes):
        x, weight = random(rows, size, dtype=dtype, seed=n), random(out, size, dtype=dtype, seed=n + 9)
        bias = random(out, dtype=dtype, seed=n + 5) if n % 2 else None
        exact = oracle.linear(x, weight, bias)
        found = OPS.linear(x, weight, bias, rung="l5")
        check(found, REFERENCE.linear(x, weight, bias), exact, (rows, size, out))
        unrounded = OPS.linear(x, weight, bias, rung="l5", float_out=True)
        assert oracle.error(unrounded, exact) < 2e-6
        assert torch.equal(unrounded.to(dtype), found)


@each_dtype
def test_a_rows_bits_do_not_depend_on_the_batch(dtype):
    x, weight = random(70, 520, dtype=dtype), random(17, 520, dtype=dtype, seed=1)
    whole = OPS.linear(x, weight, rung="l5", float_out=True)
    for count in (1, 7, 8, 9, 16, 17, 33):
        for part in (slice(0, count), slice(70 - count, 70)):
            assert torch.equal(OPS.linear(x[part], weight, rung="l5", float_out=True), whole[part]), part


def test_control_a_sum_in_two_parts_has_other_bits():
    x, weight = random(9, 520, dtype=torch.bfloat16), random(17, 520, dtype=torch.bfloat16, seed=1)
    halves = [OPS.linear(x[:, s], weight[:, s].contiguous(), rung="l5", float_out=True)
              for s in (slice(0, 256), slice(256, 520))]  # fmt: skip
    assert not torch.equal(halves[0] + halves[1], OPS.linear(x, weight, rung="l5", float_out=True))


def test_every_shape_of_tile_gives_the_same_bits(tiles):
    x, weight = random(37, 200, dtype=torch.bfloat16), random(33, 200, dtype=torch.bfloat16, seed=1)
    found = [multiply(tiles, shape, x, weight) for shape in TILES]
    assert oracle.error(found[0], oracle.linear(x, weight, None)) < 2e-6
    assert all(torch.equal(y, found[0]) for y in found)


def test_shared_memory_has_no_bank_conflicts(tiles, simulated):
    if simulated == "asan":
        pytest.skip("the asan flavour counts nothing")
    x, weight = random(37, 200, dtype=torch.bfloat16), random(33, 200, dtype=torch.bfloat16, seed=1)
    for shape in TILES[1:]:  # 16 x 8 has ldmatrix of two matrices, the others of four
        with profile() as p:
            multiply(tiles, shape, x, weight)
        assert p.shared_wavefronts == 4 * p.shared_accesses  # 512 bytes each, 128 at a time


def test_each_number_is_read_once_per_tile(tiles, simulated):
    if simulated == "asan":
        pytest.skip("the asan flavour counts nothing")
    x, weight = random(70, 72, dtype=torch.bfloat16), random(130, 72, dtype=torch.bfloat16, seed=1)
    with profile() as p:
        multiply(tiles, 3, x, weight)  # 64 x 64: 3 tiles of outputs, 2 of tokens
    assert (p.tensors["x"][0], p.tensors["weight"][0]) == (3 * x.nbytes, 2 * weight.nbytes)
