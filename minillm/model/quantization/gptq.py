"""GPTQ, as AutoGPTQ and GPTQModel write it: 4 or 8 bits with zero points (Frantar et al. 2210.17323).

    qweight   int32 [in * bits / 32, out]        a word has 8 or 4 inputs of one output
    qzeros    int32 [groups, out * bits / 32]    a word has 8 or 4 outputs of one group
    scales    fp16  [groups, out]
    g_idx     int32 [in]                         the group of every input

weight = scale * (code - zero). Version 1 ("gptq") subtracted 1 from every zero of a word at once, so that a
zero of 0 borrowed from the next one; the same sum undoes it. Version 2 ("gptq_v2") stores the zeros.
With act-order (`desc_act`), inputs were quantised in the order of their importance, and a group has inputs
from everywhere; `g_idx` says which. Files without act-order have a `g_idx` too, and it counts.

`dynamic` overrides bits and group of modules by regular expression: "-:pattern" leaves them plain, and the
first pattern that matches decides. Left out: 2 and 3 bits, the layouts "marlin" and "bitblas".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import shown
from minillm.config.quantization import CHANNEL, Form
from minillm.errors import WeightsError
from minillm.model.quantization.bits import codes_of_words, num_words, order_of
from minillm.model.quantization.names import beginning_with, is_kept_plain
from minillm.model.quantization.settings import Settings
from minillm.model.quantization.stored import (
    FLOATS,
    Matcher,
    Part,
    Shape,
    StoredQuantization,
    StoredScheme,
    require_group,
)
from minillm.model.quantization.zero_points import integer_form, integer_matrix
from minillm.ops.quantized import QuantizedMatrix

_ONES = {4: 0x11111111, 8: 0x01010101}
_OF_A_MODULE = (
    "bits group_size sym desc_act static_groups true_sequential damp_percent damp_auto_increment mse".split()
)
_KNOWN = (
    *_OF_A_MODULE,
    *(
        "quant_method checkpoint_format format dynamic lm_head modules_in_block_to_quantize pack_dtype "
        "act_group_aware meta model_name_or_path model_file_base_name dataset tokenizer use_exllama "
        "exllama_config use_cuda_fp16 max_input_length disable_exllama version cache_block_outputs "
        "batch_size pad_token_id block_name_to_quantize module_name_preceding_first_block model_seqlen "
        "backend quantizer method hyb_act"
    ).split(),
)
_REFUSED = {
    "is_marlin_format": "the layout marlin",
    "rotation": "rotated weights",
    "adapter": "an adapter beside the weights",
}


def gptq_quantization(config: Mapping[str, object]) -> StoredQuantization:
    """What a `quantization_config` with quant_method "gptq" says.

    Raises:
        UnsupportedModel: another layout, other bits, or a key that is not known.
    """
    settings = Settings("quantization_config (gptq)", config, _KNOWN, _REFUSED)
    settings.choice("pack_dtype", ("int32",), "int32")
    stored = settings.get("checkpoint_format", settings.get("format", "gptq"))
    if stored not in ("gptq", "gptq_v2"):
        settings.refuse("checkpoint_format", stored, "supported: gptq, gptq_v2")
    version = 2 if stored == "gptq_v2" else 1
    rules: list[tuple[Matcher, StoredScheme | None]] = [(_not_listed(settings), None)]
    if not settings.choice("lm_head", (True, False), False):
        rules.append((lambda name: name.rpartition(".")[2] == "lm_head", None))
    rules.append((lambda name: not name.endswith("lm_head") and is_kept_plain(name), None))
    rules += _overrides(settings, version)
    rules.append((lambda _: True, _scheme(settings, settings, version)))
    return StoredQuantization("gptq", tuple(rules))


def _not_listed(settings: Settings) -> Matcher:
    """Matches modules that `modules_in_block_to_quantize` leaves out."""
    blocks = settings.get("modules_in_block_to_quantize", [])
    is_list = isinstance(blocks, list)
    listed = (
        [name for block in blocks for name in (block if isinstance(block, list) else [block])]
        if is_list
        else []
    )
    if not is_list or not all(isinstance(name, str) for name in listed):
        settings.refuse("modules_in_block_to_quantize", blocks, "it must be a list of lists of names")
    return lambda module: bool(listed) and not any(f".{module}".endswith(f".{name}") for name in listed)


def _overrides(settings: Settings, version: int) -> list[tuple[Matcher, StoredScheme | None]]:
    rules: list[tuple[Matcher, StoredScheme | None]] = []
    dynamic = settings.get("dynamic", {})
    if not isinstance(dynamic, dict):
        settings.refuse("dynamic", dynamic, "it must be an object")
    for pattern, values in dynamic.items():
        if pattern.startswith("-:"):
            rules.append((beginning_with(pattern[2:]), None))
            continue
        own = Settings(f"quantization_config.dynamic[{shown(pattern)}]", values, _OF_A_MODULE, {})
        rules.append((beginning_with(pattern.removeprefix("+:")), _scheme(own, settings, version)))
    return rules


def _scheme(own: Settings, common: Settings, version: int) -> Gptq:
    bits = own.choice("bits", (4, 8), common.get("bits"))
    group = own.integer("group_size", common.integer("group_size", 128))
    return Gptq(
        bits,
        CHANNEL if group == -1 else require_group(group, bits, own.where),
        own.choice("sym", (True, False), common.choice("sym", (True, False), True)),
        version,
        own.choice("desc_act", (True, False), common.choice("desc_act", (True, False), False)),
    )


@dataclass(frozen=True)
class Gptq(StoredScheme):
    """`symmetric`: every zero is in the middle. `version`: of the format, 1 or 2. `ordered`: with a g_idx."""

    bits: int
    group: int
    symmetric: bool
    version: int = 1
    ordered: bool = False
    codes_part, scales_part = ".qweight", ".scales"

    def parts(self, shape: Shape) -> dict[str, Part]:
        out, in_features = shape
        groups = -(-in_features // (self.group or in_features))
        return {
            ".qweight": Part(((num_words(in_features, self.bits), out),), (torch.int32,)),
            ".qzeros": Part(((groups, num_words(out, self.bits)),), (torch.int32,)),
            ".scales": Part(((groups, out),), FLOATS),
            ".g_idx": Part(((in_features,),), (torch.int32, torch.int64), optional=not self.ordered),
        }

    def form(self, shape: Shape, dtypes: Mapping[str, torch.dtype]) -> Form:
        return integer_form(self.bits, self.group, self.symmetric, dtypes[".scales"])

    def unpack(
        self, name: str, parts: Mapping[str, Tensor], form: Form, shape: Shape, rows: range
    ) -> QuantizedMatrix:
        out, in_features = shape
        group = self.group or in_features
        chosen = slice(rows.start, rows.stop)
        codes = codes_of_words(parts[".qweight"][:, chosen].T, self.bits, in_features)
        stored = parts[".qzeros"] + (_ONES[self.bits] if self.version == 1 else 0)  # a sum wraps around
        zeros = codes_of_words(stored, self.bits, out)[:, chosen].T
        if self.symmetric and not (zeros == 1 << self.bits - 1).all():
            raise WeightsError(
                f"{shown(name + '.qzeros')} has zero points that are not in the middle",
                "the config says sym = true: it belongs to another model, or to another checkpoint_format",
            )
        order = order_of(name + ".g_idx", parts[".g_idx"], group) if ".g_idx" in parts else None
        scales = parts[".scales"][:, chosen].T
        return integer_matrix(form, codes, None if self.symmetric else zeros, scales, group, order)
