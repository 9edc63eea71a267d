"""Quantised products, lookups, experts in the simulator: against float64, the same bits in any batch (C2)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from cases import DTYPES, random
from quantized_experts import QuantizedExperts, check_experts
from quantized_matrices import GROUPS, SHAPES, blocks_of, matrix, packed
from quantized_products import CODES_AND_INT8_X, WHOLE, check_product, is_right, with_wrong_scales

from minillm.config.quantization import CODES, Codes, Form
from minillm.errors import BackendError
from minillm.ops.contract import PackedWeight, Routing
from minillm.ops.cpu import CpuOps
from minillm.ops.quantized import QuantizedMatrix
from minillm.ops.simt import SimtOps, flavour, flavours, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
WIDE = [(20, 264), (17, 130)]  # more than one tile of 128 inputs


@pytest.fixture(params=flavours())
def simulated(request: pytest.FixtureRequest):
    """In each flavour; all but "fast" in reversed order, which must not change a result."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


def forms(codes: Codes) -> list[tuple[int, Form]]:
    """Every group, half of them with minima, half with wide scales."""
    return [
        (n, Form(codes, group, wide=n % 2 == 1, minimum=n // 2 % 2 == 1))
        for n, group in enumerate([*GROUPS, 8])
    ]


def test_packed_matrices_have_the_documented_layout() -> None:
    """Beside plain Python, byte by byte."""
    for codes, (n, group), size in product(CODES, enumerate(GROUPS), SHAPES):
        made = matrix(Form(codes, group, wide=n % 2 == 1, minimum=n % 3 == 1), *size, ordered=n == 2, seed=n)
        whole, expected = packed(OPS, made, torch.float32), blocks_of(made).flatten()
        assert isinstance(whole, PackedWeight)
        assert torch.equal(whole.data[-len(expected) :], expected), (made.form, size)
        header = whole.data[:32].view(torch.int32).tolist()
        assert header[6:] == list(size) and header[1] == 1 + CODES.index(codes)


@pytest.mark.parametrize("codes", CODES)
def test_products(codes: Codes) -> None:
    for (n, form), (shape, dtype) in product(forms(codes), enumerate(DTYPES)):
        size = [*SHAPES, *WIDE][(3 * n + shape) % 8]
        made = matrix(form, *size, ordered=n % 3 == 1, seed=n)
        check_product(OPS, made, dtype, 33, with_bias=n % 2 == 0)


@pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)
def test_products_with_many_rows(codes: Codes, int8_x: bool) -> None:
    for n, form in forms(codes):
        if not int8_x or form.group > 8:
            made = matrix(replace(form, int8_x=int8_x), 5, 130, ordered=n % 2 == 1, seed=n)
            check_product(OPS, made, DTYPES[n % len(DTYPES)], 71)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
def test_scales_that_are_one_percent_wrong_are_noticed(dtype: torch.dtype) -> None:
    """The control of both tests above."""
    for codes in CODES:
        made, x = matrix(Form(codes, 64), 17, 200), random(3, 200).to(dtype)
        found = OPS.linear(x, packed(OPS, with_wrong_scales(made), dtype))
        assert is_right(found, made, x).double().mean() < 0.75


@pytest.mark.parametrize("codes", WHOLE)
def test_activations_in_int8_have_the_bits_of_the_cpu(codes: Codes) -> None:
    """Sums of whole numbers are exact, and groups are folded in one order: the kernels of both agree."""
    native = CpuOps()
    cases = product([16, 32, 64, 128], [False, True], enumerate([*SHAPES, *WIDE]))
    for group, minimum, (n, (out, size)) in cases:
        form = Form(codes, group, wide=n % 3 == 0, minimum=minimum, int8_x=True)
        made, dtype = matrix(form, out, size, ordered=n % 2 == 1, seed=n), DTYPES[n % len(DTYPES)]
        x = random(19, size, seed=n).to(dtype)
        x[3], x[5, 0] = 0, torch.nan
        whole = packed(OPS, made, dtype)
        found, exact = OPS.linear(x, whole), native.linear(x, packed(native, made, dtype))
        finite = [row for row in range(19) if row != 5]
        assert found[5].isnan().all() and torch.equal(found[finite], exact[finite]), (form, out, size)
        for rows in (1, 2, 9):
            assert torch.equal(OPS.linear(x[:rows], whole)[:3], found[: min(rows, 3)])
    plain = packed(OPS, matrix(Form(codes, 64), 16, 128), torch.float32)
    rounds = packed(OPS, matrix(Form(codes, 64, int8_x=True), 16, 128), torch.float32)
    x = random(2, 128)
    assert not torch.allclose(OPS.linear(x, plain), OPS.linear(x, rounds), atol=1e-6), "the control"


def test_groups_that_do_not_fit_in_a_tile_are_refused() -> None:
    with pytest.raises(BackendError, match="activations in int8 in groups of 96"):
        OPS.begin_quantized((16, 192), Form("int8", 96, int8_x=True), torch.float32)
    OPS.begin_quantized((16, 96), Form("int8", 96, int8_x=True), torch.float32)  # the only group


@pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)
def test_products_under_the_simulators_checks(simulated: str, codes: Codes, int8_x: bool) -> None:
    """Races, uninitialised reads, accesses outside the tensors; blocks and warps in another order."""
    made = matrix(Form(codes, 32, minimum=True, int8_x=int8_x), 18, 200, ordered=True)
    whole, x = packed(OPS, made, torch.bfloat16), random(17, 200).bfloat16()
    found = OPS.linear(x, whole)
    if simulated != "asan":  # its process has no other flavour
        with flavour("fast"):
            assert torch.equal(OPS.linear(x, whole), found)
    OPS.embedding(torch.tensor([3, 17]), whole)


@pytest.mark.parametrize("codes", CODES)
def test_outliers_and_zeros(codes: Codes) -> None:
    """One huge input, rows of zeros, the largest scales: nothing leaks into other rows or outputs."""
    made = matrix(Form(codes, 64), 40, 192)
    made.scales[3] = 6e4
    whole, x = packed(OPS, made, torch.float32), random(9, 192)
    x[2, 100], x[5] = 1e30, 0
    found = OPS.linear(x, whole)
    assert torch.equal(found[5], torch.zeros(40)) and torch.isfinite(found).all()
    x[2, 100] = torch.nan
    poisoned, others = OPS.linear(x, whole), [0, 1, 3, 4, 5, 6, 7, 8]
    assert poisoned[2].isnan().all() and torch.equal(poisoned[others], found[others])


def test_every_number_of_every_code() -> None:
    """A product with the unit matrix: each code alone, to the bit; subnormal e4m3 too."""
    for codes in CODES:
        made = matrix(Form(codes, 0, wide=True), 16, 256)
        count = 256 if made.form.bits == 8 else 16
        made.codes[:] = torch.arange(256).remainder(count).to(torch.uint8)
        if codes == "fp8":
            made.codes[made.codes & 0x7F == 0x7F] = 1  # NaN
        made.scales[:] = 1
        assert torch.equal(OPS.linear(torch.eye(256), packed(OPS, made, torch.float32)), made.dequantize().T)


def test_control_a_sum_in_another_order_would_be_noticed() -> None:
    """The same matrix with its inputs in another order has other bits."""
    made, x = matrix(Form("int8", 64), 48, 256), random(3, 256)
    turned = torch.arange(255, -1, -1)
    other = QuantizedMatrix(made.form, made.codes[:, turned], made.scales.flip(1))
    a = OPS.linear(x, packed(OPS, made, torch.float32))
    b = OPS.linear(x[:, turned].contiguous(), packed(OPS, other, torch.float32))
    assert not torch.equal(a, b) and torch.allclose(a, b, atol=1e-4)


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
@pytest.mark.parametrize("codes", ["int8", "uint4"])
def test_a_product_reads_each_code_and_each_scale_once(codes: Codes) -> None:
    """For each 16 rows. A sector of 32 bytes is never fetched for a part of it."""
    made = matrix(Form(codes, 32, minimum=codes == "uint4"), 32, 256)
    whole: Any = packed(OPS, made, torch.float32)
    for rows in (1, 16, 17):
        with profile() as p:
            OPS.linear(random(rows, 256), whole)
        tiles = -(-rows // 16)
        assert p.tensors["weight"] == (tiles * (whole.nbytes - 64), 0)
        of_x = 2 * rows * 256 * 4  # once for each 16 outputs
        written = rows * 32 * 4
        assert p.global_read_sectors == (tiles * (whole.nbytes - 64) + of_x) // 32
        assert p.global_write_bytes == written


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("codes", ["int8", "uint4"])
def test_experts_have_the_bits_of_linear(simulated: str, codes: Codes, dtype: torch.dtype) -> None:
    check_experts(OPS, Form(codes, 32, minimum=True), dtype)


@pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)
def test_experts_of_every_code(codes: Codes, int8_x: bool) -> None:
    check_experts(OPS, Form(codes, 32, minimum=True, int8_x=int8_x), torch.bfloat16)


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
def test_only_the_matrices_of_used_experts_are_read() -> None:
    hidden, size, count = 64, 32, 6
    stacked = QuantizedExperts(OPS, Form("int4", 32), count, hidden, size, torch.float32)
    whole = [matrix.weight.nbytes - 64 for matrix in stacked.matrices]
    for chosen in ([2], [0, 5]):
        with profile() as p:
            OPS.experts(
                random(1, hidden),
                Routing(torch.tensor([chosen]), torch.ones(1, len(chosen))),
                *stacked.matrices,
                "silu",
            )
        assert p.tensors["gate_up"] == (whole[0] * len(chosen) // count, 0)
        # Its one group of 32 inputs has room for the scales of a second one, which no kernel reads.
        assert p.tensors["down"] == (len(chosen) * 4 * (32 + 4 * 64), 0)


def test_a_damaged_matrix_is_refused() -> None:
    """Every field of the header, a cut, a beginning in the middle of a word, a wrong order."""
    made = matrix(Form("int8", 64), 20, 128, ordered=True)
    whole: Any = packed(OPS, made, torch.float32)
    for field in range(8):
        damaged = whole.data.clone()
        damaged.view(torch.int32)[field] += 3
        assert _refused(damaged), field
    assert _refused(whole.data[:-64].contiguous()) and _refused(whole.data[:40].contiguous())
    for wrong in (-1, 128):
        damaged = whole.data.clone()
        damaged.view(torch.int32)[16] = wrong
        assert _refused(damaged)
    moved = torch.empty(len(whole.data) + 1, dtype=torch.uint8)[1:]
    assert _refused(moved.copy_(whole.data)) and not _refused(whole.data)


def _refused(data: torch.Tensor) -> bool:
    ops, refused = torch.ops.minillm_simt, 0
    calls: list[Any] = [
        lambda: ops.linear_codes(random(2, 128), data, None, 20, 0),
        lambda: ops.embedding_codes(torch.tensor([1]), data, 20, 128, torch.float32, 0),
    ]
    for call in calls:
        try:
            call()
        except RuntimeError:
            refused += 1
    assert refused in (0, len(calls))
    return refused > 0


def test_what_a_quantised_matrix_cannot_do_is_refused() -> None:
    whole = packed(OPS, matrix(Form("int8", 64), 20, 128), torch.float32)
    for options in ({"rung": "l2"}, {"rung": "l5", "float_out": True}):
        with pytest.raises(ValueError, match="a quantised matrix has one rung"):
            OPS.linear(random(2, 128), whole, **options)
    with pytest.raises(ValueError, match="in-features differ"):
        OPS.linear(random(2, 64), whole)
    for wrong in (-1, 20):
        with pytest.raises(RuntimeError, match=f"id {wrong} is outside"):
            OPS.embedding(torch.tensor([wrong]), whole)


def test_no_rows_at_all() -> None:
    whole = packed(OPS, matrix(Form("int8", 64), 20, 128), torch.float32)
    assert OPS.linear(torch.empty(0, 128), whole).shape == (0, 20)
    assert OPS.embedding(torch.empty(0, dtype=torch.int64), whole).shape == (0, 128)


def test_opcheck() -> None:
    whole: Any = packed(OPS, matrix(Form("int8", 64), 20, 128), torch.float32)
    ops = torch.ops.minillm_simt
    for op, arguments in [
        (ops.linear_codes, (random(2, 128), whole.data, None, 20)),
        (ops.embedding_codes, (torch.tensor([1, 2]), whole.data, 20, 128, torch.bfloat16)),
    ]:
        torch.library.opcheck(op.default, (*arguments, 0), test_utils=["test_schema", "test_faketensor"])
