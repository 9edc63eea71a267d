"""Products and lookups of quantised matrices: against float64, and the same bits for any number of rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from native import DTYPES, random, threads
from quantized_matrices import GROUPS, SHAPES, matrix, packed
from quantized_products import (
    CODES_AND_INT8_X,
    WHOLE,
    check_product,
    is_fixed,
    is_right,
    with_wrong_scales,
)
from torch import Tensor

from minillm.config.quantization import CODES, Codes, Form
from minillm.ops.cpu import CpuOps
from minillm.ops.quantized import QuantizedMatrix, numbers_of, rounded_x


@pytest.mark.parametrize("codes", CODES)
def test_products(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    cases = product(GROUPS, [False, True], [False, True], enumerate(SHAPES))
    for group, wide, minimum, (n, (out, size)) in cases:
        form = Form(codes, group, wide, minimum)
        made = matrix(form, out, size, ordered=n % 2 == 1, seed=n)
        for dtype in DTYPES:
            fixed = is_fixed(cpu_isa, codes, dtype)
            check_product(native_ops, made, dtype, 70 if n else 513, with_bias=n % 2 == 1, fixed=fixed)


@pytest.mark.parametrize("codes", WHOLE)
def test_products_with_activations_in_int8(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    """Against float64 products of the rounded activations, whose sums within a group are exact."""
    for group, minimum, (n, (out, size)) in product([32, 64, 128], [False, True], enumerate(SHAPES)):
        form = Form(codes, group, wide=n % 3 == 0, minimum=minimum, int8_x=True)
        made = matrix(form, out, size, ordered=n % 2 == 1, seed=n)
        for dtype in DTYPES:
            check_product(native_ops, made, dtype, 70 if n else 513)
    plain = packed(native_ops, matrix(Form(codes, 64), 16, 128), torch.float32)
    x = random(2, 128)
    rounds = packed(native_ops, matrix(Form(codes, 64, int8_x=True), 16, 128), torch.float32)
    assert not torch.allclose(native_ops.linear(x, plain), native_ops.linear(x, rounds), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)
def test_scales_that_are_one_percent_wrong_are_noticed(
    native_ops: CpuOps, cpu_isa: str, codes: Codes, int8_x: bool, dtype: torch.dtype
) -> None:
    """The control of both tests above."""
    for minimum in (False, True):
        made = matrix(Form(codes, 64, minimum=minimum, int8_x=int8_x), 48, 576)
        x = random(9, 576).to(dtype)
        multiplied = rounded_x(x, made.form, None) if int8_x else x
        fixed = not int8_x and is_fixed(cpu_isa, codes, dtype)
        right = [
            is_right(native_ops.linear(x, packed(native_ops, given, dtype)), made, multiplied, fixed=fixed)
            for given in (made, with_wrong_scales(made))
        ]
        assert right[0].all() and right[1].double().mean() < 0.75


@pytest.mark.parametrize("out", [130, 16 * 6 * 3 + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)
def test_any_number_of_threads(
    native_ops: CpuOps, cpu_isa: str, codes: Codes, int8_x: bool, dtype: torch.dtype, out: int
) -> None:
    """Contract C2. Each thread takes strips of outputs; with many rows it unpacks them first."""
    made = matrix(Form(codes, 64, minimum=True, int8_x=int8_x), out, 200)
    whole, x, ids = packed(native_ops, made, dtype), random(70, 200).to(dtype), torch.arange(out)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            rows = [native_ops.linear(x[:rows], whole) for rows in (1, 9, 70)]
            found.append(torch.cat([part.flatten() for part in (*rows, native_ops.embedding(ids, whole))]))
    assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


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


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
@pytest.mark.parametrize("codes", CODES)
def test_activations_of_nearly_one_size_are_exact(
    native_ops: CpuOps, cpu_isa: str, codes: Codes, dtype: torch.dtype, bits: int
) -> None:
    """All bits of numbers from 2^(bits - 15) of the largest one on, where sums fit into a float."""
    generator = torch.Generator().manual_seed(3)
    made = matrix(Form(codes, 0), 40, 320)
    made.codes[:], made.scales[:] = made.codes & 0x0F if codes == "fp8" else made.codes, 1
    x, shape = torch.zeros(9, 320), (9, 2)
    for segment in range(0, 320, 64):
        numbers = torch.randint(2 ** (bits - 1), 2**bits, shape, generator=generator)
        exponents = torch.randint(bits - 15, 1, shape, generator=generator) - (bits - 1)
        signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        x[:, segment + 1 : segment + 3] = numbers * signs * 2.0**exponents
    for size in (1.0, 2.0**-90, 2.0**90) if dtype == torch.bfloat16 else (1.0, 2.0**-7):
        scaled = (x * size).to(dtype)
        assert torch.equal(scaled.double(), x.double() * size)
        exact = scaled.double() @ made.dequantize().double().T
        assert torch.equal(native_ops.linear(scaled, packed(native_ops, made, dtype)), exact.to(dtype))


@pytest.mark.parametrize("codes", CODES)
def test_small_activations_beside_a_large_one(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    """The large one has weights of zero: only the errors of the small ones remain, 2^-15 of 512 for each."""
    made, x = matrix(Form(codes, 64), 40, 192), random(9, 192)
    zero = {"int8": 128, "int4": 8}.get(codes, 0)
    made.codes[:, 70], x[:, 70] = zero, 1000.0
    x = x.bfloat16()
    weight = made.dequantize().double()
    exact, bound = x.double() @ weight.T, 512 * 2.0**-15 * weight[:, 64:128].abs().sum(1) + 1e-3
    found = native_ops.linear(x, packed(native_ops, made, torch.bfloat16)).double()
    assert bool(((found - exact).abs() <= exact.abs() * 2.0**-8 + bound).all())


@pytest.mark.parametrize("codes", CODES)
def test_the_largest_bfloat16_sums(native_ops: CpuOps, cpu_isa: str, codes: Codes) -> None:
    """Every code and activation at its end, of either sign, in long groups too: nothing overflows."""
    for group, code, sign in product([32, 192, 0], [0, -1], [1, -1]):
        made = matrix(Form(codes, group), 16, 512)
        made.codes[:], made.scales[:] = len(numbers_of(codes)) + code if code else 0, 1
        if codes == "fp8":
            made.codes[:] = 0xFE if code else 0x7E  # the largest numbers that are not NaN
        x = torch.full((9, 512), 1.9921875 * sign).bfloat16()
        exact = x.double() @ made.dequantize().double().T
        assert torch.equal(native_ops.linear(x, packed(native_ops, made, torch.bfloat16)), exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)
def test_outliers_and_zeros(
    native_ops: CpuOps, cpu_isa: str, codes: Codes, int8_x: bool, dtype: torch.dtype
) -> None:
    """One huge input, rows of zeros, the largest scales: nothing leaks into other rows or outputs."""
    made = matrix(Form(codes, 64, int8_x=int8_x), 40, 192)
    made.scales[3] = 6e4
    whole, x = packed(native_ops, made, dtype), random(9, 192).to(dtype)
    x[2, 100], x[5], x[8] = 1e30, 0, 1e-39
    found = native_ops.linear(x, whole)
    assert torch.equal(found[5], torch.zeros(40, dtype=dtype)) and torch.isfinite(found).all()
    others = [0, 1, 3, 4, 6, 7, 8]
    assert torch.equal(native_ops.linear(x[others], whole), found[others])
    for wrong in (torch.nan, torch.inf):
        x[2, 100] = wrong
        poisoned = native_ops.linear(x, whole)
        assert not poisoned[2].isfinite().any() and torch.equal(poisoned[others], found[others])


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
