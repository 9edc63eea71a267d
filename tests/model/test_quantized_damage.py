"""Damaged quantised files: every one is refused with a typed error that names the tensor."""

from collections.abc import Callable

import pytest
import torch
from quantized_cases import MODULE, Case, all_cases, awq, blocks, gguf, gptq, mxfp4, packed, plain_codes
from torch import Tensor

from minillm.errors import UnsupportedModel, WeightsError

Change = Callable[[Tensor], Tensor]


def _packed(order: bool = False, symmetric: bool = False, dtype: str = "f16") -> Case:
    return packed(4, symmetric, "group", 32, dtype, 16, 128, order)


def _at(value: float, *place: int) -> Change:
    """One number replaced."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[place] = value
        return tensor

    return change


def _bytes(value: int, *place: int) -> Change:
    """One byte replaced."""
    return lambda tensor: _at(value, *place)(tensor.view(torch.uint8)).view(tensor.dtype)


NAN, INF = float("nan"), float("inf")
DAMAGE: dict[str, tuple[Case, str, Change]] = {
    "packed-nan-scale": (_packed(), ".weight_scale", _at(NAN, 3, 1)),
    "packed-infinite-scale": (_packed(dtype="bf16"), ".weight_scale", _at(-INF, 0, 0)),
    "packed-truncated": (_packed(), ".weight_packed", lambda t: t[:-1]),
    "packed-short-rows": (_packed(), ".weight_packed", lambda t: t[:, :-1]),
    "packed-wrong-dtype": (_packed(), ".weight_packed", lambda t: t.long()),
    "packed-scale-of-integers": (_packed(), ".weight_scale", lambda t: t.to(torch.int16)),
    "packed-scale-transposed": (_packed(), ".weight_scale", lambda t: t.T),
    "packed-zeros-not-packed": (_packed(), ".weight_zero_point", lambda t: t.repeat(8, 1)),
    "packed-other-shape": (_packed(), ".weight_shape", _at(64, 1)),
    "packed-negative-shape": (_packed(), ".weight_shape", _at(-128, 1)),
    "packed-g-idx-above": (_packed(order=True), ".weight_g_idx", _at(4, 0)),
    "packed-g-idx-below": (_packed(order=True), ".weight_g_idx", _at(-1, 0)),
    "packed-g-idx-short": (_packed(order=True), ".weight_g_idx", lambda t: t[1:]),
    "packed-g-idx-unequal": (_packed(order=True), ".weight_g_idx", lambda t: t.clamp(max=2)),
    "int-scale-overflows": (
        plain_codes("int", True, "channel", -1, "f32", 8, 64),
        ".weight_scale",
        _at(3e38, 2, 0),
    ),
    "int-other-shape": (plain_codes("int", True, "channel", -1, "f32", 8, 64), ".weight", lambda t: t.T),
    "int-unsigned": (
        plain_codes("int", True, "channel", -1, "f32", 8, 64),
        ".weight",
        lambda t: t.view(torch.uint8),
    ),
    "float-nan-code": (
        plain_codes("float", True, "tensor", -1, "f32", 8, 64),
        ".weight",
        _bytes(0x7F, 7, 63),
    ),
    "float-minus-nan-code": (
        plain_codes("float", True, "tensor", -1, "f32", 8, 64),
        ".weight",
        _bytes(0xFF, 0, 0),
    ),
    "float-e5m2": (
        plain_codes("float", True, "tensor", -1, "f32", 8, 64),
        ".weight",
        lambda t: t.view(torch.uint8).view(torch.float8_e5m2),
    ),
    "float-two-scales": (
        plain_codes("float", True, "tensor", -1, "f32", 8, 64),
        ".weight_scale",
        lambda t: t.repeat(2),
    ),
    "fp8-nan-code": (blocks(128, "f32", 140, 300), ".weight", _bytes(0xFF, 139, 299)),
    "fp8-nan-scale": (blocks(128, "f32", 140, 300), ".weight_scale_inv", _at(NAN, 1, 2)),
    "fp8-e8m0-nan-scale": (blocks(128, "e8m0", 140, 300), ".weight_scale_inv", _bytes(255, 0, 0)),
    "fp8-scale-overflows": (blocks(128, "e8m0", 140, 300), ".weight_scale_inv", _bytes(254, 0, 0)),
    "fp8-missing-block": (blocks(128, "f32", 140, 300), ".weight_scale_inv", lambda t: t[:, :-1]),
    "awq-scales-short": (awq(32, "f16", 24, 96), ".scales", lambda t: t[:-1]),
    "awq-nan-scale": (awq(32, "f16", 24, 96), ".scales", _at(NAN, 0, 23)),
    "awq-zeros-of-another": (awq(32, "f16", 24, 96), ".qzeros", lambda t: t[:, :-1]),
    "gptq-g-idx-above": (gptq(4, False, 1, 32, 32, 128, True), ".g_idx", _at(9, 5)),
    "gptq-g-idx-below": (gptq(4, False, 1, 32, 32, 128, True), ".g_idx", _at(-5, 5)),
    "gptq-infinite-scale": (gptq(4, False, 1, 32, 32, 128), ".scales", _at(INF, 0, 0)),
    "gptq-rows-missing": (gptq(8, True, 1, 32, 32, 128), ".qweight", lambda t: t[:-1]),
    "gptq-asymmetric-zeros": (gptq(4, True, 1, 32, 32, 128), ".qzeros", _at(0, 0, 0)),
    "gptq-version-one-in-two": (gptq(4, True, 2, 32, 32, 128), ".qzeros", lambda t: t - 0x11111111),
    "mxfp4-nan-scale": (mxfp4(5, 96), "_scales", _at(255, 4, 2)),
    "mxfp4-scale-overflows": (mxfp4(5, 96), "_scales", _at(254, 0, 0)),
    "mxfp4-blocks-cut": (mxfp4(5, 96), "_blocks", lambda t: t[:, :, :-1]),
    "mxfp4-signed": (mxfp4(5, 96), "_blocks", lambda t: t.view(torch.int8)),
    "q4_k-infinite-scale": (gguf("Q4_K", 5, 512), "", _at(0x7C, 1, 1)),
    "q8_0-nan-scale": (gguf("Q8_0", 5, 96), "", _at(0x7E, 1, 1)),
    "q6_k-cut": (gguf("Q6_K", 5, 768), "", lambda t: t[:, :-1]),
    "q4_1-infinite-minimum": (gguf("Q4_1", 5, 96), "", lambda t: _at(0x7C, 0, 3)(_at(0, 0, 2)(t))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_tensors_are_refused_by_name(name):
    case, part, change = DAMAGE[name]
    sound = case.scheme.read(case.module, case.tensors, case.shape)
    assert sound.shape == case.shape  # the control: nothing else is wrong with the case
    damaged = case.tensors | {part: change(case.tensors[part])}
    with pytest.raises(WeightsError) as caught:
        case.scheme.read(case.module, damaged, case.shape)
    assert case.module + part in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", [case.name for case in all_cases()])
def test_no_part_may_be_missing(name):
    case = next(c for c in all_cases() if c.name == name)
    for part, wanted in case.scheme.parts(case.shape).items():
        if wanted.optional or part not in case.tensors:
            continue
        rest = {key: tensor for key, tensor in case.tensors.items() if key != part}
        with pytest.raises(WeightsError, match="missing"):
            case.scheme.read(case.module, rest, case.shape)


def test_a_whole_fp8_matrix_needs_one_scale():
    case = blocks(None, "f32", 5, 12)
    with pytest.raises(WeightsError, match="weight_scale_inv"):
        case.scheme.read(case.module, {".weight": case.tensors[".weight"]}, case.shape)
    renamed = {".weight": case.tensors[".weight"], ".weight_scale": case.tensors[".weight_scale_inv"]}
    read = case.scheme.read(case.module, renamed, case.shape)
    assert torch.equal(
        read.dequantize(), case.scheme.read(case.module, case.tensors, case.shape).dequantize()
    )
    with pytest.raises(WeightsError, match="2 of"):
        case.scheme.read(case.module, case.tensors | renamed, case.shape)


@pytest.mark.parametrize("shape", [(0, 128), (16, 0), (-16, 128), (16, -128)])
def test_sizes_must_be_positive(shape):
    for case in (_packed(), blocks(128, "f32", 140, 300), gptq(4, True, 1, 32, 32, 96), gguf("Q8_0", 5, 96)):
        with pytest.raises(WeightsError, match="positive"):
            case.scheme.read(case.module, case.tensors, shape)


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (15, 2), (0, 17), (3, -1)])
def test_rows_must_be_there(first, count):
    case = _packed()
    with pytest.raises(WeightsError, match=MODULE):
        case.scheme.read(case.module, case.tensors, case.shape, first, count)


@pytest.mark.parametrize(
    "case",
    [awq(32, "f16", 24, 96), mxfp4(5, 96), gguf("Q4_K", 5, 512)],
    ids=lambda case: case.name,
)
def test_shapes_that_no_file_can_hold_are_refused(case):
    out, inputs = case.shape
    with pytest.raises(UnsupportedModel, match=str(inputs + 8)):
        case.scheme.read(case.module, case.tensors, (out, inputs + 8))


def test_zero_points_in_8_bits_need_short_scales():
    case = packed(8, False, "channel", -1, "f32", 8, 64, False)
    with pytest.raises(UnsupportedModel, match="zero points and float32 scales"):
        case.scheme.read(case.module, case.tensors, case.shape)
