"""Quantised matrices: the one internal form of every scheme, before a backend packs it.

    codes    [out, in]       one byte each          0 1 2 ... 255, or 0 ... 15 with 4 bits
    scales   [out, groups]   fp16 or fp32           one for every `group` inputs of an output
    minima   [out, groups]   likewise, or None

    weight = scale * number(code) + minimum

`numbers_of` says which number a code stands for. What people publish differs in its layout and its words, not
in this: a zero point z is a minimum of -scale * z, which fp32 holds exactly for scales of 16 bits. Scales
keep the precision that the file has: fp16 or fp32. (A scale of bf16 becomes fp32: fp16 lacks its range.)

    codes   bits   number            used for
    int8    8      code - 128        GGUF Q8_0, compressed-tensors int8, GPTQ 8 bits
    fp8     8      e4m3              FP8 checkpoints
    int4    4      code - 8          symmetric: GGUF Q4_0, compressed-tensors
    uint4   4      code              with a minimum: GGUF Q4_1, Q4_K, AWQ, GPTQ
    fp4     4      e2m1              MXFP4

`order` is GPTQ's act-order: code k belongs to input `order[k]`, so that the inputs of a group lie side by
side.

Sources: Frantar et al. 2210.17323 (GPTQ), Lin et al. 2306.00978 (AWQ), Micikevicius et al. 2209.05433 (FP8),
Rouhani et al. 2310.10537 (microscaling). Left out: codes of 2, 3, 5 and 6 bits; such matrices are stored with
wider codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from minillm.config.quantization import Codes, Form


def dtype_of_scales(form: Form) -> torch.dtype:
    """The dtype of scales and minima."""
    return torch.float32 if form.wide else torch.float16


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """Some rows of a quantised matrix, or all of it.

    codes   uint8 [out, in]
    scales  float16 or float32 [out, groups]; minima likewise, or None
    order   int32 [in], or None: in order
    dtype   of the activations; it changes no number of the matrix
    """

    form: Form
    codes: Tensor
    scales: Tensor
    minima: Tensor | None = None
    order: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def empty(
        cls, shape: tuple[int, int], form: Form, dtype: torch.dtype, order: Tensor | None = None
    ) -> QuantizedMatrix:
        """A matrix [out, in] whose codes and scales are 0: what `put` has not written has no effect."""
        scales = shape[0], form.num_groups(shape[1])
        minima = torch.zeros(scales, dtype=dtype_of_scales(form)) if form.minimum else None
        codes = torch.zeros(shape, dtype=torch.uint8)
        return cls(form, codes, torch.zeros(scales, dtype=dtype_of_scales(form)), minima, order, dtype)

    def put(self, first: int, rows: QuantizedMatrix) -> None:
        """Write rows of the same form, from row `first` on."""
        last = first + rows.shape[0]
        self.codes[first:last], self.scales[first:last] = rows.codes, rows.scales
        if self.minima is not None and rows.minima is not None:
            self.minima[first:last] = rows.minima

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of all its tensors."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and minima as a kernel would read them; here a code takes a byte."""
        return self.form.nbytes(*self.shape)

    def rows(self, first: int, last: int) -> QuantizedMatrix:
        """The rows `first` to `last`, exclusive; nothing is copied."""
        minima = None if self.minima is None else self.minima[first:last]
        codes, scales = self.codes[first:last], self.scales[first:last]
        return QuantizedMatrix(self.form, codes, scales, minima, self.order, self.dtype)

    def dequantize(self, ids: Tensor | None = None) -> Tensor:
        """The weights of all rows, or of rows `ids`: float32 [rows, in].

        Scale * number + minimum, each step rounded once.
        """
        codes, scales, minima = self.codes, self.scales, self.minima
        if ids is not None:
            codes, scales = codes[ids], scales[ids]
            minima = None if minima is None else minima[ids]
        group = self.form.group or codes.shape[1]
        numbers = numbers_of(self.form.codes)[codes.long()]
        weights = numbers * _spread(scales, group, numbers.shape[1])
        if minima is not None:
            weights = weights + _spread(minima, group, numbers.shape[1])
        if self.order is None:
            return weights
        ordered = torch.empty_like(weights)
        ordered[:, self.order.long()] = weights
        return ordered


def rounded_x(x: Tensor, form: Form, order: Tensor | None) -> Tensor:
    """What a product of a form with `int8_x` multiplies: float32 [..., in].

    Each row and group of inputs has the scale max |x| / 127, so a row depends on that row alone: contract C2.
    A group with NaN or infinity is NaN.
    """
    codes_order = torch.arange(x.shape[-1]) if order is None else order.long()
    group = form.group or x.shape[-1]
    padding = -x.shape[-1] % group
    groups = torch.nn.functional.pad(x.float()[..., codes_order], (0, padding)).unflatten(-1, (-1, group))
    largest = groups.abs().amax(-1, keepdim=True)
    scales = torch.where(largest.isfinite(), largest / 127, torch.nan)
    codes = torch.where(scales == 0, 0.0, groups / scales).round().clamp(-127, 127)
    rounded = torch.empty_like(x, dtype=torch.float32)
    rounded[..., codes_order] = (codes * scales).flatten(-2)[..., : x.shape[-1]]
    return rounded


def _spread(per_group: Tensor, group: int, in_features: int) -> Tensor:
    """Each group's number for each of its inputs: [out, groups] -> float32 [out, in]."""
    # A file may name groups of a billion inputs: the last group, or the only one, has as many as there are.
    return per_group.float().repeat_interleave(min(group, in_features), dim=1)[:, :in_features]


@cache
def numbers_of(codes: Codes) -> Tensor:
    """The number of every code: float32 [256] or [16]."""
    if codes == "int8":
        return torch.arange(256, dtype=torch.float32) - 128
    if codes == "fp8":
        return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    if codes == "fp4":
        positive = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        return torch.cat([positive, -positive])
    return torch.arange(16, dtype=torch.float32) - (8 if codes == "int4" else 0)
