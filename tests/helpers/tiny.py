"""Makes model folders in Hugging Face layout with random weights and a small tokenizer.

The weights are so large that logits differ clearly, so rounding does not decide greedy text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from minillm import LLM
from minillm.model.families import FAMILIES

VOCAB_SIZE = 320  # a few more rows than the tokenizer has ids
BOS, EOS = 0, 1
TEXT = ["once upon a time there was a cat", "the cat sat on the mat", "日本語 the end 😀", "naïve café"] * 4
BLOCK_BYTES = 2 * 2 * 2 * 8 * 4  # K and V x layers x kv heads x head_dim x float32, for one token


def byte_level_tokenizer(bos: bool = False) -> Tokenizer:
    """Byte-level BPE with `<s>` (0) and `</s>` (1). With `bos`, its post-processor adds `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """Like SentencePiece: `▁` stands for the space, and `<0xE2>` for a byte of text without a token."""
    pieces = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "é", "\ufffd"]
    merges = [("▁", letter) for letter in "abct"]
    pieces += [left + right for left, right in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>", "<unk>")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def config(**changes: Any) -> dict[str, Any]:
    """A Llama config.json: 2 layers, hidden 32, 4 query heads over 2 kv heads."""
    base = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": EOS,
    }
    return base | changes


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """The same shape for another family, with the names of its keys."""
    described = FAMILIES[family]
    own = config(architectures=[described.architecture], model_type=family)
    if described.spelled:
        del own["num_key_value_heads"]  # GPT-2 has no such key
    return {described.spelled.get(key, key): value for key, value in own.items()} | changes


def mistral_config(window: int, **changes: Any) -> dict[str, Any]:
    """The same shape with a sliding window."""
    names = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    return config(**names, **changes)


def weights(cfg: dict[str, Any], seed: int = 0, scale: float = 0.5) -> dict[str, torch.Tensor]:
    """Random tensors with the names of a checkpoint; the scale makes logits differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = cfg["hidden_size"], cfg["intermediate_size"]
    head_dim = cfg.get("head_dim") or hidden // cfg["num_attention_heads"]
    q, kv = cfg["num_attention_heads"] * head_dim, cfg["num_key_value_heads"] * head_dim

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tensors = {
        "model.embed_tokens.weight": random(cfg["vocab_size"], hidden),
        "model.norm.weight": 1 + random(hidden) / 4,
    }
    if not cfg["tie_word_embeddings"]:
        tensors["lm_head.weight"] = random(cfg["vocab_size"], hidden)
    for i in range(cfg["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": 1 + random(hidden) / 4,
            "self_attn.q_proj.weight": random(q, hidden),
            "self_attn.k_proj.weight": random(kv, hidden),
            "self_attn.v_proj.weight": random(kv, hidden),
            "self_attn.o_proj.weight": random(hidden, q),
            "post_attention_layernorm.weight": 1 + random(hidden) / 4,
            "mlp.gate_proj.weight": random(inner, hidden),
            "mlp.up_proj.weight": random(inner, hidden),
            "mlp.down_proj.weight": random(hidden, inner),
        }
        tensors |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return tensors


def make_folder(
    folder: Path,
    cfg: dict[str, Any] | None = None,
    *,
    tensors: dict[str, torch.Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
    settings: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write a whole model. `settings`: tokenizer_config.json. `generation`: generation_config.json."""
    cfg = cfg or config()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(cfg))
    save_file(weights(cfg) if tensors is None else tensors, folder / "model.safetensors")
    (tokenizer or byte_level_tokenizer()).save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def load(folder: Path, **options: Any) -> LLM:
    """An LLM with a small pool, so that tests are fast; it uses native kernels if they can be built."""
    defaults = {"device": "cpu", "dtype": "float32", "kv_memory": "1MiB"}
    return LLM(folder, **(defaults | options))


def blocks(count: int, block_size: int = 16) -> int:
    """The `kv_memory` in bytes of exactly `count` blocks of the tiny model in float32."""
    return count * block_size * BLOCK_BYTES


def all_free(llm: LLM) -> bool:
    """Whether every block is free and no request is left in the engine."""
    stats = llm.engine.stats()
    idle = stats["waiting"] == stats["running"] == 0 and not llm.engine.has_unfinished_requests()
    return idle and stats["free_blocks"] == stats["num_blocks"] and stats["used_blocks"] == 0
