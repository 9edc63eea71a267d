"""The rungs of `linear` beside each other, in the simulator: the same bits, and which the engine runs."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import DTYPES, REFERENCE, check, random
from torch import Tensor

from minillm.ops.simt import SimtOps, flavour, flavours, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
PLAIN, TENSOR = ("l1", "l2", "l3"), ("l4", "l5")
# Rows, columns, outputs: one of each, ends inside every tile, and more than a tile of each kernel.
SIZES = [(1, 8, 1), (9, 36, 50), (17, 200, 31), (70, 72, 66), (130, 44, 131)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])


@pytest.fixture(autouse=True, params=flavours())
def simulated(request):
    """Every test runs in each flavour; all but the first in reversed order, so that order cannot matter."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


def matrices(rows: int, size: int, out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = random(rows, size, dtype=dtype, seed=rows), random(out, size, dtype=dtype, seed=out)
    return x, weight, random(out, dtype=dtype, seed=size)


@each_dtype
def test_the_rungs_of_a_column_have_the_same_bits(dtype, simulated):
    for n, sizes in enumerate(SIZES if simulated == "fast" else SIZES[1::2]):
        x, weight, bias = matrices(*sizes, dtype)
        given = bias if n % 2 else None
        first, *others = (OPS.linear(x, weight, given, rung=rung) for rung in PLAIN)
        assert all(torch.equal(first, other) for other in others), sizes
        exact, reference = oracle.linear(x, weight, given), REFERENCE.linear(x, weight, given)
        check(first, reference, exact, sizes)
        if dtype != torch.float32 and sizes[1] % 8 == 0:
            fourth, fifth = (OPS.linear(x, weight, given, rung=rung) for rung in TENSOR)
            assert torch.equal(fourth, fifth), sizes
            check(fourth, reference, exact, sizes)


def test_sums_that_cancel_have_the_same_bits():
    """What is left of a sum of large numbers that cancel is its rounding errors: each order has its own."""
    half = random(20, 260, seed=1) * 1000
    x, weight = torch.cat([half, -half], 1), random(33, 260, seed=2).repeat(1, 2)
    first, *others = (OPS.linear(x, weight, rung=rung) for rung in PLAIN)
    assert all(torch.equal(first, other) for other in others)
    backwards = OPS.linear(x.flip(1), weight.flip(1), rung="l1")
    assert not torch.equal(first, backwards), "the control: another order"
    x, weight = x.bfloat16(), weight.bfloat16()
    assert torch.equal(*(OPS.linear(x, weight, rung=rung) for rung in TENSOR))


def test_control_the_columns_differ():
    x, weight, _ = matrices(9, 136, 33, torch.float16)
    assert not torch.equal(OPS.linear(x, weight, rung="l3"), OPS.linear(x, weight, rung="l4"))


@pytest.mark.parametrize(("rung", "dtype"), [("l3", torch.float32), ("l4", torch.bfloat16)])
def test_shared_memory_has_no_bank_conflicts(rung, dtype, simulated):
    if simulated == "asan":
        pytest.skip("the asan flavour counts nothing")
    x, weight, _ = matrices(128, 64, 128, dtype)
    with profile() as p:
        OPS.linear(x, weight, rung=rung)
    # l3: 16 bytes a lane, a quarter of a warp at a time; two rows of x are read by all 32 lanes, 16 each.
    least = (p.shared_read_bytes + p.shared_write_bytes) // 128
    assert p.shared_wavefronts == least > 0


def test_the_engine_runs_register_tiles_for_many_rows_and_tensor_cores_where_it_can(simulated):
    if simulated == "asan":
        pytest.skip("the asan flavour counts nothing")

    def kernel(rows: int, size: int, dtype: torch.dtype) -> str:
        x, weight, _ = matrices(rows, size, 17, dtype)
        with profile() as p:
            OPS.linear(x, weight)
        (name,) = p.kernels
        return name

    assert kernel(64, 40, torch.float32) == "linear_l2"
    assert kernel(65, 40, torch.float32) == "linear_l3"
    assert kernel(1, 40, torch.bfloat16) == kernel(65, 40, torch.float16) == "linear_l5"
    assert kernel(1, 36, torch.bfloat16) == "linear_l2"


def test_rows_that_begin_anywhere_are_moved_first():
    """Tensor cores load 16 bytes at once. A view that begins elsewhere has the bits of its copy."""
    x, weight, _ = matrices(3, 40, 5, torch.bfloat16)
    shifted = [torch.cat([t.flatten()[:3], t.flatten()])[3:].view(t.shape) for t in (x, weight)]
    assert all(t.data_ptr() % 16 for t in shifted)
    for rung in (None, "l4", "l5"):
        assert torch.equal(OPS.linear(*shifted, rung=rung), OPS.linear(x, weight, rung=rung))


@pytest.mark.parametrize("rung", TENSOR)
def test_what_tensor_cores_cannot_take_runs_on_l2_and_says_so(rung):
    x, weight, _ = matrices(3, 36, 5, torch.bfloat16)
    for a, b, word in [(x.float(), weight.float(), "bfloat16 and float16"), (x, weight, "16 bytes")]:
        with pytest.warns(UserWarning, match=f"rung l2 instead of {rung}.*{word}"):
            found = OPS.linear(a, b, rung=rung)
        assert torch.equal(found, OPS.linear(a, b, rung="l2"))
    with pytest.warns(match="instead of l5"), pytest.raises(ValueError, match="only rung l5 has a float32"):
        OPS.linear(x, weight, rung="l5", float_out=True)
    for other in (None, "l2", "l4"):
        with pytest.raises(ValueError, match="only rung l5 has a float32 result"):
            OPS.linear(x[:, :32].contiguous(), weight[:, :32].contiguous(), rung=other, float_out=True)
    with pytest.raises(ValueError, match="no rung wgmma, only l1, l2, l3, l4, l5"):
        OPS.linear(x, weight, rung="wgmma")
