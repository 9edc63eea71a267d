"""Small, sound model folders whose matrices are stored quantised, one for each method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import ggufs
import hostile
import tiny
import torch
from quantized_cases import Case, awq, blocks, gptq, mxfp4, packed, plain_codes
from torch import Tensor

from minillm.model.gguf.convert import convert

GROUP = 16  # two groups of a tiny model's 32 inputs
CASES: dict[str, Callable[[int, int], Case]] = {
    "packed": lambda out, inputs: packed(4, False, "group", GROUP, "f16", out, inputs, True),
    "int": lambda out, inputs: plain_codes("int", False, "channel", -1, "bf16", out, inputs),
    "float": lambda out, inputs: plain_codes("float", True, "channel", -1, "f32", out, inputs),
    "fp8": lambda out, inputs: blocks(GROUP, "f32", out, inputs),
    "awq": lambda out, inputs: awq(GROUP, "f16", out, inputs),
    "gptq": lambda out, inputs: gptq(4, True, 1, GROUP, out, inputs, True),
}
METHODS = (*CASES, "mxfp4", "gguf")
GPT_OSS: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "layer_types": ["full_attention"],
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 2,
}  # fmt: skip
# ggml's number, numbers and bytes of a block, and the upper byte of its scale and of its minimum, by place.
GGUF_TYPES: dict[str, tuple[int, int, int, dict[int, int]]] = {
    "Q4_0": (2, 32, 18, {1: 0x2C}),
    "Q4_1": (3, 32, 20, {1: 0x2C, 3: 0x2C}),
    "Q8_0": (8, 32, 34, {1: 0x2C}),
    "Q4_K": (12, 256, 144, {1: 0x0C, 3: 0x0C}),
    "Q6_K": (14, 256, 210, {209: 0x04}),
}
GGUF_WIDE = tiny.config(
    hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
)
GGUF_MATRICES = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down token_embd output".split()


def make(folder: Path, method: str) -> Path:
    """Write a model folder of the method."""
    if method == "gguf":
        convert(gguf_file(folder.parent, dict.fromkeys(GGUF_MATRICES, "Q8_0")), folder, keep=True)
        return folder
    if method == "mxfp4":
        cfg = families.config("gpt_oss", **GPT_OSS)
        return write(folder, cfg, _expert_blocks(families.weights(cfg)), {"quant_method": "mxfp4"})
    cfg, case = tiny.config(num_hidden_layers=1), CASES[method]
    return write(folder, cfg, _stored(tiny.weights(cfg), case), case(GROUP, GROUP).config)


def write(folder: Path, cfg: dict[str, Any], tensors: dict[str, Tensor], quantization: object) -> Path:
    described = cfg | {"quantization_config": quantization}
    return tiny.make_folder(folder, described, tensors=tensors, settings={"chat_template": hostile.TEMPLATE})


def _stored(tensors: dict[str, Tensor], case: Callable[[int, int], Case]) -> dict[str, Tensor]:
    stored = {}
    for name, tensor in tensors.items():
        if name.endswith("proj.weight"):
            module = name.removesuffix(".weight")
            stored |= {f"{module}{end}": t.contiguous() for end, t in case(*tensor.shape).tensors.items()}
        else:
            stored[name] = tensor
    return stored


def _expert_blocks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stored = {}
    for name, tensor in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor
            continue
        experts, inputs, out = tensor.shape
        codes = mxfp4(experts * out, inputs).tensors["_blocks"].unflatten(0, (experts, out))
        stored[f"{name}_blocks"] = codes
        stored[f"{name}_scales"] = torch.full(codes.shape[:3], 122, dtype=torch.uint8)
    return stored


def gguf_file(folder: Path, kinds: dict[str, str]) -> Path:
    """A GGUF of a tiny Llama; matrices named in `kinds` are random blocks of that type, the others F32."""
    is_wide = any(GGUF_TYPES[kind][1] > 32 for kind in kinds.values())
    model = ggufs.model_of(GGUF_WIDE, tiny.weights(GGUF_WIDE)) if is_wide else ggufs.model("llama_mha")
    metadata, stored = model
    metadata["tokenizer.chat_template"] = (
        hostile.TEMPLATE
    )  # it begins with a token: there are none for letters
    for name, old in stored.items():
        kind = kinds.get(name.split(".")[-2])
        if kind and old.sizes[0] % GGUF_TYPES[kind][1] == 0:
            stored[name] = _blocks(old, kind, seed=len(name))
    return ggufs.write(folder / "m.gguf", metadata, stored)


def _blocks(old: ggufs.Stored, kind: str, seed: int) -> ggufs.Stored:
    type_id, numbers, num_bytes, scales = GGUF_TYPES[kind]
    made = ggufs.random_stored(tuple(reversed(old.sizes)), type_id, (numbers, num_bytes), seed)
    data = torch.frombuffer(bytearray(made.data), dtype=torch.uint8).view(-1, num_bytes)
    for place, byte in scales.items():
        data[:, place] = byte
    return ggufs.Stored(made.sizes, type_id, data.numpy().tobytes())
