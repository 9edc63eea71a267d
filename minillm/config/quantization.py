"""Names for quantised matrices: the form of a matrix, and the schemes that `LLM(quantization=...)` knows.

    quantization    matrices of the layers                embedding and head
    int8            int8, groups of 64                    the same
    int8-channel    int8, one scale for each output       the same
    int4            4 bits, groups of 32 with a minimum   int8, groups of 64
    int4-g64        4 bits, groups of 64, symmetric       int8, groups of 64
    fp8             e4m3, one scale for each output       the same
    w8a8            int8, groups of 64                    the same; activations rounded to int8
    w4a8            4 bits, groups of 32 with a minimum   int8, groups of 64; activations rounded to int8

In the last two a product rounds its activations, each row and group of inputs for itself, and adds whole
numbers: faster with many rows, and a second loss of precision.

The head decides the logits directly, and the embedding of a tied model is the head: 4 bits there cost more
than they save. Routers and norms stay as they are: they are small, and a router's rounding changes which
experts are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Codes = Literal["int8", "fp8", "int4", "uint4", "fp4"]
CODES: tuple[Codes, ...] = get_args(Codes)
CHANNEL = 0  # the group of a matrix with one scale for each output
Quantization = Literal["int8", "int8-channel", "int4", "int4-g64", "fp8", "w8a8", "w4a8"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)


@dataclass(frozen=True)
class Form:
    """How the numbers of a matrix are stored (`ops/quantized.py`).

    `group`: inputs that share a scale, or CHANNEL: all of an output. `wide`: scales and minima are float32,
    else float16. `minimum`: there are minima. `int8_x`: a product rounds its activations to int8, with a
    scale for each row and group.
    """

    codes: Codes
    group: int
    wide: bool = False
    minimum: bool = False
    int8_x: bool = False

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return 8 if self.codes in ("int8", "fp8") else 4

    def num_groups(self, in_features: int) -> int:
        """The number of scales of an output."""
        return -(-in_features // self.group) if self.group else 1

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes of codes, scales and minima, without what a layout adds."""
        scales = self.num_groups(in_features) * (4 if self.wide else 2) * (2 if self.minimum else 1)
        return out_features * (-(-in_features * self.bits // 8) + scales)

    def __str__(self) -> str:
        parts = [self.codes, f"groups of {self.group}" if self.group else "one scale for each output"]
        parts += ["with minima"] if self.minimum else []
        return ", ".join([*parts, *(["activations in int8"] if self.int8_x else [])])


class Scheme(NamedTuple):
    """The form of the layers' matrices, and of embedding and head."""

    layers: Form
    outside: Form


_INT8, _W8A8 = Form("int8", 64), Form("int8", 64, int8_x=True)
SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme(_INT8, _INT8),
    "int8-channel": Scheme(Form("int8", CHANNEL, wide=True), Form("int8", CHANNEL, wide=True)),
    "int4": Scheme(Form("uint4", 32, minimum=True), _INT8),
    "int4-g64": Scheme(Form("int4", 64), _INT8),
    "fp8": Scheme(Form("fp8", CHANNEL, wide=True), Form("fp8", CHANNEL, wide=True)),
    "w8a8": Scheme(_W8A8, _W8A8),
    "w4a8": Scheme(Form("uint4", 32, minimum=True, int8_x=True), _W8A8),
}
