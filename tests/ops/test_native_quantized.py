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
from minillm.ops.quantized import QuantizedMatrix, numbers_of, rounded_x

ROWS = (1, 2, 7, 8, 9, 64, 70)
WHOLE: tuple[Codes, ...] = ("int8", "int4", "uint4")  # may meet activations in int8


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


@pytest.mark.parametrize("codes", WHOLE)
def test_products_with_activations_in_int8(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    """Against float64 products of the rounded activations, whose sums within a group are exact."""
    for group, minimum, (n, (out, size)) in product([32, 64, 128], [False, True], enumerate(SHAPES)):
        form = Form(codes, group, wide=n % 3 == 0, minimum=minimum, int8_x=True)
        made = matrix(form, out, size, ordered=n % 2 == 1, seed=n)
        exact = made.dequantize().double()
        for name in DTYPES:
            dtype = getattr(torch, name) if isinstance(name, str) else name
            whole, x = packed(native_ops, made, dtype), random(max(ROWS), size, seed=n).to(dtype)
            found, rounded = native_ops.linear(x, whole), rounded_x(x, form, made.order).double()
            size_of = rounded.abs() @ exact.abs().T
            wrong = (found.double() - rounded @ exact.T).abs()
            what = f"{form}, {size} -> {out}, {dtype}"
            assert bool((wrong <= size_of * (torch.finfo(dtype).eps + 2e-6) + 1e-30).all()), what
            for rows in ROWS:
                assert torch.equal(native_ops.linear(x[:rows], whole), found[:rows]), (what, rows)
    plain = packed(native_ops, matrix(Form(codes, 64), 16, 128), torch.float32)
    x = random(2, 128)
    rounds = packed(native_ops, matrix(Form(codes, 64, int8_x=True), 16, 128), torch.float32)
    assert not torch.allclose(native_ops.linear(x, plain), native_ops.linear(x, rounds), atol=1e-6)


@pytest.mark.parametrize("codes", WHOLE)
def test_saturating_activations(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    """The largest sums: every code and every activation at its end, for each sign. They are exact."""
    for group, code, x_sign in product([32, 128], [0, -1], [1, -1]):
        made = matrix(Form(codes, group, int8_x=True), 16, 256)
        made.codes[:], made.scales[:] = len(numbers_of(codes)) + code if code else 0, 1
        x = torch.full((9, 256), 127.0 * x_sign)
        expected = x @ made.dequantize().T
        assert torch.equal(native_ops.linear(x, packed(native_ops, made, torch.float32)), expected)


def test_activations_that_have_no_scale(native_ops: CpuOps, cpu_isa: str) -> None:
    """NaN and infinity stay in their row; numbers too small for a scale become zero."""
    whole = packed(native_ops, matrix(Form("int8", 64, int8_x=True), 40, 192), torch.float32)
    x = random(9, 192)
    clean = native_ops.linear(x, whole)
    x[2, 100], x[4, 3], x[5], x[7] = torch.nan, -torch.inf, 0, 1e-45
    found, others = native_ops.linear(x, whole), [0, 1, 3, 6, 8]
    assert found[[2, 4]].isnan().all() and torch.equal(found[[5, 7]], torch.zeros(2, 40))
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize(("codes", "int8_x"), [*((c, False) for c in CODES), *((c, True) for c in WHOLE)])
def test_outliers_and_zeros(native_ops: CpuOps, cpu_isa: str, codes: Codes, int8_x: bool) -> None:
    """One huge input, rows of zeros, the largest scales: nothing leaks into other rows or outputs."""
    made = matrix(Form(codes, 64, int8_x=int8_x), 40, 192)
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


@pytest.mark.parametrize(
    ("codes", "group", "said"), [("fp8", 64, "fp8 times activations in int8"), ("int8", 132, "groups of 132")]
)
def test_forms_without_activations_in_int8(native_ops: CpuOps, codes: Codes, group: int, said: str) -> None:
    form = Form(codes, group, int8_x=True)
    with pytest.raises(RuntimeError, match=said):
        native_ops.begin_quantized((16, 256), form, torch.float32)


def test_a_damaged_matrix_is_refused(native_ops: CpuOps) -> None:
    """Every field of the header, a cut, and an order that leads out of the row."""
    made = matrix(Form("int8", 64), 20, 128, ordered=True)
    x = random(2, 128)
    whole: Any = packed(native_ops, made, torch.float32)
    for field in range(9):
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
