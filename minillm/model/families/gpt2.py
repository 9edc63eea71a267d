"""GPT-2: LayerNorm, learned positions instead of rope, an MLP without a gate, biases everywhere.

Its checkpoints store matrices as [in, out] ("Conv1D"), and q, k and v in one of them.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import ModelConfig
from minillm.model.config_reader import ConfigReader
from minillm.model.families.family import CheckpointNames, Family

_NAMES = CheckpointNames(
    {
        "input_norm": "ln_1",
        "qkv": "attn.c_attn",
        "o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "gate_up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    prefix="transformer.",
    layer="h.{i}.",
    embedding="wte",
    positions="wpe",
    final_norm="ln_f",
    transposed=True,
)


def _gpt2(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    scale = base.head_dim**-0.5 if cfg.boolean("scale_attn_weights", True) else 1.0
    by_depth = cfg.boolean("scale_attn_by_inverse_layer_idx", False)
    layers = (
        replace(layer, scale=scale / (i + 1) if by_depth else scale) for i, layer in enumerate(base.layers)
    )
    return replace(
        base, norm_kind="layer", learned_positions=True, gated=False, mlp_bias=True, layers=tuple(layers)
    )


GPT2 = Family(
    "GPT2LMHeadModel",
    reads=frozenset("scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn".split()),
    spelled={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    aliases={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    defaults={
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": True,
    },
    names=_NAMES,
    qkv_bias=True,
    o_bias=True,
    rope=None,
    inner_ratio=4,
    differs=_gpt2,
)
