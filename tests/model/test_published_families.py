"""The configs of published checkpoints of each family, as they lie on the hub: read, and read right.

Long lists are made here. Tokenizer keys and the like are left out where `test_allowed_keys.py` has them.
"""

from __future__ import annotations

from typing import Any

import pytest

from minillm.config import ModelConfig
from minillm.errors import UnsupportedModel
from minillm.model.families import parse_config

FULL, SLIDING = "full_attention", "sliding_attention"
Config = dict[str, Any]


def sizes(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> Config:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    base = dict(zip(names, (hidden, inner, layers, heads), strict=True))
    base |= {"num_key_value_heads": kv, "vocab_size": vocab, "pad_token_id": 0}
    rest = {"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16"}
    return base | rest | {"transformers_version": "4.55.0"} | more


SMOLLM3 = sizes(
    2048, 11008, 36, 16, 4, 128256, architectures=["SmolLM3ForCausalLM"], model_type="smollm3",
    attention_bias=False, hidden_act="silu", layer_types=[FULL] * 36, max_position_embeddings=65536,
    max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9,
    pretraining_tp=2, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=5e6, sliding_window=None,
    use_sliding_window=False, bos_token_id=128000, eos_token_id=128012,
)  # fmt: skip
OLMO2 = sizes(
    4096, 11008, 32, 32, 32, 100352, architectures=["Olmo2ForCausalLM"], model_type="olmo2",
    attention_bias=False, hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6,
    rope_scaling=None, rope_theta=500000, tie_word_embeddings=False, eos_token_id=100257,
)  # fmt: skip
OLMO3 = sizes(
    4096, 11008, 32, 32, 32, 100278, architectures=["Olmo3ForCausalLM"], model_type="olmo3",
    attention_bias=False, hidden_act="silu", max_position_embeddings=65536, rms_norm_eps=1e-6,
    layer_types=[SLIDING, SLIDING, SLIDING, FULL] * 8, sliding_window=4096, rope_theta=500000,
    rope_scaling={"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
                  "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn"},
    tie_word_embeddings=False, eos_token_id=100257,
)  # fmt: skip
GEMMA2 = sizes(
    3584, 14336, 42, 16, 8, 256000, architectures=["Gemma2ForCausalLM"], model_type="gemma2",
    attention_bias=False, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, head_dim=256,
    cache_implementation="hybrid", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
    max_position_embeddings=8192, query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_theta=10000.0,
    sliding_window=4096, sliding_window_size=4096, bos_token_id=2, eos_token_id=1,
)  # fmt: skip
GEMMA3 = sizes(
    1152, 6912, 26, 4, 1, 262144, architectures=["Gemma3ForCausalLM"], model_type="gemma3_text",
    attention_bias=False, attn_logit_softcapping=None, final_logit_softcapping=None, head_dim=256,
    cache_implementation="hybrid", hidden_activation="gelu_pytorch_tanh", max_position_embeddings=32768,
    query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_local_base_freq=10000, rope_scaling=None,
    rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, bos_token_id=2, eos_token_id=[1, 106],
)  # fmt: skip
PHI3 = sizes(
    3072, 8192, 32, 32, 32, 32064, architectures=["Phi3ForCausalLM"], model_type="phi3",
    auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, embd_pdrop=0.0, resid_pdrop=0.0,
    hidden_act="silu", max_position_embeddings=4096, original_max_position_embeddings=4096,
    rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000.0, sliding_window=2047,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=32000,
)  # fmt: skip
PHI4_MINI = PHI3 | sizes(
    3072, 8192, 32, 24, 8, 200064, attention_bias=False, mlp_bias=False, lm_head_bias=False,
    full_attn_mod=1, interpolate_factor=1, max_position_embeddings=131072, partial_rotary_factor=0.75,
    rope_scaling={"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    sliding_window=262144, tie_word_embeddings=True, eos_token_id=199999,
)  # fmt: skip
GRANITE = sizes(
    4096, 12800, 40, 32, 8, 49155, architectures=["GraniteForCausalLM"], model_type="granite",
    attention_bias=False, attention_multiplier=0.0078125, embedding_multiplier=12.0, logits_scaling=16.0,
    residual_multiplier=0.22, hidden_act="silu", max_position_embeddings=131072, mlp_bias=False,
    rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000000.0, tie_word_embeddings=True,
)  # fmt: skip
GPT2: Config = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1600, "n_head": 25,
    "n_layer": 48, "n_positions": 1024, "n_special": 0, "output_past": True,
    "predict_special_tokens": True, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "task_specific_params": {"text-generation": {"max_length": 50}},
    "vocab_size": 50257,
}  # fmt: skip
QWEN3_MOE = sizes(
    2048, 6144, 48, 32, 4, 151936, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe",
    attention_bias=False, decoder_sparse_step=1, head_dim=128, hidden_act="silu", mlp_only_layers=[],
    max_position_embeddings=40960, max_window_layers=48, moe_intermediate_size=768, norm_topk_prob=True,
    num_experts=128, num_experts_per_tok=8, output_router_logits=False, rms_norm_eps=1e-6,
    rope_scaling=None, rope_theta=1000000.0, router_aux_loss_coef=0.001, sliding_window=None,
    tie_word_embeddings=False, use_sliding_window=False, eos_token_id=151645,
)  # fmt: skip
QWEN3_CODER = QWEN3_MOE | {"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True}
OLMOE = sizes(
    2048, 1024, 16, 16, 16, 50304, architectures=["OlmoeForCausalLM"], model_type="olmoe",
    attention_bias=False, clip_qkv=None, hidden_act="silu", max_position_embeddings=4096,
    norm_topk_prob=False, num_experts=64, num_experts_per_tok=8, output_router_logits=False,
    rope_scaling=None, rope_theta=10000.0, router_aux_loss_coef=0.01, tie_word_embeddings=False,
)  # fmt: skip
MIXTRAL = sizes(
    4096, 14336, 32, 32, 8, 32000, architectures=["MixtralForCausalLM"], model_type="mixtral",
    hidden_act="silu", max_position_embeddings=32768, num_experts_per_tok=2, num_local_experts=8,
    output_router_logits=False, rms_norm_eps=1e-5, rope_theta=1e6, router_aux_loss_coef=0.02,
    sliding_window=None, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT_OSS = sizes(
    2880, 2880, 24, 64, 8, 201088, architectures=["GptOssForCausalLM"], model_type="gpt_oss",
    attention_bias=True, experts_per_token=4, head_dim=64, hidden_act="silu", initial_context_length=4096,
    layer_types=[SLIDING, FULL] * 12, max_position_embeddings=131072, num_experts_per_tok=4,
    num_local_experts=32, output_router_logits=False, rms_norm_eps=1e-5, rope_theta=150000,
    rope_scaling={"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
                  "original_max_position_embeddings": 4096, "truncate": False},
    router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0, tie_word_embeddings=False,
    eos_token_id=200002,
)  # fmt: skip

# name -> (config, parameters in billions)
PUBLISHED: dict[str, tuple[Config, float]] = {
    "SmolLM3-3B": (SMOLLM3, 3.075),
    "OLMo-2-1124-7B": (OLMO2, 7.299),
    "Olmo-3-1025-7B": (OLMO3, 7.298),
    "gemma-2-9b": (GEMMA2, 9.242),
    "gemma-3-1b": (GEMMA3, 1.000),
    "Phi-3-mini-4k": (PHI3, 3.821),
    "Phi-4-mini": (PHI4_MINI, 3.836),
    "granite-3.1-8b": (GRANITE, 8.171),
    "gpt2-xl": (GPT2, 1.558),
    "Qwen3-30B-A3B": (QWEN3_MOE, 30.532),
    "Qwen3-Coder-30B-A3B": (QWEN3_CODER, 30.532),
    "OLMoE-1B-7B": (OLMOE, 6.919),
    "Mixtral-8x7B": (MIXTRAL, 46.703),
    "gpt-oss-20b": (GPT_OSS, 20.915),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read(name: str) -> None:
    """The number of parameters is the one that the model's card names: no part is too many or missing."""
    raw, billions = PUBLISHED[name]
    assert parse_config(raw).num_parameters / 1e9 == pytest.approx(billions, abs=0.0006)


def layer_numbers(config: ModelConfig, field: str) -> list[int]:
    return [i for i, layer in enumerate(config.layers) if getattr(layer, field) is None]


def test_what_distinguishes_the_layers() -> None:
    assert layer_numbers(parse_config(SMOLLM3), "rope") == list(range(3, 36, 4))
    assert layer_numbers(parse_config(OLMO3), "window") == list(range(3, 32, 4))
    assert layer_numbers(parse_config(GEMMA2), "window") == list(range(1, 42, 2))
    assert layer_numbers(parse_config(GEMMA3), "window") == [5, 11, 17, 23]
    assert layer_numbers(parse_config(GPT_OSS), "window") == list(range(1, 24, 2))
    assert layer_numbers(parse_config(GPT2), "rope") == list(range(48))


def test_what_distinguishes_the_numbers() -> None:
    granite, gemma, phi = parse_config(GRANITE), parse_config(GEMMA3), parse_config(PHI4_MINI)
    assert (granite.embedding_scale, granite.residual_scale, granite.logits_divisor) == (12.0, 0.22, 16.0)
    assert granite.layers[0].scale == 0.0078125
    assert gemma.embedding_scale == 1152**0.5 and gemma.norm_offset == 1.0
    assert gemma.layers[0].scale == 1 / 16
    (rope,) = phi.ropes
    assert (rope.kind, rope.rotary_dim(phi.head_dim), rope.original_max_position) == ("longrope", 96, 4096)
    (yarn,) = parse_config(GPT_OSS).ropes
    assert (yarn.kind, yarn.truncate, yarn.theta) == ("yarn", False, 150000.0)


def test_the_quantized_gpt_oss() -> None:
    """As published, its experts are MXFP4; the rest of the config says the same as without."""
    assert parse_config(GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}) == parse_config(GPT_OSS)
    with pytest.raises(UnsupportedModel, match="quant_method = 'mxfp6'"):
        parse_config(GPT_OSS | {"quantization_config": {"quant_method": "mxfp6"}})
