"""A random model folder of every family, wide enough for several tiles, with the features of real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch

from minillm.model.decoder import Decoder
from minillm.model.families import FAMILIES, parse_config
from minillm.model.weights import placements
from minillm.ops.reference import ReferenceOps

Config = dict[str, Any]

SHAPE: Config = {
    "vocab_size": tiny.VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 208,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": tiny.EOS,
}
KINDS = ["sliding_attention", "full_attention"]
OWN: dict[str, Config] = {
    "llama": {},
    "mistral": {"sliding_window": 40},
    "qwen2": {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
    "qwen3": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "olmo2": {},
    "olmo3": {"sliding_window": 40, "layer_types": KINDS},
    "gemma2": {"sliding_window": 40, "query_pre_attn_scalar": 24, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma3_text": {
        "sliding_window": 40,
        "layer_types": KINDS,
        "query_pre_attn_scalar": 24,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "phi3": {"partial_rotary_factor": 0.75, "sliding_window": 40},
    "granite": {
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "logits_scaling": 3.0,
    },
    "gpt2": {"activation_function": "gelu_new", "n_head": 3},
    "qwen3_moe": {
        "num_experts": 9,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    },
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 48},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 72},
    "gpt_oss": {
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 56,
        "sliding_window": 40,
        "layer_types": KINDS,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
                            "rope_theta": 10000.0, "truncate": False},
    },
}  # fmt: skip
# Heads that the rungs on tensor cores take.
WIDE_HEADS: Config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
_GPT2_LACKS = ("num_key_value_heads", "head_dim")


def config(family: str, **changes: Any) -> Config:
    """A config.json of the family."""
    spelled = FAMILIES[family].spelled
    shape = {spelled.get(key, key): value for key, value in SHAPE.items()}
    if family == "gpt2":
        shape = {key: value for key, value in shape.items() if key not in _GPT2_LACKS}
    names = {"architectures": [FAMILIES[family].architecture], "model_type": family}
    return names | shape | OWN[family] | changes


def weights(cfg: Config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of the family's checkpoints; attention is far from uniform."""
    model = parse_config(cfg)
    empty = Decoder.build(model, ReferenceOps(), torch.float32, torch.device("cpu"), 1)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, place in placements(empty).items():
        noise = torch.randn(place.shape, generator=generator)
        is_norm = len(place.shape) == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight")
        tensors[name] = (1 - model.norm_offset) + noise / 4 if is_norm else noise * 0.12
    return tensors


def make_folder(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """Write a model folder of the family."""
    cfg = config(family, **changes)
    return tiny.make_folder(folder / family, cfg, tensors=weights(cfg, seed))
