"""Writes GGUF files from plain values, without the library that reads them, so that they can be wrong too."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minillm.model.locate import ZOO

ALIGNMENT = 32
F32, F16, Q4_0, Q8_0, I32, BF16 = 0, 1, 2, 8, 26, 30
ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ROOT / "model" / "families"


@dataclass(frozen=True)
class Typed:
    """A metadata value with its type number, where the Python type does not say it."""

    kind: int
    value: Any


@dataclass(frozen=True)
class Stored:
    """A tensor as the file holds it: sizes beginning with the row length, ggml's type, bytes."""

    sizes: tuple[int, ...]
    type_id: int
    data: bytes
    offset: int | None = None  # another one than the next free place


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(content: Any) -> bytes:
    """Type and bytes of a metadata value."""
    if isinstance(content, Typed):
        codes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
        return struct.pack("<I" + codes[content.kind], content.kind, content.value)
    if isinstance(content, bool):
        return struct.pack("<IB", 7, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content) if content >= 0 else struct.pack("<Ii", 5, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, str | bytes):
        return struct.pack("<I", 8) + string(content)
    items = [value(item) for item in content]
    kind = items[0][:4] if items else struct.pack("<I", 4)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)


def whole(
    metadata: Mapping[str, Any], tensors: Mapping[str, Stored], version: int = 3, **counts: int
) -> bytes:
    """The bytes of a file. `counts`: num_tensors, num_keys, in place of the true ones."""
    head = b"GGUF" + struct.pack("<I", version)
    head += struct.pack("<QQ", counts.get("num_tensors", len(tensors)), counts.get("num_keys", len(metadata)))
    head += b"".join(string(key) + value(content) for key, content in metadata.items())
    body = b""
    for name, stored in tensors.items():
        offset = len(body) if stored.offset is None else stored.offset
        head += string(name) + struct.pack("<I", len(stored.sizes))
        head += struct.pack(f"<{len(stored.sizes)}Q", *stored.sizes)
        head += struct.pack("<IQ", stored.type_id, offset)
        body += stored.data + b"\0" * (-len(stored.data) % ALIGNMENT)
    return head + b"\0" * (-len(head) % ALIGNMENT) + body


# ---- a whole model --------------------------------------------------------------------------------

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def model(variant: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The checkpoint tests/model/families/<variant> as conversion to GGUF writes it, in F32."""
    folder = FAMILIES / variant
    config = json.loads((folder / "config_old.json").read_text())
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return model_of(config, weights)


def model_of(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Any checkpoint as conversion to GGUF writes it, in F32."""
    return metadata(config) | tokenizer(config["vocab_size"]), tensors(config, weights)


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of the architecture."""
    name = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config.get("rope_theta", 10000.0)),
        "rope.dimension_count": head_dim,
    }
    if config["model_type"] == "mistral" and config.get("sliding_window"):
        keys["attention.sliding_window"] = config["sliding_window"]
    scaling = config.get("rope_scaling")
    if scaling:
        keys["rope.scaling.type"] = scaling.get("rope_type", scaling.get("type"))
        keys["rope.scaling.factor"] = float(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            keys["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return {"general.architecture": name} | {f"{name}.{key}": content for key, content in keys.items()}


def tokenizer(vocab_size: int) -> dict[str, Any]:
    """Byte-level BPE of the shipped model, cut to `vocab_size` ids (256 bytes and as many merges as fit)."""
    stored = json.loads((ZOO / "storyteller-6m" / "tokenizer.json").read_text())["model"]
    by_id = sorted(stored["vocab"], key=stored["vocab"].get)[:vocab_size]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in stored["merges"]]
    known = set(by_id)
    fitting = [m for m in merges if {*m.split(" "), m.replace(" ", "")} <= known]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": by_id,
        "tokenizer.ggml.token_type": [Typed(5, 3 if i == 0 else 1) for i in range(len(by_id))],
        "tokenizer.ggml.merges": fitting,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def tensors(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Stored]:
    """The tensors under their GGUF names; rows of q and k in llama.cpp's order where it has its own."""
    made = {}
    is_llama = config["model_type"] in ("llama", "mistral")
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config.get("num_key_value_heads", config["num_attention_heads"]),
    }
    for name, tensor in weights.items():
        target = gguf_name(name)
        short = target.split(".")[-2]
        if is_llama and short in heads:
            tensor = tensor[interleaved(tensor.shape[0], heads[short])]
        made[target] = f32(tensor)
    return made


def gguf_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight"""
    if not name.startswith("model.layers."):
        names = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }
        return names[name]
    _, _, layer, rest = name.split(".", 3)
    owner, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_NAMES[owner]}.{kind}"


def interleaved(rows: int, heads: int) -> list[int]:
    """For each row of the file the row of the folder: 0, half, 1, half + 1, ... in each head."""
    size = rows // heads
    return [h * size + i // 2 + (i % 2) * (size // 2) for h in range(heads) for i in range(size)]


def f32(tensor: Tensor) -> Stored:
    return Stored(tuple(reversed(tensor.shape)), F32, tensor.float().contiguous().numpy().tobytes())


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored], **more: int) -> Path:
    """Write a file and return its path."""
    path.write_bytes(whole(metadata, tensors, **more))
    return path


def random_stored(shape: tuple[int, ...], type_id: int, block: tuple[int, int], seed: int = 0) -> Stored:
    """Blocks of random bits; (numbers, bytes) of a block. The scale, two bytes, is about 2**-4."""
    numbers, num_bytes = block
    count = torch.Size(shape).numel() // numbers
    bits = torch.randint(
        0, 256, (count, num_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    bits[:, 1] = 0x2C
    return Stored(tuple(reversed(shape)), type_id, bits.numpy().tobytes())
