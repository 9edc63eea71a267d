"""The numbers that a stored weight can have, and rounding to the nearest of them.

    weight = scale * (code - zero)          one scale and one zero for a group of inputs of one output

    scheme               scale                     zero               codes
    w4a16                largest |w| / 7.5         8                  0 ... 15
    w4a16, asymmetric    (high - low) / 15         -low / scale       0 ... 15
    w8a16                largest |w| / 127.5       128                0 ... 255
    fp8                  largest |w| / 448         none               e4m3

This is compressed-tensors' own grid. It differs from that of `quantization/rounding.py` in two points, which
other engines need: scales have the dtype of the model, and zeros are whole numbers. Scales are rounded to
their dtype before the codes are chosen, so a code is the best one for the scale in the file.

A symmetric grid has half a step more below zero than above: its last code cuts the largest weight by half a
step, and all others are finer for it. The range of an asymmetric group includes 0, so that 0 is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config.quantization import Form
from minillm.errors import WeightsError
from minillm.ops.quantized import QuantizedMatrix, numbers_of

_FP8_LARGEST = 448.0


@dataclass(frozen=True)
class Grid:
    """What a scheme stores of a matrix.

    `bits` of a code; `group`: inputs that share a scale, or CHANNEL; `dtype`: of the scales.
    """

    bits: int
    group: int
    dtype: torch.dtype
    symmetric: bool = True
    floating: bool = False

    @property
    def last(self) -> int:
        """The largest code of an integer grid."""
        return (1 << self.bits) - 1

    def num_groups(self, in_features: int) -> int:
        """Scales of an output. `in_features` is a multiple of the group."""
        return in_features // self.group if self.group else 1


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix [out, in] on a grid.

    codes   uint8 [out, in]
    scales  [out, groups] in the grid's dtype
    zeros   uint8 [out, groups], or None: symmetric, or floating
    """

    grid: Grid
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    def matrix(self) -> QuantizedMatrix:
        """The same numbers in the engine's form, exactly: a code of 8 bits holds code - zero of 4."""
        scales = self.scales.float()
        if self.grid.floating:
            return QuantizedMatrix(Form("fp8", self.grid.group, wide=True), self.codes, scales)
        if self.zeros is None:
            form = Form("int8" if self.grid.bits == 8 else "int4", self.grid.group, wide=True)
            return QuantizedMatrix(form, self.codes, scales)
        group = self.grid.group or self.codes.shape[1]
        zeros = self.zeros.short().repeat_interleave(group, dim=1)
        codes = (self.codes.short() - zeros + 128).to(torch.uint8)
        return QuantizedMatrix(Form("int8", self.grid.group, wide=True), codes, scales)


def range_of(weights: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero of each group: float32 weights [..., group] -> two tensors [...]; zeros are float32."""
    low, high = weights.amin(-1).clamp(max=0), weights.amax(-1).clamp(min=0)
    if not grid.symmetric:
        scales = ((high - low) / grid.last).to(grid.dtype)
        zeros = torch.where(scales == 0, 0.0, -low / scales.float()).round().clamp(0, grid.last)
        return scales, zeros
    steps = _FP8_LARGEST if grid.floating else grid.last / 2
    scales = (torch.maximum(-low, high) / steps).to(grid.dtype)
    return scales, torch.full_like(low, 0.0 if grid.floating else (grid.last + 1) // 2)


def nearest(weights: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    """The code of each weight: uint8 [..., n] of weights [..., n]; scales and zeros are as `range_of`'s."""
    scales = scales.float().unsqueeze(-1)
    ratios = torch.where(scales == 0, 0.0, weights / scales)
    if grid.floating:
        limited = ratios.clamp(-_FP8_LARGEST, _FP8_LARGEST)
        return limited.to(torch.float8_e4m3fn).view(torch.uint8)
    return (ratios.round() + zeros.unsqueeze(-1)).clamp(0, grid.last).to(torch.uint8)


def numbers(codes: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    """The weights that codes stand for, float32; the inverse of `nearest` but for the rounding."""
    whole = numbers_of("fp8")[codes.long()] if grid.floating else codes.float()
    return scales.float().unsqueeze(-1) * (whole - zeros.unsqueeze(-1))


def joined(grid: Grid, codes: Tensor, scales: Tensor, zeros: Tensor, name: str = "a matrix") -> Rounded:
    """Codes [out, in], scales and zeros [out, groups] as a matrix.

    Raises:
        WeightsError: a scale is NaN or infinite. `name` is in the message.
    """
    if not torch.isfinite(scales).all():
        raise WeightsError(
            f"{name} cannot be quantised: a weight is NaN, infinite or too large for its scale",
            "check the checkpoint",
        )
    return Rounded(grid, codes, scales, None if grid.symmetric else zeros.to(torch.uint8))


def round_to_nearest(weights: Tensor, grid: Grid, name: str = "a matrix") -> Rounded:
    """Round each of `weights` [out, in] for itself.

    Raises:
        WeightsError: as `joined`.
    """
    out, size = weights.shape
    groups = weights.float().view(out, -1, grid.group or size)
    scales, zeros = range_of(groups, grid)
    codes = nearest(groups, scales, zeros, grid)
    return joined(grid, codes.view(out, size), scales, zeros, name)
