"""AWQ, layout "gemm": 4 bits with a zero point for each group (Lin et al. 2306.00978).

    qweight   int32 [in, out / 8]        a word has 8 outputs of one input
    qzeros    int32 [in / group, out / 8]
    scales    fp16  [in / group, out]

    word of 32 bits   | 7 | 5 | 3 | 1 | 6 | 4 | 2 | 0 |      which output a code belongs to

Everything is transposed here, and the outputs of a word come in an order of their own, which suits a kernel of
NVIDIA's. weight = scale * (code - zero). Left out: the layouts "gemv" and "marlin".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config.quantization import CHANNEL, Form
from minillm.errors import UnsupportedModel
from minillm.model.quantization.bits import codes_of_words
from minillm.model.quantization.names import containing, is_kept_plain
from minillm.model.quantization.settings import Settings
from minillm.model.quantization.stored import (
    FLOATS,
    Part,
    Shape,
    StoredQuantization,
    StoredScheme,
    require_group,
)
from minillm.model.quantization.zero_points import integer_form, integer_matrix
from minillm.ops.quantized import QuantizedMatrix

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in a word the code of each output lies
_KNOWN = (
    "quant_method bits group_size zero_point version format checkpoint_format modules_to_not_convert backend "
    "q_group_size w_bit"
).split()
_REFUSED = {
    "do_fuse": "layers fused by AutoAWQ",
    "exllama_config": "a layout of ExLlama",
    "fuse_max_seq_len": "layers fused by AutoAWQ",
    "modules_to_fuse": "layers fused by AutoAWQ",
}


def awq_quantization(config: Mapping[str, object]) -> StoredQuantization:
    """What a `quantization_config` with quant_method "awq" says.

    Raises:
        UnsupportedModel: another layout, other bits, or a key that is not known.
    """
    settings = Settings("quantization_config (awq)", config, _KNOWN, _REFUSED)
    settings.choice("bits", (4,), settings.get("w_bit", 4))
    version = settings.get("version", settings.get("format", settings.get("checkpoint_format", "gemm")))
    if not isinstance(version, str) or version.lower() != "gemm":
        settings.refuse("version", version, "supported: gemm")
    group = settings.integer("group_size", settings.integer("q_group_size", 128))
    scheme = Awq(
        CHANNEL if group == -1 else require_group(group, 4, "awq"),
        settings.choice("zero_point", (True, False), True),
    )
    plain = [containing(name) for name in settings.names("modules_to_not_convert") if name]
    return StoredQuantization(
        "awq", (*((match, None) for match in plain), (is_kept_plain, None), (lambda _: True, scheme))
    )


@dataclass(frozen=True)
class Awq(StoredScheme):
    """`group`: inputs that share a scale, or CHANNEL. Without `zero_point`, zero is at 8."""

    group: int
    zero_point: bool = True
    codes_part, scales_part = ".qweight", ".scales"

    def parts(self, shape: Shape) -> dict[str, Part]:
        out, in_features = shape
        group = self.group or in_features
        if out % 8 or in_features % group:
            raise UnsupportedModel(
                f"awq: a matrix of {out} outputs and {in_features} inputs is not supported",
                f"outputs come in words of 8, and inputs in groups of {group}",
            )
        parts = {
            ".qweight": Part(((in_features, out // 8),), (torch.int32,)),
            ".scales": Part(((in_features // group, out),), FLOATS),
        }
        if self.zero_point:
            parts[".qzeros"] = Part(((in_features // group, out // 8),), (torch.int32,))
        return parts

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        return integer_form(4, self.group, not self.zero_point, dtypes[".scales"])

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        codes = _outputs(parts[".qweight"], rows)
        zeros = _outputs(parts[".qzeros"], rows) if self.zero_point else None
        scales = parts[".scales"][:, rows.start : rows.stop].T
        return integer_matrix(form, codes, zeros, scales, self.group or shape[1])


def _outputs(words: Tensor, rows: range) -> Tensor:
    """The codes of some outputs: int32 [n, out / 8] -> uint8 [rows, n]."""
    first = rows.start // 8
    words = words[:, first : -(-rows.stop // 8)]
    codes = codes_of_words(words, 4, 8 * words.shape[1])
    codes = codes.unflatten(1, (-1, 8))[:, :, _PLACES].flatten(1)
    return codes[:, rows.start - 8 * first :][:, : len(rows)].T.contiguous()
