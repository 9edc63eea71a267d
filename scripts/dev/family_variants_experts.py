"""Variants of the families with experts: Qwen3-MoE, OLMoE, Mixtral and gpt-oss."""

from __future__ import annotations

import torch
from family_controls import (
    NO_QK_NORM,
    SMALL,
    UNTIED,
    WINDOW,
    YARN_CONTROLS,
    Config,
    Control,
    Variant,
    Weights,
    filled,
    rope,
    without_bias,
    yarn,
)

FULL, SLIDING = "full_attention", "sliding_attention"
NEAR_WINDOWS = tuple(Control(f"window {w}", {"sliding_window": w}) for w in (WINDOW - 1, WINDOW + 1, 200))


# ---- weight edits ---------------------------------------------------------------------------------


def experts_rotated(weights: Weights, config: Config) -> Weights:
    """Expert e + 1 takes the place of expert e, as where experts are counted from another number."""
    edited = dict(weights)
    for name, tensor in weights.items():
        if name.endswith((".gate.weight", "router.weight")):
            edited[name] = tensor.roll(1, 0).contiguous()
    return edited


def exchanged(a: str, b: str) -> Control:
    """Tensors whose names have `a` and `b` change places."""

    def edit(weights: Weights, config: Config) -> Weights:
        swapped = {}
        for name, tensor in weights.items():
            other = name.replace(a, b) if a in name else name.replace(b, a)
            swapped[other] = tensor
        return swapped

    return Control(f"{a} and {b} exchanged", edit=edit)


def halves_not_turns(weights: Weights, config: Config) -> Weights:
    """gpt-oss's gate and up as two halves instead of in turns."""
    edited = dict(weights)
    for name, tensor in weights.items():
        if "experts.gate_up_proj" in name:
            edited[name] = torch.cat([tensor[..., ::2], tensor[..., 1::2]], dim=-1).contiguous()
    return edited


ROTATED = Control("experts by another number", edit=experts_rotated)
ONE_LESS = Control("one expert less", {"num_experts_per_tok": 1})
ONE_MORE = Control("one expert more", {"num_experts_per_tok": 3})
PER_TOKEN = (ONE_LESS, ONE_MORE)


def renormalized(on: bool) -> Control:
    return Control(f"norm_topk_prob {on}", {"norm_topk_prob": on})


# ---- Qwen3-MoE ------------------------------------------------------------------------------------

QWEN3_MOE_BASE: Config = SMALL | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
}


def _qwen(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    old = {"num_local_experts": ..., "num_experts": 5} | dict(rest.pop("old", {}))  # type: ignore[call-overload]
    return Variant(name, "qwen3_moe", QWEN3_MOE_BASE | config, controls, old=old, **rest)  # type: ignore[arg-type]


ALL_SLIDING: Config = {"use_sliding_window": True, "sliding_window": WINDOW}

QWEN3_MOE = [
    _qwen(
        "qwen3_moe",
        {},
        renormalized(False),
        ROTATED,
        *PER_TOKEN,
        *NO_QK_NORM,
        exchanged("gate_proj", "up_proj"),
        old={"max_window_layers": 1},
    ),
    _qwen(
        "qwen3_moe_not_renormalized",
        {"norm_topk_prob": False},
        renormalized(True),
        *PER_TOKEN,
        old={"norm_topk_prob": ...},
    ),
    _qwen("qwen3_moe_mlp_only", {"mlp_only_layers": [0]}, renormalized(False), ROTATED),
    _qwen(
        "qwen3_moe_sparse_step",
        {"decoder_sparse_step": 2, "num_hidden_layers": 3},
        renormalized(False),
        ROTATED,
    ),
    _qwen("qwen3_moe_bias", {"attention_bias": True}, *without_bias("q", "k", "v", "o")),
    # transformers gives every layer the window: max_window_layers is not read.
    _qwen("qwen3_moe_window", ALL_SLIDING, *NEAR_WINDOWS, old={"max_window_layers": 1}),
    _qwen(
        "qwen3_moe_window_unused",
        {"use_sliding_window": False},
        Control("used", ALL_SLIDING),
        old={"sliding_window": WINDOW},
    ),
    _qwen("qwen3_moe_yarn", yarn(), *YARN_CONTROLS, rope_type_keys=("type",)),
    _qwen(
        "qwen3_moe_all_experts",
        {"num_experts_per_tok": 5},
        Control("four experts", {"num_experts_per_tok": 4}),
        ROTATED,
    ),
]


# ---- OLMoE ----------------------------------------------------------------------------------------

OLMOE_BASE: Config = {key: value for key, value in SMALL.items() if key != "head_dim"} | {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
}


def _olmoe(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "olmoe", OLMOE_BASE | config, controls, **rest)  # type: ignore[arg-type]


OLMOE = [
    _olmoe(
        "olmoe",
        {},
        renormalized(True),
        ROTATED,
        *PER_TOKEN,
        *NO_QK_NORM,
        old={"norm_topk_prob": ..., "clip_qkv": None},
    ),
    _olmoe("olmoe_renormalized", {"norm_topk_prob": True}, renormalized(False)),
    _olmoe("olmoe_gqa", {"num_key_value_heads": 1, "tie_word_embeddings": True}, UNTIED, *NO_QK_NORM),
    _olmoe("olmoe_bias", {"attention_bias": True}, *without_bias("q", "k", "v", "o")),
]


# ---- Mixtral --------------------------------------------------------------------------------------

MIXTRAL_BASE: Config = SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}


def _mixtral(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "mixtral", MIXTRAL_BASE | config, controls, **rest)  # type: ignore[arg-type]


MIXTRAL = [
    _mixtral("mixtral", {}, ROTATED, *PER_TOKEN, exchanged(".w1.", ".w3."), old={"head_dim": ...}),
    _mixtral("mixtral_window", {"sliding_window": WINDOW}, *NEAR_WINDOWS),
    _mixtral("mixtral_head_dim", {"num_attention_heads": 4, "num_key_value_heads": 2}, ROTATED, *PER_TOKEN),
    _mixtral(
        "mixtral_theta", rope("default", 1e6), Control("theta 100", rope("default")), old={"rope_theta": ...}
    ),
]


# ---- gpt-oss --------------------------------------------------------------------------------------

GPT_OSS_BASE: Config = (
    SMALL
    | yarn(truncate=False)
    | {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
    }
)


def _gpt_oss(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "gpt_oss", GPT_OSS_BASE | config, controls, **rest)  # type: ignore[arg-type]


def in_bfloat16(weights: Weights) -> Weights:
    """As a checkpoint whose experts were MXFP4 and have been dequantized."""
    return {name: tensor.bfloat16() for name, tensor in weights.items()}


def large_gates(weights: Weights) -> Weights:
    """Gates and ups of which many lie beyond the clamp at 7."""
    return {name: 8 * tensor if "gate_up_proj_bias" in name else tensor for name, tensor in weights.items()}


PUBLISHED_YARN = {
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
EXPERT_BIASES = tuple(
    Control(f"no {name}", edit=filled(name, value=0.0))
    for name in ("router.bias", "gate_up_proj_bias", "down_proj_bias")
)
SWIGLU = (Control("alpha 1", {"swiglu_alpha": 1.0}), Control("limit 1000", {"swiglu_limit": 1000.0}))

GPT_OSS = [
    _gpt_oss(
        "gpt_oss",
        {},
        ROTATED,
        *PER_TOKEN,
        Control("no sinks", edit=filled("sinks", value=-1e4)),
        Control("sinks 0", edit=filled("sinks", value=0.0)),
        Control("halves", edit=halves_not_turns),
        *EXPERT_BIASES,
        *without_bias("q", "k", "v", "o"),
        *SWIGLU,
        *NEAR_WINDOWS,
        Control("windows exchanged", {"layer_types": [FULL, SLIDING]}),
        old={"layer_types": ..., "swiglu_alpha": ..., "initial_context_length": 64, "experts_per_token": 2},
        stored=large_gates,
    ),
    _gpt_oss(
        "gpt_oss_default_yarn",
        rope("yarn", 150000.0, **PUBLISHED_YARN),
        *YARN_CONTROLS,
        old={"rope_scaling": ..., "rope_theta": ...},
    ),
    _gpt_oss("gpt_oss_no_bias", {"attention_bias": False}, Control("halves", edit=halves_not_turns)),
    _gpt_oss(
        "gpt_oss_layer_types",
        {"layer_types": [FULL, SLIDING]},
        *NEAR_WINDOWS,
        Control("the family's", {"layer_types": [SLIDING, FULL]}),
    ),
    _gpt_oss("gpt_oss_bfloat16", {}, ROTATED, stored=in_bfloat16),
    _gpt_oss("gpt_oss_default_rope", rope("default"), Control("yarn", yarn(truncate=False)), old=None),
]

EXPERTS = [*QWEN3_MOE, *OLMOE, *MIXTRAL, *GPT_OSS]
