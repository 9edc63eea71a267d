"""Round to nearest: quantises rows of weights, each group for itself.

    codes     scale                         code
    int8      largest |w| / 127             round(w / scale)                  -127 ... 127
    int4      w of largest |w| / -8         round(w / scale)                  -8 ... 7: one end is always used
    uint4     (largest w - minimum) / 15    round((w - minimum) / scale)      0 ... 15
    fp8       largest |w| / 448             w / scale, rounded to e4m3

Scales and minima are rounded to the precision they are stored in before the codes are chosen. So a code is
the best one for the scale that will be used. A group of zeros has the scale 0.

No input is needed, a row depends on that row alone, and large matrices are quantised piece by piece.
`int4` takes its scale as ggml's Q4_0 does: an even number of codes has no symmetric range.
Left out: searching for scales with a smaller error, and looking at activations (`model/compress`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.config.quantization import Form
from minillm.errors import WeightsError
from minillm.ops.quantized import QuantizedMatrix, dtype_of_scales, numbers_of

_LARGEST = {"int8": 127.0, "fp8": 448.0}


def quantize_rows(weights: Tensor, form: Form, name: str = "a matrix") -> QuantizedMatrix:
    """Quantise `weights` [rows, in], of any float dtype, to `form`.

    Raises:
        WeightsError: a weight, or a scale in its precision, is NaN or infinite. `name` is in the message.
    """
    rows, size = weights.shape
    group = form.group or size
    padding = -size % group
    groups = torch.nn.functional.pad(weights.float(), (0, padding)).view(rows, -1, group)
    if padding and form.minimum:  # the padding must not widen the range of the last group
        groups[:, -1, group - padding :] = groups[:, -1, :1]
    low, high = groups.aminmax(dim=-1)
    scales, minima = _scales(form, low, high)
    if not (torch.isfinite(scales).all() and torch.isfinite(minima).all()):
        raise WeightsError(
            f"{name} cannot be quantised: a weight is NaN, infinite or too large for its scale",
            "check the checkpoint, or load it without quantization",
        )
    codes = _codes(form, groups, scales.float().unsqueeze(-1), minima.float().unsqueeze(-1))
    codes = codes.view(rows, -1)[:, :size].contiguous()
    return QuantizedMatrix(form, codes, scales, minima if form.minimum else None)


def _scales(form: Form, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [rows, groups] in the precision of `form`, from each group's range."""
    dtype = dtype_of_scales(form)
    if form.codes == "uint4":
        minima = low.to(dtype)
        return ((high - minima.float()) / 15).to(dtype), minima
    if form.codes == "int4":
        return (torch.where(-low > high, low, high) / -8).to(dtype), torch.zeros_like(low, dtype=dtype)
    largest = torch.maximum(-low, high)
    return (largest / _LARGEST[form.codes]).to(dtype), torch.zeros_like(low, dtype=dtype)


def _codes(form: Form, groups: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """The code of each weight: uint8, as `groups` [rows, groups, group]."""
    ratios = torch.where(scales == 0, 0.0, (groups - minima) / scales)
    if form.codes == "fp8":
        return ratios.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    numbers = numbers_of(form.codes)
    first, last = float(numbers[0]), float(numbers[-1])
    least = -last if form.codes == "int8" else first  # -128 is not used: both signs get the same numbers
    return (ratios.round().clamp(least, last) - first).to(torch.uint8)
