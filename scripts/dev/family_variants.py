"""The table of tiny checkpoints that define what "supported" means, family by family.

A variant has one feature of a config.json that changes the logits: a bias, a window, a kind of rope. Each
variant lists *controls*: the same checkpoint with that feature switched off, or with a plausible mistake (a
window off by one, heads grouped in the wrong order). `make_family_checkpoints.py` runs all of them through
transformers and stores the control whose logits are nearest to the right ones. So a test that passes would
notice the mistake.

Left out: speed and size. The models are random, and their text has no meaning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from family_controls import (
    ALTERNATING,
    BASE,
    DEFAULT_ROPE,
    FOUR_HEADS,
    LINEAR_ROPE,
    MISTRAL_WINDOWS,
    NO_NORM_WEIGHTS,
    NO_QK_NORM,
    NO_WINDOW,
    PLAIN_YARN,
    QWEN_WINDOWS,
    THREE_HEADS,
    THREE_LAYERS,
    TILED_HEADS,
    UNTIED,
    WIDE_HEADS,
    WINDOW,
    YARN_CONTROLS,
    Config,
    Control,
    Variant,
    first_kv_head,
    llama3,
    mistral_window,
    qwen_window,
    rope,
    without_bias,
    yarn,
)
from family_variants_dense import DENSE
from family_variants_experts import EXPERTS
from family_variants_gemma import GEMMA
from family_variants_more import MORE

# ---- the table ------------------------------------------------------------------------------------

LLAMA = [
    Variant("llama_mha", "llama", FOUR_HEADS | {"num_key_value_heads": 4},
            (Control("first kv head", edit=first_kv_head), NO_NORM_WEIGHTS),
            old={"num_key_value_heads": ..., "head_dim": ...}),
    Variant("llama_gqa_head_dim", "llama", WIDE_HEADS, (TILED_HEADS, NO_NORM_WEIGHTS)),
    Variant("llama_attention_bias", "llama", {"attention_bias": True}, without_bias("q", "k", "v", "o")),
    Variant("llama_mlp_bias", "llama", {"mlp_bias": True}, without_bias("gate", "up", "down")),
    Variant("llama_tied", "llama", {"tie_word_embeddings": True}, (UNTIED,)),
    Variant("llama_rms_norm_eps", "llama", {"rms_norm_eps": 0.1},
            (Control("eps 1e-6", {"rms_norm_eps": 1e-6}),)),
    Variant("llama_sharded", "llama", WIDE_HEADS, (TILED_HEADS,), shards=3),
    Variant("tinyllama_like", "llama", FOUR_HEADS | rope("default", 10000.0),
            (TILED_HEADS, Control("theta 100", rope("default"))),
            old={"head_dim": ..., "attention_bias": ..., "mlp_bias": ..., "rope_theta": ...}),
    Variant("smollm2_like", "llama",
            THREE_HEADS | {"tie_word_embeddings": True} | rope("default", 500.0),
            (UNTIED, Control("theta 10000", rope("default", 10000.0))),
            old={"head_dim": ..., "is_llama_config": True, "rope_interleaved": False,
                 "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}),
]  # fmt: skip


def longrope(**keys: Any) -> Config:
    """Trained on 32 positions; `length` is 32, so that the short divisors are those used."""
    factors = {"short_factor": [1 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
    return rope("longrope", original_max_position_embeddings=32, **factors, **keys)


def _rope_variant(name: str, config: Config, *controls: Control, **rest: Any) -> Variant:
    return Variant(f"llama_rope_{name}", "llama", config, controls, **rest)


ROPE = [
    _rope_variant("theta", rope("default", 2000.0), Control("theta 10000", rope("default", 10000.0))),
    _rope_variant("linear", rope("linear", factor=4.0), DEFAULT_ROPE,
                  Control("factor 2", rope("linear", factor=2.0)), rope_type_keys=("type",)),
    _rope_variant("llama3", llama3(), DEFAULT_ROPE, Control("linear rope", rope("linear", factor=8.0)),
                  Control("high_freq_factor 2", llama3(high_freq_factor=2.0)), old={"eos_token_id": [2, 3]}),
    _rope_variant("yarn", yarn(), *YARN_CONTROLS, rope_type_keys=("type",)),
    _rope_variant("yarn_attention_factor", yarn(attention_factor=1.5), PLAIN_YARN),
    _rope_variant("yarn_mscale", yarn(mscale=2.0, mscale_all_dim=0.5), PLAIN_YARN,
                  Control("mscale alone", yarn(mscale=2.0)),
                  Control("mscales swapped", yarn(mscale=0.5, mscale_all_dim=2.0)),
                  rope_type_keys=("type", "rope_type")),
    _rope_variant("yarn_betas", yarn(beta_fast=4.0, beta_slow=0.5), PLAIN_YARN,
                  Control("no beta_fast", yarn(beta_slow=0.5)), Control("no beta_slow", yarn(beta_fast=4.0))),
    _rope_variant("yarn_no_truncate", yarn(beta_fast=4.0, beta_slow=0.5, truncate=False),
                  Control("truncate", yarn(beta_fast=4.0, beta_slow=0.5))),
    _rope_variant("yarn_factor_wins", yarn(factor=2.0), Control("factor from the lengths", yarn(factor=4.0))),
    _rope_variant("yarn_no_original", yarn(original_max_position_embeddings=256), PLAIN_YARN, DEFAULT_ROPE,
                  old={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    _rope_variant("dynamic", rope("dynamic", factor=4.0) | {"max_position_embeddings": 64}, LINEAR_ROPE,
                  Control("base scaled from the start", rope("default", 100.0 * 4.0 ** (16 / 14))),
                  rope_type_keys=("type",)),
    _rope_variant("longrope", longrope(), DEFAULT_ROPE,
                  Control("attention factor 1", longrope(attention_factor=1.0)), length=32),
]  # fmt: skip

MISTRAL = [
    Variant("mistral_sliding_window", "mistral", mistral_window(WINDOW), MISTRAL_WINDOWS, length=72,
            old={"head_dim": ...}),
    Variant("mistral_window_null", "mistral", mistral_window(None),
            (Control("window 40", mistral_window(40)),), length=72),
    Variant("mistral_head_dim", "mistral", WIDE_HEADS | mistral_window(None), (TILED_HEADS,)),
]  # fmt: skip

QWEN2 = [
    Variant("qwen2", "qwen2", {}, without_bias("q", "k", "v")),
    Variant("qwen2_max_window_layers", "qwen2", THREE_LAYERS | qwen_window(WINDOW, 1), QWEN_WINDOWS,
            length=64),
    Variant("qwen2_layer_types", "qwen2", THREE_LAYERS | qwen_window(WINDOW, 1, ALTERNATING),
            (NO_WINDOW, Control("layer_types ignored", qwen_window(WINDOW, 1))), length=64),
    Variant("qwen2_window_unused", "qwen2", {"use_sliding_window": False, "sliding_window": WINDOW},
            (Control("window used", qwen_window(WINDOW, 1)),), old={"sliding_window": WINDOW}),
    Variant("qwen2_tied", "qwen2", {"tie_word_embeddings": True}, (UNTIED, *without_bias("q", "k", "v"))),
    Variant("qwen2_yarn", "qwen2", yarn(), YARN_CONTROLS, rope_type_keys=("type",)),
]  # fmt: skip

QWEN3 = [
    Variant("qwen3", "qwen3", WIDE_HEADS, (*NO_QK_NORM, TILED_HEADS)),
    Variant("qwen3_tied", "qwen3", {"tie_word_embeddings": True}, (UNTIED, *NO_QK_NORM)),
    Variant("qwen3_attention_bias", "qwen3", {"attention_bias": True}, without_bias("q", "k", "v", "o")),
    Variant("qwen3_sliding_window", "qwen3", THREE_LAYERS | qwen_window(WINDOW, 1), QWEN_WINDOWS, length=64),
    Variant("qwen3_yarn", "qwen3", yarn(), YARN_CONTROLS),
]  # fmt: skip


def _complete(variant: Variant) -> Variant:
    """Adds the common keys. Published qwen2 configs have no `head_dim`, so these have none either."""
    config = BASE | variant.config
    if variant.family == "qwen2":
        del config["head_dim"]
    return replace(variant, config=config)


VARIANTS = [_complete(variant) for variant in [*LLAMA, *ROPE, *MISTRAL, *QWEN2, *QWEN3]]
VARIANTS += [*DENSE, *MORE, *GEMMA, *EXPERTS]
