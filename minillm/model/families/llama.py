"""Llama, and the families that are Llama with other defaults, biases, norms on q and k, or windows."""

from __future__ import annotations

from dataclasses import replace

from minillm.config import ModelConfig, shown
from minillm.errors import UnsupportedModel
from minillm.model.config_reader import ConfigReader
from minillm.model.families.family import Family
from minillm.model.families.windows import MAX_WINDOW, windows_by_kind
from minillm.model.rope_config import RopeRules

BY_DEPTH = frozenset({"use_sliding_window", "sliding_window", "max_window_layers"})

LLAMA = Family(
    "LlamaForCausalLM",
    reads=frozenset({"attention_bias", "mlp_bias"}),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
)

MISTRAL = Family(
    "MistralForCausalLM",
    reads=frozenset({"sliding_window"}),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072},
    windows="all",
)

QWEN2 = Family(
    "Qwen2ForCausalLM",
    reads=BY_DEPTH,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    qkv_bias=True,
    windows="deep",
)

QWEN3 = Family(
    "Qwen3ForCausalLM",
    reads=BY_DEPTH | {"attention_bias"},
    unused=frozenset({"use_qk_norm"}),
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm="head",
    windows="deep",
)


def _smollm3(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    """Every fourth layer is not rotated: attention there does not see positions."""
    count = base.num_hidden_layers
    every = cfg.integer("no_rope_layer_interval", 4)
    rotated = cfg.raw.get("no_rope_layers")
    if rotated is None:
        rotated = [(i + 1) % every != 0 for i in range(count)]
    if not isinstance(rotated, list) or len(rotated) < count or any(r not in (0, 1) for r in rotated):
        raise UnsupportedModel(
            f"no_rope_layers={shown(rotated)} must list 1 (rope) or 0 (no rope) for each of {count} layers"
        )
    window = cfg.optional_integer("sliding_window", None, maximum=MAX_WINDOW)
    if not cfg.boolean("use_sliding_window", False):
        window = None
    kinds = cfg.raw.get("layer_types")
    if kinds is None:
        windows = tuple(None if r else window for r in rotated[:count])
    else:
        windows = windows_by_kind(kinds, window, count)
    layers = (
        replace(layer, window=w, rope=layer.rope if r else None)
        for layer, w, r in zip(base.layers, windows, rotated, strict=False)
    )
    return replace(base, layers=tuple(layers))


SMOLLM3 = Family(
    "SmolLM3ForCausalLM",
    reads=frozenset(
        "attention_bias mlp_bias use_sliding_window sliding_window no_rope_layers "
        "no_rope_layer_interval".split()
    ),
    defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True},
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    rope=RopeRules(theta=2000000.0),
    windows="own",
    differs=_smollm3,
)
