"""The table of tiny checkpoints that define what "supported" means, family by family.

A variant has one feature of a config.json that changes the logits: a bias, a window, a kind of rope. Each
variant lists *controls*: the same checkpoint with that feature switched off, or with a plausible mistake (a
window off by one, heads grouped in the wrong order). `make_family_checkpoints.py` runs all of them through
transformers and stores the control whose logits are nearest to the right ones. So a test that passes would
notice the mistake.

Left out: speed and size. The models are random, and their text has no meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

Config = dict[str, Any]
Weights = dict[str, torch.Tensor]

WINDOW = 12


@dataclass(frozen=True)
class Control:
    """One mistake in a variant: replaced config keys, edited weights, or both."""

    name: str
    config: Config = field(default_factory=dict)
    edit: Callable[[Weights, Config], Weights] | None = None


@dataclass(frozen=True)
class Variant:
    """A checkpoint; `config` has the keys of the newer config format (`rope_parameters`)."""

    name: str
    family: str
    config: Config
    controls: tuple[Control, ...]
    length: int = 56
    shards: int = 1
    old: Config = field(default_factory=dict)  # keys that differ in the older format; ... removes the key
    rope_type_keys: tuple[str, ...] = ("rope_type",)  # the older format's keys for the kind of rope


# ---- weight edits ---------------------------------------------------------------------------------


def filled(*endings: str, value: float) -> Callable[[Weights, Config], Weights]:
    """Replaces tensors whose name ends in one of `endings` by a constant (0 for a bias, 1 for a norm)."""

    def edit(weights: Weights, config: Config) -> Weights:
        hits = [name for name in weights if name.endswith(endings)]
        if not hits:
            raise ValueError(f"no tensor ends in {endings}")
        return weights | {name: torch.full_like(weights[name], value) for name in hits}

    return edit


def tiled_heads(weights: Weights, config: Config) -> Weights:
    """Query head h reads kv head `h % kv` instead of `h // group`: the most common mistake in GQA."""
    heads, kv, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    order = torch.arange(heads).reshape(heads // kv, kv).T.flatten()  # query heads, by the kv head they read
    edited = dict(weights)
    for name, tensor in weights.items():
        if name.endswith("q_proj.weight"):
            edited[name] = tensor.reshape(heads, dim, -1)[order].reshape(tensor.shape)
        elif name.endswith("o_proj.weight"):
            edited[name] = tensor.reshape(-1, heads, dim)[:, order].reshape(tensor.shape)
    return {name: tensor.contiguous() for name, tensor in edited.items()}


def first_kv_head(weights: Weights, config: Config) -> Weights:
    """Every head reads the keys and values of head 0, as with a wrong head stride."""
    edited = dict(weights)
    for name, tensor in weights.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            rows = tensor.reshape(config["num_key_value_heads"], -1, tensor.shape[-1])
            edited[name] = rows[:1].expand_as(rows).reshape(tensor.shape).contiguous()
    return edited


def own_lm_head(weights: Weights, config: Config) -> Weights:
    """A head that differs from the embedding."""
    embedding = weights["model.embed_tokens.weight"]
    return weights | {"lm_head.weight": embedding.flip(0).contiguous()}


def without_bias(*projections: str) -> tuple[Control, ...]:
    """One control per projection: a single missing bias must be noticed."""
    return tuple(Control(f"no {p} bias", edit=filled(f"{p}_proj.bias", value=0.0)) for p in projections)


UNTIED = Control("untied", {"tie_word_embeddings": False}, own_lm_head)
TILED_HEADS = Control("tiled heads", edit=tiled_heads)
NO_NORM_WEIGHTS = Control("norm weights 1", edit=filled("norm.weight", value=1.0))
NO_QK_NORM = tuple(
    Control(f"{norm} weights 1", edit=filled(f"{norm}.weight", value=1.0)) for norm in ("q_norm", "k_norm")
)


# ---- config keys ----------------------------------------------------------------------------------


def rope(rope_type: str, theta: float = 100.0, **keys: Any) -> Config:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **keys}}


def yarn(**keys: Any) -> Config:
    """With theta 100 and 64 original positions the ramp lies in the middle of the eight frequencies."""
    return rope("yarn", **({"factor": 4.0, "original_max_position_embeddings": 64} | keys))


def llama3(**keys: Any) -> Config:
    defaults = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    return rope("llama3", **({"factor": 8.0} | defaults | keys))


def mistral_window(size: int | None) -> Config:
    return {"sliding_window": size}


def qwen_window(size: int, first: int, layer_types: list[str] | None = None) -> Config:
    """Layers from `first` on have a window; `layer_types` overrides this."""
    keys = {"use_sliding_window": True, "sliding_window": size, "max_window_layers": first}
    return keys | {"layer_types": layer_types}


DEFAULT_ROPE = Control("default rope", rope("default"))
LINEAR_ROPE = Control("linear rope", rope("linear", factor=4.0))
PLAIN_YARN = Control("yarn's defaults", yarn())
YARN_CONTROLS = (DEFAULT_ROPE, LINEAR_ROPE, Control("attention factor 1", yarn(attention_factor=1.0)))
MISTRAL_WINDOWS = tuple(Control(f"window {w}", mistral_window(w)) for w in (None, WINDOW - 1, WINDOW + 1))
NO_WINDOW = Control("no window", {"use_sliding_window": False, "sliding_window": None, "layer_types": None})
QWEN_WINDOWS = (
    NO_WINDOW,
    *(Control(f"full below layer {first}", qwen_window(WINDOW, first)) for first in (0, 2)),
    *(Control(f"window {size}", qwen_window(size, 1)) for size in (WINDOW - 1, WINDOW + 1)),
)

BASE: Config = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, **rope("default"),
}  # fmt: skip
FOUR_HEADS: Config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
THREE_HEADS: Config = {"hidden_size": 48, "num_attention_heads": 3}
WIDE_HEADS: Config = FOUR_HEADS | {"head_dim": 12}  # 4 x 12 is not the hidden size, 32
THREE_LAYERS: Config = {"num_hidden_layers": 3, "intermediate_size": 16}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


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
