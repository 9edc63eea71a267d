"""GPTQ and rounding to nearest on compressed-tensors' grid, and the words that are written of them."""

from __future__ import annotations

import logging
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.config.quantization import CHANNEL
from minillm.errors import UsageError, WeightsError
from minillm.model.compress.gptq import gptq, hessian_of, loss, repair_of
from minillm.model.compress.grid import Grid, Rounded, round_to_nearest
from minillm.model.compress.packing import (
    entries,
    pack,
    quantization_config,
    require_whole_groups,
    tensors,
)
from minillm.model.compress.schemes import Scheme

INT4 = Grid(4, CHANNEL, torch.float32)
GRIDS = [
    Grid(bits, group, dtype, symmetric)
    for bits, group, dtype, symmetric in product(
        (4, 8), (CHANNEL, 32, 64), (torch.bfloat16, torch.float16, torch.float32), (True, False)
    )
    if symmetric or bits == 4
] + [Grid(8, CHANNEL, torch.bfloat16, floating=True)]


def name_of(grid: Grid) -> str:
    kind = "fp8" if grid.floating else f"int{grid.bits}{'' if grid.symmetric else 'zero'}"
    return f"{kind}-{grid.group or 'channel'}-{str(grid.dtype).removeprefix('torch.')}"


def weights_and_inputs(out: int = 24, size: int = 192, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """Random weights, and inputs that depend on each other."""
    generator = torch.Generator().manual_seed(out + size)
    weights = torch.randn(out, size, generator=generator) / 8
    mixed = torch.randn(size, size, generator=generator)
    return weights, torch.randn(tokens, size, generator=generator) @ mixed / 10


# ---- GPTQ -----------------------------------------------------------------------------------------


def test_the_second_of_two_equal_inputs_repairs_the_first() -> None:
    """The scale is 1. Rounding: 0.4 and 0.4 become 0 and 0, an error of 0.8 x. GPTQ: 0 and 1, of 0.2 x."""
    weights = torch.tensor([[0.4, 0.4, 7.5]])
    equal = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1e-6]])
    rounded, repaired = round_to_nearest(weights, INT4), gptq(weights, repair_of(equal), INT4)
    assert rounded.matrix().dequantize().tolist() == [[0, 0, 7]]
    assert repaired.matrix().dequantize().tolist() == [[0, 1, 7]]
    assert loss(weights, rounded, equal) == pytest.approx(0.64, abs=1e-5)
    assert loss(weights, repaired, equal) == pytest.approx(0.04, abs=1e-5)
    apart = torch.eye(3)  # the control: inputs without a relation have nothing to repair
    assert torch.equal(gptq(weights, repair_of(apart), INT4).codes, rounded.codes)


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_the_loss_is_smaller_than_that_of_rounding(grid: Grid) -> None:
    weights, inputs = weights_and_inputs()
    hessian = hessian_of(inputs)
    rounded, repaired = round_to_nearest(weights, grid), gptq(weights, repair_of(hessian), grid)
    assert loss(weights, repaired, hessian) < 0.7 * loss(weights, rounded, hessian)
    control = gptq(weights, repair_of(torch.eye(weights.shape[1])), grid)
    assert torch.equal(control.codes, rounded.codes) and torch.equal(control.scales, rounded.scales)


@pytest.mark.parametrize("group", [CHANNEL, 32])
def test_every_repair_is_the_best_one(group: int) -> None:
    """Against least squares: once a column is fixed, the columns after it are solved for anew."""
    grid = Grid(4, group, torch.float32)
    weights, inputs = weights_and_inputs(out=8, size=96)
    hessian = hessian_of(inputs).double()
    damped = hessian + torch.eye(96, dtype=torch.float64) * hessian.diagonal().mean() * 0.01
    left, codes = weights.double(), torch.empty(8, 96, dtype=torch.uint8)
    whole = round_to_nearest(weights, grid)
    for c in range(96):
        if group and c % group == 0:
            whole = round_to_nearest(left[:, c : c + group].float(), grid)
        scale = whole.scales[:, 0].double()
        codes[:, c] = ((left[:, c] / scale).round() + 8).clamp(0, 15).to(torch.uint8)
        error = left[:, c] - scale * (codes[:, c].double() - 8)
        after = slice(c + 1, None)
        left[:, after] += error[:, None] * torch.linalg.solve(damped[after, after], damped[after, c])
    found = gptq(weights, repair_of(hessian.float()), grid).codes
    assert (found != codes).float().mean() < 0.01  # float32 against float64: a tie may fall either way


def test_inputs_that_were_never_used_are_rounded_to_nearest() -> None:
    weights, inputs = weights_and_inputs()
    inputs[:, 40:60] = 0
    found = gptq(weights, repair_of(hessian_of(inputs)), INT4).codes
    nearest = round_to_nearest(weights, INT4).codes
    assert torch.equal(found[:, 40:60], nearest[:, 40:60])
    assert not torch.equal(found, nearest)


@pytest.mark.parametrize("tokens", [0, 1, 30])
def test_fewer_tokens_than_inputs(tokens: int) -> None:
    weights, inputs = weights_and_inputs(tokens=tokens)
    hessian = hessian_of(inputs)
    found = gptq(weights, repair_of(hessian), INT4)
    nearest = round_to_nearest(weights, INT4)
    assert loss(weights, found, hessian) <= loss(weights, nearest, hessian)
    assert torch.equal(found.codes, nearest.codes) == (tokens == 0)


def test_more_damping_where_the_hessian_is_not_positive_definite(caplog: pytest.LogCaptureFixture) -> None:
    almost = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    with caplog.at_level(logging.WARNING, logger="minillm"):
        upper = repair_of(almost, "layers.0.q")
    assert [record.getMessage() for record in caplog.records] == [
        "layers.0.q: the Hessian is not positive definite; damping raised to 10%"
    ]
    damped = almost + 0.1 * torch.eye(2)
    assert torch.allclose(upper.T @ upper, damped.inverse(), rtol=1e-4)
    with pytest.raises(WeightsError, match=r"layers\.0\.q is not positive definite, even with damping"):
        repair_of(torch.tensor([[1.0, 9.0], [9.0, 1.0]]), "layers.0.q")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("grid", [INT4, Grid(4, 64, torch.bfloat16, symmetric=False)], ids=name_of)
def test_weights_that_are_no_numbers_are_refused(grid: Grid, bad: float) -> None:
    weights, inputs = weights_and_inputs()
    repair = repair_of(hessian_of(inputs))
    weights[3, 100] = bad
    for make in (lambda: round_to_nearest(weights, grid, "a.b"), lambda: gptq(weights, repair, grid, "a.b")):
        with pytest.raises(WeightsError, match=r"a\.b cannot be quantised"):
            make()
    inputs[7, 7] = bad
    with pytest.raises(WeightsError, match=r"inputs of a\.b are NaN or infinite"):
        repair_of(hessian_of(inputs), "a.b")


# ---- the grid -------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_rounding_takes_the_nearest_number_of_the_grid(grid: Grid) -> None:
    weights, _ = weights_and_inputs()
    weights[0, :64], weights[1] = 0, 0
    rounded = round_to_nearest(weights, grid)
    found = rounded.matrix().dequantize()
    groups = grid.group or weights.shape[1]
    scales = rounded.scales.float().repeat_interleave(groups, 1)
    assert rounded.scales.dtype == grid.dtype
    assert torch.equal(found[weights == 0], torch.zeros(int((weights == 0).sum())))
    if grid.floating:
        whole = rounded.codes.view(torch.float8_e4m3fn).float()
        assert torch.equal(found, scales * whole)
        assert torch.equal(whole[scales > 0], (weights / scales)[scales > 0].to(torch.float8_e4m3fn).float())
        return
    middle = (grid.last + 1) // 2
    zeros = torch.full_like(scales, middle) if rounded.zeros is None else spread(rounded.zeros, groups)
    assert torch.equal(found, scales * (rounded.codes.float() - zeros))
    inside = (rounded.codes > 0) & (rounded.codes < grid.last)
    assert ((found - weights).abs() <= scales / 2 * 1.0001)[inside].all()
    # At the ends half a step is cut, and a little more where the scale was rounded down to 8 bits.
    assert ((found - weights).abs() <= scales * 1.1).all()


def spread(per_group: Tensor, group: int) -> Tensor:
    return per_group.float().repeat_interleave(group, 1)


# ---- the file -------------------------------------------------------------------------------------


def test_words_have_the_first_code_in_their_lowest_bits() -> None:
    codes = torch.arange(16, dtype=torch.uint8).view(1, 16)
    assert pack(codes, 4).tolist() == [[0x76543210, 0xFEDCBA98 - (1 << 32)]]
    assert pack(codes[:, :4], 8).tolist() == [[0x03020100]]
    assert pack(codes[:, 1:6], 4).tolist() == [[0x00054321]]  # filled up with zeros
    assert pack(codes[:, :5], 8).tolist() == [[0x03020100, 0x00000004]]


def test_what_an_asymmetric_matrix_becomes() -> None:
    """Zeros are packed down the outputs. Scales are 1 / 4 and 1: the ranges are 15 steps."""
    grid = Grid(4, 8, torch.bfloat16, symmetric=False)
    weights = torch.tensor([[-0.75, 3, 0, 1, 0, 0, 0, 0], [-15.0, 0, -8, -1, 0, 0, 0, 0]])
    packed, scales, shape, zeros = tensors(round_to_nearest(weights, grid))
    assert packed.tolist() == [[0x333373F0], [-0x1810]]  # codes 0 15 3 7 3 3 3 3 and 0 15 7 14 15 15 15 15
    assert scales.tolist() == [[0.25], [1]] and shape.tolist() == [2, 8] and zeros.tolist() == [[0xF3]]
    described = [(entry.name, entry.dtype, entry.shape) for entry in entries("m", (2, 8), grid)]
    assert described == [
        ("m.weight_packed", "I32", (2, 1)),
        ("m.weight_scale", "BF16", (2, 1)),
        ("m.weight_shape", "I64", (2,)),
        ("m.weight_zero_point", "I32", (1, 1)),
    ]


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
@pytest.mark.parametrize("out", [7, 24])
def test_the_header_describes_the_tensors(grid: Grid, out: int) -> None:
    weights, _ = weights_and_inputs(out=out)
    for entry, tensor in zip(
        entries("m", (out, 192), grid), tensors(round_to_nearest(weights, grid)), strict=True
    ):
        assert entry.shape == tuple(tensor.shape)
        assert entry.nbytes == tensor.numel() * tensor.dtype.itemsize


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
@pytest.mark.parametrize("out", [7, 24])
def test_the_library_reads_the_same_numbers(grid: Grid, out: int) -> None:
    """compressed-tensors rounds scale * (code - zero) once, to the dtype of the scales."""
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor

    weights, inputs = weights_and_inputs(out=out)
    for rounded in (round_to_nearest(weights, grid), gptq(weights, repair_of(hessian_of(inputs)), grid)):
        names = [entry.name.removeprefix("m.") for entry in entries("m", (out, 192), grid)]
        config = library.quantization.QuantizationConfig(**settings(grid))
        compressor = BaseCompressor.get_value_from_registry(config.format)
        stored = dict(zip(names, tensors(rounded), strict=True))
        theirs = compressor.decompress(stored, config.config_groups["group_0"])["weight"]
        assert theirs.dtype == grid.dtype
        assert torch.equal(theirs, ours(rounded))


def settings(grid: Grid) -> dict[str, Any]:
    return quantization_config(grid, ["lm_head"])


def ours(rounded: Rounded) -> Tensor:
    return rounded.matrix().dequantize().to(rounded.grid.dtype)


# ---- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("w3a16",), "no scheme 'w3a16'"),
        (("w4a16", "48"), "no group '48'"),
        (("fp8", "64"), "one scale for each output"),
        (("w8a16", None, True), "w8a16 is symmetric"),
        (("fp8", None, True), "fp8 is symmetric"),
    ],
    ids=str,
)
def test_schemes_that_do_not_exist(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Scheme(*arguments)


def test_groups_that_do_not_divide_are_refused_with_those_that_do() -> None:
    shapes = {"a.q": (64, 192), "a.down": (64, 96)}
    with pytest.raises(UsageError, match=r"a\.down has 96 inputs.*--group 32 or channel"):
        require_whole_groups(shapes, Grid(4, 64, torch.bfloat16))
    for group in (32, CHANNEL):
        require_whole_groups(shapes, Grid(4, group, torch.bfloat16))
