"""A KV cache in 8 bits: how its pages are laid out, and what is written to them and read from them.

A cache of K, or of V, is a tensor [num_blocks, block_size, num_kv_heads, head_dim + 4]: for each token and
head as many codes as numbers, and the four bytes of a scale. Its dtype names the codes: int8, or
float8_e4m3fn ("fp8"). The shape gives the sizes; inside a block, a page, the bytes are laid out for the
kernels that read them (csrc/shared/kv_page.h):

    page   | head 0: codes, scales | head 1: codes, scales | ...

    K on a CPU   codes  [head_dim][block_size]      `columns`
    K on a GPU, V       [block_size][head_dim]      `rows`
    scales              float32 [block_size]        one for each token

`columns` and `rows` are views of such a cache with the logical shape [num_blocks, block_size, num_kv_heads,
head_dim]. Which of them shows the keys, `Ops.view_keys` knows; the values are always `rows`.

    int8   scale = max |x| / 127 of a token's numbers in one head    code = x / scale, ties to even
    fp8    scale = max |x| / 448                                     likewise, e4m3

The scale belongs to one token. With one scale for a block, a token with larger numbers would change the codes
of the tokens before it: their bytes would depend on what came later, on drafts that were rejected, and on who
shares the block (contracts C2, C5 and C7). A row of zeros has the scale 0. A row with NaN or infinity has the
scale NaN: whoever attends to it gets NaN, and nobody else.

Left out: scales that a checkpoint brings (one for a whole layer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config.model import SCALE_BYTES

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # by the names of the option `kv_dtype`
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def has_codes(cache: Tensor) -> bool:
    """Whether a cache tensor holds codes and scales."""
    return cache.dtype in LARGEST


def logical_shape(cache: Tensor) -> tuple[int, int, int, int]:
    """(num_blocks, block_size, num_kv_heads, head_dim) of a cache tensor of any dtype."""
    num_blocks, block_size, num_kv_heads, width = cache.shape
    return num_blocks, block_size, num_kv_heads, width - SCALE_BYTES * has_codes(cache)


@dataclass(frozen=True)
class CodedRows:
    """The codes and scales of one layer's K, or V: views of a cache in 8 bits.

    codes    int8 or fp8 [num_blocks, block_size, num_kv_heads, head_dim]
    scales   float32 [num_blocks, block_size, num_kv_heads]
    """

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """[num_blocks, block_size, num_kv_heads, head_dim]."""
        return self.codes.shape

    def dequantize(self) -> Tensor:
        """The numbers: float32, of the same shape."""
        return self.codes.float() * self.scales.unsqueeze(-1)


def columns(cache: Tensor) -> CodedRows:
    """The view of a cache whose codes lie dim by dim, the tokens of a block side by side."""
    codes, scales = _split(cache)
    block_size, head_dim = logical_shape(cache)[1::2]
    return CodedRows(codes.unflatten(2, (head_dim, block_size)).permute(0, 3, 1, 2), scales)


def rows(cache: Tensor) -> CodedRows:
    """The view of a cache whose codes lie token by token."""
    codes, scales = _split(cache)
    block_size, head_dim = logical_shape(cache)[1::2]
    return CodedRows(codes.unflatten(2, (block_size, head_dim)).permute(0, 2, 1, 3), scales)


def _split(cache: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [num_blocks, num_kv_heads, block_size * head_dim] and the scales of `CodedRows`."""
    num_blocks, block_size, num_kv_heads, head_dim = logical_shape(cache)
    pages = cache.view(num_blocks, num_kv_heads, block_size * (head_dim + SCALE_BYTES))
    codes, scales = pages[..., : block_size * head_dim], pages[..., block_size * head_dim :]
    return codes, scales.view(torch.float32).transpose(1, 2)


def quantize(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows [..., head_dim]: `dtype` of the same shape, float32 [...]."""
    x, largest = x.float(), LARGEST[dtype]
    highest = x.abs().amax(dim=-1)
    scales = highest / torch.tensor(largest, device=x.device)
    scales = scales.masked_fill(~highest.isfinite(), math.nan)
    codes = (x / scales.unsqueeze(-1)).clamp(-largest, largest)
    if dtype == torch.int8:
        codes = codes.round()
    return codes.masked_fill(~(scales > 0).unsqueeze(-1), 0).to(dtype), scales


def write_rows(cache: CodedRows, slot_mapping: Tensor, x: Tensor) -> None:
    """Quantise rows [num_tokens, num_kv_heads, head_dim] and write them to their slots."""
    size = cache.shape[1]
    place = slot_mapping // size, slot_mapping % size
    cache.codes[place], cache.scales[place] = quantize(x, cache.codes.dtype)


def read_rows(cache: CodedRows, block_table: Tensor, num_tokens: int) -> Tensor:
    """The first rows of one sequence, in order: float32 [num_tokens, num_kv_heads, head_dim]."""
    blocks = block_table[: -(-num_tokens // cache.shape[1])].long()
    used = CodedRows(cache.codes[blocks], cache.scales[blocks])
    return used.dequantize().flatten(0, 1)[:num_tokens]
