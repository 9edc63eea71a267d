"""FP8 weights with scales for blocks, as DeepSeek and Qwen publish them (Micikevicius et al. 2209.05433).

    weight             e4m3 [out, in]                 weight = e4m3 number * scale of its block
    weight_scale_inv   fp32 [out / 128, in / 128]     multiplied, despite its name; or bf16, e8m0

            in
         +-----+-----+--+
     out | s00 | s01 |  |      A scale is repeated for every output of its block: a matrix [out, groups] of
         +-----+-----+--+      scales, as all other schemes have. Blocks at the edges may be smaller.
         | s10 | s11 |  |
         +-----+-----+--+

Without blocks, one scale holds for all of a matrix. "activation_scheme": "dynamic" lets kernels round
the activations to FP8, too; here they keep 16 bits, which is nearer to the model that was quantised. Left
out: activation scales found by calibration ("static"), e5m2, experts in FP4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import shown
from minillm.config.quantization import CHANNEL, Form
from minillm.errors import WeightsError
from minillm.model.quantization.names import is_kept_plain, under
from minillm.model.quantization.settings import Settings
from minillm.model.quantization.stored import (
    FLOATS,
    MOST_INPUTS,
    Header,
    Part,
    Shape,
    StoredQuantization,
    StoredScheme,
    as_scales,
    require_group,
)
from minillm.ops.quantized import QuantizedMatrix

WHOLE = (0, 0)  # the block of a matrix with one scale
_WHOLE_AT = (".weight_scale", ".weight_scale_inv")  # as AutoFP8 and vLLM call it, and as transformers does
_KNOWN = (
    "quant_method activation_scheme weight_block_size fmt scale_fmt expert_dtype modules_to_not_convert "
    "ignored_layers dequantize"
).split()
_REFUSED = {"modules_to_convert": "embeddings in FP8", "kv_cache_scheme": "scales for keys and values"}


def fp8_quantization(config: Mapping[str, object]) -> StoredQuantization:
    """What a `quantization_config` with quant_method "fp8" says.

    Raises:
        UnsupportedModel: static activation scales, another number format, or a key that is not known.
    """
    settings = Settings("quantization_config (fp8)", config, _KNOWN, _REFUSED)
    scheme = settings.get("activation_scheme", "dynamic")
    if scheme != "dynamic":
        settings.refuse(
            "activation_scheme", scheme, "activations scaled by calibration are not supported: dynamic is"
        )
    settings.choice("fmt", ("e4m3",), "e4m3")
    settings.choice("scale_fmt", ("float", "ue8m0"), "float")
    settings.choice("expert_dtype", ("fp8",), "fp8")
    block = block_of(settings, "weight_block_size")
    stored = Fp8Blocks(block, _WHOLE_AT) if block == WHOLE else Fp8Blocks(block)
    plain = settings.names("modules_to_not_convert") + settings.names("ignored_layers")
    return StoredQuantization(
        "fp8", (*((under(name), None) for name in plain), (is_kept_plain, None), (lambda _: True, stored))
    )


def block_of(settings: Settings, key: str) -> tuple[int, int]:
    """Outputs and inputs that share a scale, or WHOLE where the key is absent.

    Raises:
        UnsupportedModel: no two positive integers, or the kernels have no such group.
    """
    block = settings.get(key)
    if block is None:
        return WHOLE
    if not isinstance(block, list) or len(block) != 2 or not all(map(_is_size, block)):
        settings.refuse(key, block, "it must be two positive integers")
    return block[0], require_group(block[1], 8, key)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 < number < MOST_INPUTS


@dataclass(frozen=True)
class Fp8Blocks(StoredScheme):
    """`block`: outputs and inputs that share a scale, or WHOLE. `scales_at`: where scales may lie."""

    block: tuple[int, int]
    scales_at: tuple[str, ...] = (".weight_scale_inv",)
    codes_part = ".weight"

    @property
    def scales_part(self) -> str:  # type: ignore[override]
        """Where the scales usually lie."""
        return self.scales_at[0]

    @property
    def strip_rows(self) -> int:  # type: ignore[override]
        """A block of outputs."""
        return self.block[0] or 1

    def parts(self, shape: Shape) -> dict[str, Part]:
        shapes = ((), (1,), (1, 1)) if self.block == WHOLE else (self._blocks(shape),)
        dtypes, either = (*FLOATS, torch.float8_e8m0fnu), len(self.scales_at) > 1
        parts = {name: Part(shapes, dtypes, optional=either) for name in self.scales_at}
        return {".weight": Part((shape,), (torch.float8_e4m3fn,)), **parts}

    def require_parts(self, name: str, headers: Mapping[str, Header], shape: Shape) -> list[str]:
        there = super().require_parts(name, headers, shape)
        if len(found := [part for part in self.scales_at if part in there]) != 1:
            raise WeightsError(
                f"{shown(name)} has {len(found)} of {' and '.join(self.scales_at)}", "it must have one"
            )
        return there

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        group = CHANNEL if self.block == WHOLE else self.block[1]
        return Form("fp8", group, wide=dtypes[self._scales_of(dtypes)] != torch.float16)

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        codes = parts[".weight"][rows.start : rows.stop].contiguous().view(torch.uint8)
        scales = as_scales(parts[self._scales_of(parts)], form).reshape(self._blocks(shape))
        block_of_row = torch.arange(rows.start, rows.stop) // (self.block[0] or shape[0])
        return QuantizedMatrix(form, codes, scales[block_of_row])

    def _scales_of(self, parts: Mapping[str, object]) -> str:
        """The one part that has the scales."""
        return next(name for name in self.scales_at if name in parts)

    def _blocks(self, shape: Shape) -> tuple[int, int]:
        """Blocks of outputs and of inputs."""
        if self.block == WHOLE:
            return 1, 1
        return -(-shape[0] // self.block[0]), -(-shape[1] // self.block[1])
