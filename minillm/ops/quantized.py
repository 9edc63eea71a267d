"""Quantised matrices: the one internal form of every scheme, before a backend packs it.

    codes    [out, in]       one byte each          0 1 2 ... 255, or 0 ... 15 with 4 bits
    scales   [out, groups]   fp16 or fp32           one for every `group` inputs of an output
    minima   [out, groups]   likewise, or None

    weight = scale * number(code) + minimum

`CODES` says which number a code stands for. What people publish differs in its layout and its words, not in
this: a zero point z is a minimum of -scale * z, which fp32 holds exactly for scales of 16 bits. Scales keep
the precision that the file has: fp16 or fp32. (A scale of bf16 becomes fp32: fp16 lacks its range.)

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
from typing import Literal

import torch
from torch import Tensor

Codes = Literal["int8", "fp8", "int4", "uint4", "fp4"]
CODES: tuple[Codes, ...] = ("int8", "fp8", "int4", "uint4", "fp4")
CHANNEL = 0  # the group of a matrix with one scale for each output


@dataclass(frozen=True)
class Form:
    """How the numbers of a matrix are stored. `group`: inputs that share a scale, or CHANNEL: all of an output.

    `wide`: scales and minima are float32, else float16. `minimum`: there are minima.
    """

    codes: Codes
    group: int
    wide: bool = False
    minimum: bool = False

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return 8 if self.codes in ("int8", "fp8") else 4

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of scales and minima."""
        return torch.float32 if self.wide else torch.float16

    def num_groups(self, in_features: int) -> int:
        """The number of scales of an output."""
        return -(-in_features // self.group) if self.group else 1

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes of codes, scales and minima, without the padding of a layout."""
        scales = self.num_groups(in_features) * self.dtype.itemsize * (2 if self.minimum else 1)
        return out_features * (in_features * self.bits // 8 + scales)


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """Some rows of a quantised matrix, or all of it.

    codes   uint8 [out, in]
    scales  float16 or float32 [out, groups]; minima likewise, or None
    order   int32 [in], or None: in order
    """

    form: Form
    codes: Tensor
    scales: Tensor
    minima: Tensor | None = None
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self) -> Tensor:
        """The weights, float32 [out, in]: scale * number + minimum, each step rounded once."""
        group = self.form.group or self.codes.shape[1]
        numbers = numbers_of(self.form.codes)[self.codes.long()]
        weights = numbers * _spread(self.scales, group, numbers.shape[1])
        if self.minima is not None:
            weights = weights + _spread(self.minima, group, numbers.shape[1])
        if self.order is None:
            return weights
        ordered = torch.empty_like(weights)
        ordered[:, self.order.long()] = weights
        return ordered


def _spread(per_group: Tensor, group: int, in_features: int) -> Tensor:
    """Each group's number for each of its inputs: [out, groups] -> float32 [out, in]."""
    return per_group.float().repeat_interleave(group, dim=1)[:, :in_features]


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
