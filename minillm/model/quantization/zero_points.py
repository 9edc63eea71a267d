"""Integer codes with zero points: weight = scale * (code - zero), in one of our forms.

    stored             scales of 16 bits                           scales of 32 bits
    4 bits, zero 8     int4                                        int4
    4 bits             uint4, minimum -scale * zero                int8 with the code (code - zero)
    8 bits, zero 128   int8                                        int8
    8 bits             int8, minimum scale * (128 - zero)          refused: two roundings

A minimum is float32, and so are the scales beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.config.quantization import Form
from minillm.errors import UnsupportedModel
from minillm.model.quantization.stored import as_scales
from minillm.ops.quantized import QuantizedMatrix


def integer_form(bits: int, group: int, symmetric: bool, scales: torch.dtype) -> Form:
    """The form of codes of 4 or 8 bits; `symmetric`: every zero point is in the middle.

    Raises:
        UnsupportedModel: 8 bits with zero points and scales of 32 bits.
    """
    if symmetric:
        return Form("int4" if bits == 4 else "int8", group, wide=scales != torch.float16)
    if scales != torch.float32:
        return Form("uint4" if bits == 4 else "int8", group, wide=True, minimum=True)
    if bits == 8:
        raise UnsupportedModel(
            "8 bits with zero points and float32 scales are not supported",
            "scale * (code - zero) is then no exact float32: store the scales in 16 bits",
        )
    return Form("int8", group, wide=True)


def integer_matrix(
    form: Form, codes: Tensor, zeros: Tensor | None, scales: Tensor, group: int, order: Tensor | None = None
) -> QuantizedMatrix:
    """The matrix of codes uint8 [out, in], from 0 up, and zero points uint8 [out, groups], likewise.

    `group`: inputs that share a scale. `zeros`: None where the form is symmetric.
    """
    if order is not None:
        codes = codes[:, order.long()]
    scales = as_scales(scales, form)
    minima = None
    if zeros is not None and form.minimum:
        offset = 128.0 if form.codes == "int8" else 0.0
        minima = scales * (offset - zeros.float())
    elif zeros is not None:
        spread = zeros.repeat_interleave(min(group, codes.shape[1]), dim=1)[:, : codes.shape[1]]
        codes = (codes.short() - spread.short() + 128).to(torch.uint8)
    return QuantizedMatrix(form, codes.contiguous(), scales, minima, order)
