"""MXFP4, as gpt-oss stores its experts: 4 bits with a power of two for every 32 inputs (Rouhani 2310.10537).

    experts.gate_up_proj_blocks   uint8 [experts, out, in / 32, 16]    two codes of e2m1 in a byte, the lower first
    experts.gate_up_proj_scales   uint8 [experts, out, in / 32]        byte b: 2 ** (b - 127); 255 is NaN

A matrix is that of one expert: its blocks are [out, in / 32, 16]. (gpt-oss also interleaves the rows of gate
and up; that is the family's matter, not the format's.) The range of the scales is that of float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config.quantization import Form
from minillm.errors import UnsupportedModel
from minillm.model.quantization.bits import codes_of_bytes
from minillm.model.quantization.names import under
from minillm.model.quantization.settings import Settings
from minillm.model.quantization.stored import Part, Shape, StoredQuantization, StoredScheme
from minillm.ops.quantized import QuantizedMatrix

_GROUP = 32


def mxfp4_quantization(config: Mapping[str, object]) -> StoredQuantization:
    """What a `quantization_config` with quant_method "mxfp4" says.

    Raises:
        UnsupportedModel: a key that is not known.
    """
    known = ("quant_method", "modules_to_not_convert", "dequantize")
    settings = Settings("quantization_config (mxfp4)", config, known, {})
    plain = [under(name) for name in settings.names("modules_to_not_convert")]
    return StoredQuantization("mxfp4", (*((match, None) for match in plain), (_is_expert, Mxfp4())))


def _is_expert(module: str) -> bool:
    return module.endswith((".experts.gate_up_proj", ".experts.down_proj"))


@dataclass(frozen=True)
class Mxfp4(StoredScheme):
    """The matrix of one expert."""

    codes_part, scales_part = "_blocks", "_scales"

    def parts(self, shape: Shape) -> dict[str, Part]:
        out, in_features = shape
        if in_features % _GROUP:
            raise UnsupportedModel(
                f"mxfp4: a matrix of {in_features} inputs is not supported", "inputs come in blocks of 32"
            )
        groups = in_features // _GROUP
        return {
            "_blocks": Part(((out, groups, _GROUP // 2),), (torch.uint8,)),
            "_scales": Part(((out, groups),), (torch.uint8,)),
        }

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        return Form("fp4", _GROUP, wide=True)

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        chosen = slice(rows.start, rows.stop)
        codes = codes_of_bytes(parts["_blocks"][chosen].flatten(1), 4)
        scales = parts["_scales"][chosen].contiguous().view(torch.float8_e8m0fnu).float()
        return QuantizedMatrix(form, codes, scales)
