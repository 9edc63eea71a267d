"""compressed-tensors: the format of llm-compressor and vLLM. Here is what a matrix looks like in a file.

    pack-quantized   weight_packed     int32 [out, in * bits / 32]      number + 8 (or + 128)
                     weight_scale      [out, groups]
                     weight_zero_point int32 [out * bits / 32, groups]  packed along the outputs
                     weight_shape      int64 [2]
                     weight_g_idx      int32 [in]                       actorder "group" alone
    int-quantized    weight            int8  [out, in]                  weight_scale, weight_zero_point int8
    float-quantized  weight            e4m3  [out, in]                  weight_scale, or a block of 128 x 128
    naive-quantized  as one of the two above, by the type of the weights

weight = scale * (number - zero point), and both are signed in the library's words. There is one scale for a
group, for an output ("channel"), for a block or for all ("tensor"). Which modules are stored how is in
`compressed_config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minillm.config.quantization import Form
from minillm.model.quantization.bits import codes_of_words, num_words, order_of
from minillm.model.quantization.stored import FLOATS, Part, Shape, StoredScheme, as_scales
from minillm.model.quantization.zero_points import integer_form, integer_matrix
from minillm.ops.quantized import QuantizedMatrix

Strategy = Literal["tensor", "channel", "group"]
_SCALE, _ZERO = ".weight_scale", ".weight_zero_point"
_INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class _Scaled(StoredScheme):
    """`group`: inputs that share a scale, or CHANNEL with the other strategies."""

    strategy: Strategy
    group: int
    scales_part = _SCALE

    def groups(self, in_features: int) -> int:
        """Groups of an output."""
        return -(-in_features // (self.group or in_features))

    def scale_shapes(self, shape: Shape) -> tuple[tuple[int, ...], ...]:
        """The shapes that scales may have."""
        if self.strategy == "tensor":
            return (1,), (), (1, 1)
        if self.strategy == "channel":
            return (shape[0], 1), (shape[0],)
        return ((shape[0], self.groups(shape[1])),)

    def by_output(self, numbers: Tensor, shape: Shape, rows: range) -> Tensor:
        """The scales or zero points of some outputs: [rows, groups]."""
        if self.strategy == "tensor":
            return numbers.reshape(1, 1).expand(len(rows), 1)
        return numbers.reshape(shape[0], -1)[rows.start : rows.stop]


@dataclass(frozen=True)
class Packed(_Scaled):
    """pack-quantized: codes of 4 or 8 bits in words. `ordered`: there is a weight_g_idx."""

    bits: int
    symmetric: bool = True
    ordered: bool = False
    codes_part = ".weight_packed"

    def parts(self, shape: Shape) -> dict[str, Part]:
        out, in_features = shape
        parts = {
            ".weight_packed": Part(((out, num_words(in_features, self.bits)),), (torch.int32,)),
            _SCALE: Part(self.scale_shapes(shape), FLOATS),
            ".weight_shape": Part(((2,),), _INTEGERS, optional=True, says_shape=True),
        }
        if not self.symmetric:
            parts[_ZERO] = Part(((num_words(out, self.bits), self.groups(in_features)),), (torch.int32,))
        if self.ordered:
            parts[".weight_g_idx"] = Part(((in_features,),), _INTEGERS)
        return parts

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        return integer_form(self.bits, self.group, self.symmetric, dtypes[_SCALE])

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        out, in_features = shape
        group = self.group or in_features
        codes = codes_of_words(parts[".weight_packed"][rows.start : rows.stop], self.bits, in_features)
        zeros = None
        if not self.symmetric:
            zeros = codes_of_words(parts[_ZERO].T, self.bits, out).T[rows.start : rows.stop]
        order = order_of(name + ".weight_g_idx", parts[".weight_g_idx"], group) if self.ordered else None
        scales = self.by_output(parts[_SCALE], shape, rows)
        return integer_matrix(form, codes, zeros, scales, group, order)


@dataclass(frozen=True)
class Int8(_Scaled):
    """int-quantized: one signed byte a number."""

    symmetric: bool = True
    codes_part = ".weight"

    def parts(self, shape: Shape) -> dict[str, Part]:
        scales = self.scale_shapes(shape)
        parts = {".weight": Part((shape,), (torch.int8,)), _SCALE: Part(scales, FLOATS)}
        if not self.symmetric:
            parts[_ZERO] = Part(scales, (torch.int8,))
        return parts

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        return integer_form(8, self.group, self.symmetric, dtypes[_SCALE])

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        codes = _unsigned(parts[".weight"][rows.start : rows.stop])
        zeros = None if self.symmetric else _unsigned(self.by_output(parts[_ZERO], shape, rows))
        scales = self.by_output(parts[_SCALE], shape, rows)
        return integer_matrix(form, codes, zeros, scales, self.group or shape[1])


def _unsigned(numbers: Tensor) -> Tensor:
    """int8 numbers -128 ... 127 as codes 0 ... 255."""
    return (numbers.short() + 128).to(torch.uint8)


@dataclass(frozen=True)
class Fp8(_Scaled):
    """float-quantized, but for blocks, which `fp8.Fp8Blocks` reads."""

    codes_part = ".weight"

    def parts(self, shape: Shape) -> dict[str, Part]:
        scales = Part(self.scale_shapes(shape), FLOATS)
        return {".weight": Part((shape,), (torch.float8_e4m3fn,)), _SCALE: scales}

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        return Form("fp8", self.group, wide=dtypes[_SCALE] != torch.float16)

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        codes = parts[".weight"][rows.start : rows.stop].contiguous().view(torch.uint8)
        return QuantizedMatrix(form, codes, as_scales(self.by_output(parts[_SCALE], shape, rows), form))
