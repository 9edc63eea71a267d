"""The CUDA kernels after the layers, in the simulator: which rows are finite."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DTYPES, REFERENCE, random

from minillm.ops.simt import SimtOps, flavour, flavours, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])


@pytest.fixture(params=flavours())
def simulated(request):
    """The test runs in each flavour; all but "fast" in reversed order, which must not change a result."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


# ---- finite_rows ----------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("size", [1, 7, 8, 33, 4101])
def test_one_broken_number_anywhere_is_found(size, dtype, simulated):
    """Rows of an odd size begin at every alignment; the largest numbers are finite."""
    broken = [math.nan, math.inf, -math.inf]
    columns = sorted({0, 3 % size, size // 2, size - 1})
    logits = random(1 + len(columns) * 3, size, dtype=dtype)
    logits[0] = torch.finfo(dtype).max
    logits[0, size // 2] = torch.finfo(dtype).min
    for row, (column, number) in enumerate(((c, n) for c in columns for n in broken), 1):
        logits[row, column] = number
    found = OPS.finite_rows(logits)
    assert found.tolist() == [True] + [False] * (len(logits) - 1)
    assert torch.equal(found, REFERENCE.finite_rows(logits))
    healthy = random(9, size, dtype=dtype)
    assert OPS.finite_rows(healthy).all()
