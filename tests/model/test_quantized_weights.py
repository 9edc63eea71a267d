"""Stored quantised matrices become the numbers that each format's own library makes of them.

The library's number is ours, rounded once to the library's dtype: ours is exact where the library computes in
16 bits, and the library's own float32 elsewhere.
"""

import dataclasses
import importlib.metadata
import itertools
import json

import pytest
import torch
from quantized_cases import MODULE, Case, all_cases, gguf, gptq, packed, plain_codes, words
from quantized_libraries import LIBRARIES, RECORD, digest, library_weights

from minillm.config.quantization import CHANNEL, CODES, Form
from minillm.errors import UnsupportedModel
from minillm.model.quantization.gguf import gguf_scheme
from minillm.ops.quantized import QuantizedMatrix, dtype_of_scales

CASES = {case.name: case for case in all_cases()}
RECORDED = json.loads(RECORD.read_text())


def _read(case: Case) -> QuantizedMatrix:
    return case.scheme.read(case.module, case.tensors, case.shape)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_the_library_made(name):
    dtype, expected = RECORDED[name]
    weights = _read(CASES[name]).dequantize()
    assert digest(weights.to(getattr(torch, dtype))) == expected


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_the_library_makes(name):
    case = CASES[name]
    for package in LIBRARIES[case.method]:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs the library {package}")
    expected = library_weights(case)
    weights = _read(case).dequantize()
    assert torch.equal(weights.to(expected.dtype), expected)
    assert weights.abs().max() > 0


@pytest.mark.parametrize("name", CASES)
def test_pieces_are_the_whole(name):
    """A form is known before a matrix is read, and is the same for all rows."""
    case, whole = CASES[name], _read(CASES[name])
    scheme, rows = case.scheme, case.shape[0]
    bounds = [0, 1, min(4, rows), min(4, rows), rows]
    pieces = [
        scheme.read(case.module, case.tensors, case.shape, first, last - first)
        for first, last in itertools.pairwise(bounds)
    ]
    assert torch.equal(torch.cat([piece.codes for piece in pieces]), whole.codes)
    assert torch.equal(torch.cat([piece.scales for piece in pieces]), whole.scales)
    parts = scheme.parts(case.shape)
    form = scheme.form(
        case.shape, {part: tensor.dtype for part, tensor in case.tensors.items() if part in parts}
    )
    assert {piece.form for piece in pieces} == {whole.form, form}


@pytest.mark.parametrize("name", CASES)
def test_matrices_have_the_parts_of_their_form(name):
    matrix, shape = _read(CASES[name]), CASES[name].shape
    form, groups = matrix.form, (shape[0], matrix.form.num_groups(shape[1]))
    assert form.codes in CODES and matrix.shape == shape
    assert matrix.codes.dtype == torch.uint8 and int(matrix.codes.max()) < 1 << form.bits
    assert (tuple(matrix.scales.shape), matrix.scales.dtype) == (groups, dtype_of_scales(form))
    assert (matrix.minima is not None) == form.minimum
    if matrix.minima is not None:
        assert (tuple(matrix.minima.shape), matrix.minima.dtype) == (groups, dtype_of_scales(form))
    if matrix.order is not None:
        assert matrix.order.dtype == torch.int32
        assert torch.equal(matrix.order.sort().values, torch.arange(shape[1], dtype=torch.int32))
    assert all(t is None or t.is_contiguous() for t in (matrix.codes, matrix.scales, matrix.minima))


FORMS = {
    "packed-4-sym-group32-f16-13x96": Form("int4", 32),
    "packed-4-sym-group32-bf16-13x96": Form("int4", 32, wide=True),
    "packed-4-asym-group32-f16-13x96": Form("uint4", 32, wide=True, minimum=True),
    "packed-4-asym-group32-f32-13x96": Form("int8", 32, wide=True),
    "packed-8-asym-channel-1-bf16-11x45": Form("int8", CHANNEL, wide=True, minimum=True),
    "int-sym-tensor-1-f16-7x64": Form("int8", CHANNEL),
    "float-sym-block128-bf16-130x200": Form("fp8", 128, wide=True),
    "fp8-whole-f32-5x12": Form("fp8", CHANNEL, wide=True),
    "gptq1-4-sym-32-32x96": Form("int4", 32),
    "gptq2-8-asym-32-32x96": Form("int8", 32, wide=True, minimum=True),
    "mxfp4-5x96": Form("fp4", 32, wide=True),
    "gguf-Q8_0-5x96": Form("int8", 32),
    "gguf-Q4_1-5x96": Form("uint4", 32, minimum=True),
    "gguf-Q6_K-5x768": Form("int8", 16, wide=True),
}


@pytest.mark.parametrize("name", FORMS)
def test_scales_keep_the_precision_that_is_stored(name):
    assert _read(CASES[name]).form == FORMS[name]


@pytest.mark.parametrize("name", ["gptq1-4-asym-32-20x128-order", "packed-4-sym-group32-f16-7x128-order"])
def test_act_order_brings_the_inputs_of_a_group_together(name):
    case, matrix = CASES[name], _read(CASES[name])
    g_idx = case.tensors[".g_idx" if case.method == "gptq" else ".weight_g_idx"]
    assert torch.equal(g_idx[matrix.order.long()], torch.arange(128, dtype=torch.int32) // 32)
    unordered = dataclasses.replace(matrix, order=None).dequantize()
    assert not torch.equal(unordered, matrix.dequantize())  # the control: an order that is lost is seen


def test_a_group_of_minus_one_everywhere_is_no_order():
    case = packed(4, True, "group", 32, "f16", 7, 128, True)
    case.tensors[".weight_g_idx"].fill_(-1)
    plain = packed(4, True, "group", 32, "f16", 7, 128, False)
    assert _read(case).order is None
    assert torch.equal(_read(case).dequantize(), _read(plain).dequantize())


def test_gptq_version_one_undoes_a_subtraction_from_whole_words():
    """Zeros of 0 borrow from their neighbours when 0x11111111 is subtracted, and get it back."""
    second = gptq(4, False, 2, 32, 32, 96)
    second.tensors[".qzeros"] = words(31, 3, 4) & ~0x0F0F000F
    first = gptq(4, False, 1, 32, 32, 96)
    first.tensors[".qzeros"] = second.tensors[".qzeros"] - 0x11111111
    assert torch.equal(_read(first).dequantize(), _read(second).dequantize())


def test_gptq_without_g_idx_is_in_order():
    case = gptq(4, True, 1, 32, 32, 96)
    without = {part: tensor for part, tensor in case.tensors.items() if part != ".g_idx"}
    read = case.scheme.read(MODULE, without, case.shape)
    assert torch.equal(read.dequantize(), _read(case).dequantize())


def test_a_group_wider_than_the_matrix_is_one_scale_for_each_output():
    """Nothing is repeated for inputs that are not there."""
    wide = packed(4, False, "group", (1 << 31) - 8, "f32", 9, 64, False)
    channel = packed(4, False, "channel", -1, "f32", 9, 64, False)
    assert torch.equal(_read(wide).dequantize(), _read(channel).dequantize())


def test_minus_128_is_a_number_of_int8():
    case = plain_codes("int", True, "channel", -1, "f32", 7, 64)
    case.tensors[".weight"][0, 0], case.tensors[".weight_scale"][0, 0] = -128, 0.75
    assert _read(case).dequantize()[0, 0] == -96


def test_a_changed_bit_changes_the_digest():
    """The control of the record."""
    case = gguf("Q4_K", 5, 512)
    case.tensors[""][2, 20] ^= 1
    assert digest(_read(case).dequantize()) != RECORDED[case.name][1]


def test_other_blocks_are_named():
    with pytest.raises(UnsupportedModel, match="Q5_K"):
        gguf_scheme("Q5_K")
