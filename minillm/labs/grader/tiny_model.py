"""A tiny random model, made at run time, for the engine that runs a student's parts.

Random weights find more mistakes than trained ones: every head and position matters, and no wrong part gives
the right text by luck. The tokenizer has one id per printable ASCII character, so every stop string spans
several tokens. The vocabulary is larger than the tokenizer, so a sampler without the id mask draws ids that
have no text.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from minillm import LLM
from minillm.engine.engine import Engine
from minillm.text.detokenizer import byte_alphabet

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 32, 2, 4, 2, 8, 48
VOCAB_SIZE, CONTEXT = 128, 96
NUM_PRINTABLE = 95


def tiny_llm(window: int | None = None, **options: Any) -> LLM:
    """An LLM over the tiny model; with `window`, its attention has a sliding window."""
    defaults: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "backend": "reference",
        "kv_memory": "256KiB",
        "block_size": 4,
        "prefill_chunk": 5,
    }
    llm = LLM(tiny_model(window), **{**defaults, **options})
    fill(llm.engine)
    return llm


def fill(engine: Engine) -> None:
    """Fill the cache with fixed numbers, so that a wrong read gives the same answer in every run."""
    cache = engine.worker.runner.cache
    for tensor in (*cache.k, *cache.v):
        tensor.copy_(random_tensor(7, *tensor.shape))


@cache
def tiny_model(window: int | None = None) -> Path:
    """A model folder in Hugging Face layout, removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if window is None else "MistralForCausalLM"],
        "model_type": "llama" if window is None else "mistral",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    }
    if window is not None:
        config["sliding_window"] = window
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer(NUM_PRINTABLE).save(str(folder / "tokenizer.json"))
    _save(_weights(), folder / "model.safetensors")
    return folder


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write float32 tensors as safetensors: length of the header, header, bytes.

    Not `safetensors.torch.save_file`, which needs NumPy; minillm does not.
    """
    header, data = {}, bytearray()
    for name, tensor in tensors.items():
        start = len(data)
        data += bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@cache
def byte_tokenizer(num_bytes: int = 256) -> Tokenizer:
    """One id per byte, in the order of `byte_order`, so that a text is several ids."""
    letter = {byte: char for char, byte in byte_alphabet().items()}
    vocab = {letter[byte]: i for i, byte in enumerate(byte_order()[:num_bytes])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_order() -> list[int]:
    """The byte of every id: printable ASCII first (id 0 is the space)."""
    return [*range(0x20, 0x7F), *range(0x20), *range(0x7F, 0x100)]


def random_tensor(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, float32 `shape`; a seed gives the same numbers in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weights() -> dict[str, Tensor]:
    """Every tensor of the checkpoint, scaled so that activations stay near 1 and logits spread."""
    shapes = {"self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM)}
    shapes |= {f"self_attn.{name}_proj": (KV_HEADS * HEAD_DIM, HIDDEN) for name in "kv"}
    shapes |= {"mlp.gate_proj": (MLP, HIDDEN), "mlp.up_proj": (MLP, HIDDEN), "mlp.down_proj": (HIDDEN, MLP)}
    weights = {"model.embed_tokens.weight": random_tensor(0, VOCAB_SIZE, HIDDEN)}
    weights["model.norm.weight"] = torch.ones(HIDDEN) * 0.6
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for i, (name, shape) in enumerate(shapes.items()):
            scale = 2.0 * shape[1] ** -0.5
            weights[f"{prefix}.{name}.weight"] = scale * random_tensor(100 * layer + i + 1, *shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = torch.ones(HIDDEN)
    return weights
