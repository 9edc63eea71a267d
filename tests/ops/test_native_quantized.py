"""Products and lookups of quantised matrices: against float64, and the same bits for any number of rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import oracle
import pytest
import torch
from native import DTYPES, random
from quantized_matrices import GROUPS, SHAPES, matrix, packed
from torch import Tensor

from minillm.config.quantization import CODES, Codes, Form
from minillm.ops.cpu import CpuOps
from minillm.ops.quantized import QuantizedMatrix

ROWS = (1, 2, 7, 8, 9, 64, 70)


@pytest.mark.parametrize("codes", CODES)
def test_products(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    cases = product(GROUPS, [False, True], [False, True], enumerate(SHAPES))
    for group, wide, minimum, (n, (out, size)) in cases:
        form = Form(codes, group, wide, minimum)
        made = matrix(form, out, size, ordered=n % 2 == 1, seed=n)
        exact = made.dequantize().double()
        bias = random(out, seed=n) if n % 2 else None
        for name in DTYPES:
            dtype = getattr(torch, name) if isinstance(name, str) else name
            whole, x = packed(native_ops, made, dtype), random(max(ROWS), size, seed=n).to(dtype)
            own = None if bias is None else bias.to(dtype)
            found = native_ops.linear(x, whole, own)
            what = f"{form}, {size} -> {out}, {dtype}"
            # Each product and each fold rounds once: a few units in the last place of the sum of magnitudes.
            size_of = x.double().abs() @ exact.abs().T + (0 if own is None else own.double().abs())
            wrong = (found.double() - oracle.linear(x, exact, own)).abs()
            assert bool((wrong <= size_of * (torch.finfo(dtype).eps + 2e-6) + 1e-30).all()), what
            for rows in ROWS:
                assert torch.equal(native_ops.linear(x[:rows], whole, own), found[:rows]), (what, rows)
            ids = torch.tensor([0, out - 1, out // 2])
            assert torch.equal(native_ops.embedding(ids, whole), made.dequantize()[ids].to(dtype)), what
            assert torch.equal(native_ops.unpack_weight(whole), made.dequantize().to(dtype)), what


@pytest.mark.parametrize("codes", CODES)
def test_outliers_and_zeros(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    """One huge input, rows of zeros, the largest scales: nothing leaks into other rows or outputs."""
    made = matrix(Form(codes, 64), 40, 192)
    made.scales[3] = 6e4
    whole, x = packed(native_ops, made, torch.float32), random(9, 192)
    x[2, 100], x[5] = 1e30, 0
    found = native_ops.linear(x, whole)
    assert torch.equal(found[5], torch.zeros(40)) and torch.isfinite(found).all()
    others = [0, 1, 3, 4, 6, 7, 8]
    assert torch.equal(native_ops.linear(x[others], whole), found[others])
    x[2, 100] = torch.nan
    poisoned = native_ops.linear(x, whole)
    assert poisoned[2].isnan().all() and torch.equal(poisoned[others], found[others])


def test_a_sum_in_another_order_would_be_noticed(native_ops: CpuOps) -> None:
    """The control: the same matrix with its inputs in another order has other bits."""
    made, x = matrix(Form("int8", 64), 48, 256), random(3, 256)
    turned = torch.arange(255, -1, -1)
    other = QuantizedMatrix(made.form, made.codes[:, turned], made.scales.flip(1))
    a = native_ops.linear(x, packed(native_ops, made, torch.float32))
    b = native_ops.linear(x[:, turned].contiguous(), packed(native_ops, other, torch.float32))
    assert not torch.equal(a, b) and torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": "int3"}, "there are no codes 'int3'"),
        ({"group": 36, "in_features": 100, "codes": "uint4"}, "no multiple of 8"),
        ({"group": 0}, "in groups of 0"),
        ({"in_features": 0}, "0 inputs"),
    ],
)
def test_wrong_sizes(native_ops: CpuOps, change: dict[str, Any], said: str) -> None:
    given = {"out_features": 16, "in_features": 64, "codes": "int8", "group": 64, "wide": False}
    with pytest.raises(RuntimeError, match=said):
        torch.ops.minillm.codes_bytes(**(given | {"minimum": False, "ordered": False} | change))


def test_a_damaged_matrix_is_refused(native_ops: CpuOps) -> None:
    """Every field of the header, a cut, and an order that leads out of the row."""
    made = matrix(Form("int8", 64), 20, 128, ordered=True)
    x = random(2, 128)
    whole: Any = packed(native_ops, made, torch.float32)
    for field in range(8):
        damaged = whole.data.clone()
        damaged.view(torch.int32)[field] += 3
        assert _refused(x, damaged), field
    assert _refused(x, whole.data[:-64].contiguous()) and _refused(x, whole.data[:40].contiguous())
    for wrong in (-1, 128):
        damaged = whole.data.clone()
        damaged.view(torch.int32)[16] = wrong
        assert _refused(x, damaged)
    assert not _refused(x, whole.data)


def _refused(x: Tensor, data: Tensor) -> bool:
    try:
        torch.ops.minillm.linear(x, data, None, 20)
    except RuntimeError:
        return True
    return False
