"""Gemma 2 and 3 (text): norms on both sides, with weights stored around 0; a scaled embedding; windows.

    x + norm(attention(norm(x)))            every norm multiplies by (1 + weight)

Gemma 2 caps the attention scores and the logits, and every other layer has a window. Gemma 3 norms q and k
instead, and five of six layers have a window, with a rope of their own.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import ModelConfig
from minillm.errors import UnsupportedModel
from minillm.model.config_reader import ConfigReader
from minillm.model.families.family import LLAMA_PARTS, CheckpointNames, Family
from minillm.model.rope_config import RopeRules

_NAMES = CheckpointNames(
    {
        **LLAMA_PARTS,
        "attention_output_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
)
_READS = frozenset(
    "attention_bias sliding_window query_pre_attn_scalar final_logit_softcapping "
    "use_bidirectional_attention".split()
)


def _gemma(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    if cfg.boolean("use_bidirectional_attention", False):
        raise UnsupportedModel(
            "use_bidirectional_attention=true is not supported", "a decoder reads only earlier tokens"
        )
    scale = cfg.number("query_pre_attn_scalar", 256) ** -0.5
    cap = cfg.nullable_number("attn_logit_softcapping")
    return replace(
        base,
        norm_offset=1.0,
        embedding_scale=base.hidden_size**0.5,
        logits_softcap=cfg.nullable_number("final_logit_softcapping"),
        layers=tuple(replace(layer, scale=scale, softcap=cap, norms="sandwich") for layer in base.layers),
    )


GEMMA2 = Family(
    "Gemma2ForCausalLM",
    reads=_READS | {"attn_logit_softcapping"},
    unused=frozenset({"hidden_act", "sliding_window_size"}),
    spelled={"hidden_act": "hidden_activation"},
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    names=_NAMES,
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    windows=2,
    differs=_gemma,
)


# The scores of Gemma 3 are not capped: transformers reads attn_logit_softcapping and does not use it.
GEMMA3 = replace(
    GEMMA2,
    architecture="Gemma3ForCausalLM",
    reads=_READS | {"rope_local_base_freq", "sliding_window_pattern"},
    unused=frozenset({"hidden_act", "attn_logit_softcapping"}),
    defaults={
        # The text_config of gemma-3-4b names few sizes.
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    qk_norm="head",
    rope=RopeRules(theta=1000000.0),
    sliding_theta=10000.0,
    windows=6,
)
