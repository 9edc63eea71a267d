# ruff: noqa: E501 - a mutant is a line of the table
"""What a 16-bit result hides: the order of a sum at each number of rows, and roundings between two operations.

A float32 sum that is rounded to 16 bits has lost what would show its order. So the products here cancel:

    x        [ a            | a            ]
    weight   [ w            | -w           ]      the sum is 0; what is left of it is rounding error, all of it

Rounding error has other bits for each order of the sum, in 16 bits too. Beside each kernel run mutants that the other
tests, whose results are compared with a tolerance, let pass.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, norm_roundings, random, silu_roundings
from test_cuda_mutants import build
from torch import Tensor

from minillm.ops.simt import KernelLibrary, SimtOps, flavour, flavours, schedule

OPS = SimtOps()
ROWS = (1, 7, 8, 9, 70)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
sixteen_bits = pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])

SUM = "for (int k = 0; k < depth; k++) sum = fmaf(x_tile[local_row][k], w_tile[local_col][k], sum);"
BY_ROWS = "(p.rows > 8 ? stages - 1 - stage : stage) * kDepth, step)"
BY_SHAPE = "(S::kTokens > 16 ? stages - 1 - stage : stage) * kDepth, step)"


@pytest.fixture(params=flavours())
def simulated(request):
    """Each flavour; all but "fast" in reversed order, which must not change a result."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


def cancelling(dtype: torch.dtype, rows: int, half: int, out: int) -> tuple[Tensor, Tensor]:
    """x and weight, as above. Large numbers, so that float16 has digits for what is left."""
    x, weight = random(rows, half, dtype=dtype, scale=8), random(out, half, dtype=dtype, seed=1, scale=8)
    return torch.cat([x, x], 1), torch.cat([weight, -weight], 1)


def has_one_order(multiply: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the first and the last of x's 70 rows have the same bits in smaller batches."""
    whole = multiply(x)
    assert whole.count_nonzero() > whole.numel() // 2, "what is left of the sums shows their order"
    return all(
        torch.equal(multiply(x[part]), whole[part])
        for count in ROWS[:-1]
        for part in (slice(0, count), slice(len(x) - count, len(x)))
    )


# ---- the order of a sum ----------------------------------------------------------------------------


@each_dtype
def test_the_order_of_linears_sum_does_not_depend_on_the_number_of_rows(dtype, simulated):
    x, weight = cancelling(dtype, ROWS[-1], 524, 16)
    assert has_one_order(lambda rows: OPS.linear(rows, weight), x)


@sixteen_bits
@pytest.mark.parametrize("float_out", [True, False], ids=["float32 out", "16 bits out"])
def test_the_order_of_linear_l5s_sum_does_not_depend_on_the_number_of_rows(dtype, float_out, simulated):
    x, weight = cancelling(dtype, ROWS[-1], 524, 16)
    assert has_one_order(lambda rows: OPS.linear(rows, weight, rung="l5", float_out=float_out), x)


def run_linear(library: KernelLibrary) -> bool:
    x, weight = cancelling(torch.bfloat16, ROWS[-1], 524, 16)

    def multiply(rows: Tensor) -> Tensor:
        y = torch.zeros(len(rows), 16, dtype=torch.bfloat16)
        sizes = {"rows": len(rows), "in": rows.shape[1], "out": 16}
        library.run("run", x=rows, weight=weight, bias=torch.zeros(16).bfloat16(), y=y, **sizes)
        return y

    return has_one_order(multiply, x)


def run_linear_l5(library: KernelLibrary) -> bool:
    x, weight = cancelling(torch.bfloat16, ROWS[-1], 524, 16)

    def multiply(rows: Tensor) -> Tensor:
        y = torch.zeros(len(rows), 16)
        sizes = {"rows": len(rows), "in": rows.shape[1], "out": 16}
        library.run("run", x=rows, weight=weight, bias=torch.zeros(16).bfloat16(), y=y, **sizes, shape=-1)
        return y

    return has_one_order(multiply, x)


# ---- roundings between two operations --------------------------------------------------------------


@sixteen_bits
def test_a_norm_is_rounded_where_two_operations_would_round(dtype, simulated):
    (x, residual, weight), right, is_clear = norm_roundings(dtype)
    found, total = OPS.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(found[is_clear], right[is_clear])
    assert is_clear.float().mean() > 0.95
    total = x + residual  # the plain norm, of a sum that was made before
    assert torch.equal(OPS.rms_norm(total, weight, 1e-5)[is_clear], right[is_clear])


def run_norm(library: KernelLibrary) -> bool:
    (x, residual, weight), right, is_clear = norm_roundings(torch.bfloat16)
    found = {name: torch.zeros_like(x) for name in ("y", "moved", "layer", "sum")}
    found["heads"] = torch.cat([x, x], 1)  # of this launch only that it runs
    sizes = {"rows": len(x), "size": x.shape[1], "stride": 2 * x.shape[1]}
    library.run("run", x=x, residual=residual, weight=weight, bias=weight, **found, **sizes)
    return torch.equal(found["y"][is_clear], right[is_clear]) and torch.equal(found["sum"], x + residual)


def run_activation(library: KernelLibrary) -> bool:
    x, _, twice, is_clear = silu_roundings(torch.bfloat16)
    y = torch.zeros_like(twice)
    library.run("run", x=x, y=y, rows=len(x), size=twice.shape[1], function=0, gated=1)
    return torch.equal(y[is_clear], twice[is_clear])


# ---- mutants ---------------------------------------------------------------------------------------

RUNS = {"linear_l2": run_linear, "linear_l5": run_linear_l5, "norm": run_norm, "activation": run_activation}
# (kernel, name of the mutant, [(text, replacement)])
MUTANTS = [
    ("linear_l2", "backwards for many rows", [(SUM, "for (int k = 0; k < depth; k++) { int j = p.rows > 8 ? depth - 1 - k : k; sum = fmaf(x_tile[local_row][j], w_tile[local_col][j], sum); }")]),
    ("linear_l2", "in two sums for few rows", [(SUM, "{ float odd = 0; for (int k = 0; k < depth; k++) { float& to = p.rows < 8 && k % 2 ? odd : sum; to = fmaf(x_tile[local_row][k], w_tile[local_col][k], to); } sum += odd; }")]),
    ("linear_l5", "stages backwards for many rows", [("stage * kDepth, step)", BY_ROWS)]),
    ("linear_l5", "stages backwards in large tiles", [("stage * kDepth, step)", BY_SHAPE)]),
    ("norm", "not rounded before the weight", [("to_float(from_float<T>(normed)) * to_float(weight[i])", "normed * to_float(weight[i])")]),
    ("norm", "norm of the sum before it was rounded", [("value = to_float(rounded);", "value += to_float(residual[i]);")]),
    ("activation", "silu not rounded before the product", [("y = to_float(from_float<T>(y)) *", "y = y *")]),
]  # fmt: skip


def number_of(kernel: str) -> str:
    return "" if kernel == "linear_l5" else "bfloat16"  # the tensor cores' harness has 16 bits anyway


@pytest.mark.parametrize("kernel", RUNS)
def test_the_right_kernel_passes(kernel, tmp_path):
    assert RUNS[kernel](build(kernel, tmp_path, number=number_of(kernel)))


@pytest.mark.parametrize(("kernel", "edits"), [pytest.param(k, e, id=f"{k}: {w}") for k, w, e in MUTANTS])
def test_each_mutant_is_caught(kernel, edits, tmp_path):
    assert not RUNS[kernel](build(kernel, tmp_path, edits=edits, number=number_of(kernel)))
