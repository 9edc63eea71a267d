"""Blocks of a GGUF file, kept in their own numbers: Q8_0, Q4_0, Q4_1, Q4_K, Q6_K.

    type   bytes of a block                                                              numbers   our form
    Q8_0   d fp16 | 32 x int8                                                            32        int8, fp16
    Q4_0   d fp16 | 16 bytes                                                             32        int4, fp16
    Q4_1   d, m fp16 | 16 bytes                                                          32        uint4, fp16
    Q4_K   d, dmin fp16 | 8 scales, 8 minima of 6 bits in 12 bytes | 128 bytes           256       uint4, fp32
    Q6_K   lower 4 bits 128 bytes | upper 2 bits 64 bytes | 16 x int8 scales | d fp16    256       int8, fp32

    Q4_0, Q4_1   byte i: number i in the lower half, number i + 16 in the upper
    Q4_K         32 bytes for two groups of 32: lower halves, then upper halves
    Q6_K         groups of 16; the number is code - 32

A scale of Q4_K is d * sc, a minimum -dmin * m, a scale of Q6_K d * sc: products of 11 bits with 6 or 8, which
float32 holds exactly and fp16 does not. The layout is that of ggml-quants.c in llama.cpp, and the numbers are
those of the library `gguf` bit for bit. Q6_K takes 8 bits here instead of 6: there are no codes of 6 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import shown
from minillm.config.quantization import Form
from minillm.errors import UnsupportedModel
from minillm.model.quantization.names import exactly
from minillm.model.quantization.stored import Part, Shape, StoredQuantization, StoredScheme
from minillm.ops.quantized import QuantizedMatrix

Unpacked = tuple[Tensor, Tensor, Tensor | None]  # codes, scales, minima of blocks: [blocks, ...]


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 number at byte `at` of every block: [blocks, 1]."""
    return blocks[:, at : at + 2].clone().view(torch.float16)


def _halves(data: Tensor) -> Tensor:
    """Lower halves of all bytes, then upper halves: [n, bytes] -> [n, 2 * bytes]."""
    return torch.cat((data & 15, data >> 4), dim=1)


def _q8_0(blocks: Tensor) -> Unpacked:
    return blocks[:, 2:] ^ 128, _half(blocks, 0), None  # int8 + 128 is its sign bit inverted


def _q4_0(blocks: Tensor) -> Unpacked:
    return _halves(blocks[:, 2:]), _half(blocks, 0), None


def _q4_1(blocks: Tensor) -> Unpacked:
    return _halves(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _q4_k(blocks: Tensor) -> Unpacked:
    """Scale and minimum j have 6 bits: of the first four in bytes j and j + 4, of the others in pieces.

    bytes 0-3    lower 6 bits: scales 0-3;   upper 2 bits: upper bits of scales 4-7
    bytes 4-7    lower 6 bits: minima 0-3;   upper 2 bits: upper bits of minima 4-7
    bytes 8-11   lower 4 bits: lower bits of scales 4-7;   upper 4 bits: of minima 4-7
    """
    first, second, third = blocks[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat((first & 63, first >> 6 << 4 | third & 15), dim=1)
    minima = torch.cat((second & 63, second >> 6 << 4 | third >> 4), dim=1)
    codes = _halves(blocks[:, 16:].reshape(-1, 32)).reshape(len(blocks), 256)
    return codes, _half(blocks, 0).float() * scales, -(_half(blocks, 2).float() * minima)


def _q6_k(blocks: Tensor) -> Unpacked:
    """Each half of a block has 128 numbers: their lower bits in 64 bytes, their upper bits in 32.

    numbers     0-31         32-63        64-95        96-127
    lower       bytes 0-31   32-63        0-31         32-63      of 64: halves of a byte, lower first
    upper       bits 0-1     bits 2-3     bits 4-5     bits 6-7   of 32 bytes
    """
    lower = _halves(blocks[:, :128].reshape(-1, 64))
    two_bits = blocks[:, 128:192].reshape(-1, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(
        1, 4, 1
    )
    codes = (lower | (two_bits & 3).flatten(1) << 4).reshape(len(blocks), 256)
    scales = blocks[:, 192:208].contiguous().view(torch.int8)
    return codes + 96, _half(blocks, 208).float() * scales, None  # code - 32 + 128


@dataclass(frozen=True)
class GgufBlocks(StoredScheme):
    """A type of blocks: `numbers` in `num_bytes`."""

    type_name: str
    numbers: int
    num_bytes: int
    kept_in: Form
    unpack_blocks: Callable[[Tensor], Unpacked]
    codes_part = scales_part = ""

    def parts(self, shape: Shape) -> dict[str, Part]:
        out, in_features = shape
        if in_features % self.numbers:
            raise UnsupportedModel(
                f"{self.type_name}: a matrix of {in_features} inputs is not supported",
                f"inputs come in blocks of {self.numbers}",
            )
        return {"": Part(((out, in_features // self.numbers * self.num_bytes),), (torch.uint8,))}

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        return self.kept_in

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        blocks = parts[""][rows.start : rows.stop].reshape(-1, self.num_bytes)
        codes, scales, minima = self.unpack_blocks(blocks)
        in_a_row = shape[1] // self.numbers

        def by_output(numbers: Tensor) -> Tensor:
            return numbers.reshape(len(rows), in_a_row * numbers.shape[1])

        return QuantizedMatrix(
            form, by_output(codes), by_output(scales), None if minima is None else by_output(minima)
        )


GGUF_SCHEMES: Mapping[str, GgufBlocks] = {
    scheme.type_name: scheme
    for scheme in (
        GgufBlocks("Q8_0", 32, 34, Form("int8", 32), _q8_0),
        GgufBlocks("Q4_0", 32, 18, Form("int4", 32), _q4_0),
        GgufBlocks("Q4_1", 32, 20, Form("uint4", 32, minimum=True), _q4_1),
        GgufBlocks("Q4_K", 256, 144, Form("uint4", 32, wide=True, minimum=True), _q4_k),
        GgufBlocks("Q6_K", 256, 210, Form("int8", 16, wide=True), _q6_k),
    )
}


def gguf_scheme(type_name: object) -> GgufBlocks:
    """The scheme of a type of blocks, by llama.cpp's name.

    Raises:
        UnsupportedModel: no form holds its numbers; such tensors are dequantised.
    """
    if not isinstance(type_name, str) or type_name not in GGUF_SCHEMES:
        raise UnsupportedModel(
            f"blocks of type {shown(type_name)} have no form of their own",
            f"kept in their own numbers: {', '.join(GGUF_SCHEMES)}",
        )
    return GGUF_SCHEMES[type_name]


def gguf_quantization(config: Mapping[str, object]) -> StoredQuantization:
    """What a `quantization_config` with quant_method "gguf" says; `minillm convert` writes it.

    Raises:
        UnsupportedModel: another key, or a type that has no kernels.
    """
    types = config.get("types")
    if config.keys() - {"quant_method", "types"} or not isinstance(types, dict):
        raise UnsupportedModel(
            "quantization_config (gguf) is not as minillm writes it", "convert the file again"
        )
    schemes = {module: gguf_scheme(kind) for module, kind in types.items()}
    return StoredQuantization("gguf", tuple((exactly(module), scheme) for module, scheme in schemes.items()))
