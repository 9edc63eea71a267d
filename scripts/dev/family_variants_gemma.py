"""Variants of Gemma 2 and Gemma 3: norms on both sides, (1 + weight), softcaps, windows, two thetas.

Gemma 3's multimodal folders hold the same text model; only its text is compared here.
"""

from __future__ import annotations

from family_controls import SMALL, UNTIED, WINDOW, Config, Control, Variant, Weights, filled

FULL, SLIDING = "full_attention", "sliding_attention"


# ---- weight edits ---------------------------------------------------------------------------------


def norms_without_offset(weights: Weights, config: Config) -> Weights:
    """The norms multiply by the weight and not by 1 + weight."""
    return {name: w - 1 if name.endswith("norm.weight") else w for name, w in weights.items()}


def qk_norms_without_offset(weights: Weights, config: Config) -> Weights:
    """The same mistake in the norms of q and k alone."""
    return {
        name: w - 1 if name.endswith(("q_norm.weight", "k_norm.weight")) else w for name, w in weights.items()
    }


def unscaled_embedding(weights: Weights, config: Config) -> Weights:
    """The embedding without its factor sqrt(hidden_size); the tied head keeps its numbers."""
    text = config.get("text_config", config)
    (name,) = (name for name in weights if name.endswith("embed_tokens.weight"))
    return weights | {name: weights[name] / text["hidden_size"] ** 0.5, "lm_head.weight": weights[name]}


def swapped_norms(weights: Weights, config: Config) -> Weights:
    """The norm after attention and the norm before the MLP change places: Llama's name misleads."""
    swap = {"post_attention_layernorm": "pre_feedforward_layernorm"}
    swap |= {new: old for old, new in swap.items()}
    edited = dict(weights)
    for name, tensor in weights.items():
        for old, new in swap.items():
            if f".{old}." in name:
                edited[name.replace(old, new)] = tensor
    return edited


def large_queries(weights: Weights) -> Weights:
    """Scores of tens, where a cap of 50 is felt."""
    return {name: 3 * w if name.endswith("q_proj.weight") else w for name, w in weights.items()}


OFFSET = Control("norms without offset", edit=norms_without_offset)
QK_OFFSET = Control("q and k norms without offset", edit=qk_norms_without_offset)
UNSCALED = Control("embedding without factor", {"tie_word_embeddings": False}, unscaled_embedding)
SWAPPED = Control("norms swapped", edit=swapped_norms)


# ---- Gemma 2 --------------------------------------------------------------------------------------

GEMMA2: Config = SMALL | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}


def windows(*sizes: int) -> tuple[Control, ...]:
    return tuple(Control(f"window {size}", {"sliding_window": size}) for size in sizes)


def kinds(name: str, *layer_types: str) -> Control:
    return Control(name, {"layer_types": list(layer_types)})


def _gemma2(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "gemma2", GEMMA2 | config, controls, **rest)  # type: ignore[arg-type]


_GEMMA2 = [
    _gemma2(
        "gemma2",
        {},
        OFFSET,
        UNSCALED,
        SWAPPED,
        UNTIED,
        *windows(WINDOW - 1, WINDOW + 1, 200),
        kinds("windows exchanged", FULL, SLIDING),
        kinds("all sliding", SLIDING, SLIDING),
        Control("scale of head_dim", {"query_pre_attn_scalar": 8}),
        Control("no score cap", {"attn_logit_softcapping": None}),
        Control("no logit cap", {"final_logit_softcapping": None}),
        # gemma-2-9b's config has all of these; transformers reads none of them.
        old={"hidden_act": "gelu", "cache_implementation": "hybrid", "sliding_window_size": 5},
    ),
    _gemma2(
        "gemma2_default_caps",
        {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 1},
        Control("no score cap", {"attn_logit_softcapping": None}),
        Control("no logit cap", {"final_logit_softcapping": None}),
        old={"attn_logit_softcapping": ..., "final_logit_softcapping": ...},
        stored=large_queries,
    ),
    _gemma2(
        "gemma2_no_caps",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        Control("score cap 2", {"attn_logit_softcapping": 2.0}),
        Control("logit cap 3", {"final_logit_softcapping": 3.0}),
    ),
    _gemma2(
        "gemma2_default_scalar",
        {"query_pre_attn_scalar": 256},
        Control("scale of head_dim", {"query_pre_attn_scalar": 8}),
        old={"query_pre_attn_scalar": ...},
    ),
    _gemma2("gemma2_layer_types", {"layer_types": [FULL, SLIDING]}, kinds("the family's", SLIDING, FULL)),
    _gemma2("gemma2_untied", {"tie_word_embeddings": False}, OFFSET, SWAPPED),
    _gemma2(
        "gemma2_attention_bias",
        {"attention_bias": True},
        *(Control(f"no {p} bias", edit=filled(f"{p}_proj.bias", value=0.0)) for p in "qkvo"),
    ),
    _gemma2(
        "gemma2_silu",
        {"hidden_activation": "silu"},
        Control("gelu", {"hidden_activation": "gelu_pytorch_tanh"}),
    ),
]


# ---- Gemma 3 --------------------------------------------------------------------------------------


def two_ropes(full: Config | None = None, sliding: float = 100.0, **keys: object) -> Config:
    """Layers with full attention rotate with theta 1000, or as `full` says; those with a window with 100."""
    by_kind = {FULL: {"rope_type": "default", "rope_theta": 1000.0} | (full or {})}
    return {"rope_parameters": by_kind | {SLIDING: {"rope_type": "default", "rope_theta": sliding}}} | keys


LINEAR = two_ropes({"rope_type": "linear", "factor": 8.0})
# What gemma-3-270m to 27b have in common, with every third layer full.
GEMMA3: Config = (
    SMALL
    | two_ropes()
    | {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "layer_types": [SLIDING, SLIDING, FULL],
    }
)
THETAS = (
    Control("one theta", two_ropes(sliding=1000.0)),
    Control("full theta 10000", two_ropes({"rope_theta": 10000.0})),
)


def _gemma3(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "gemma3_text", GEMMA3 | config, controls, **rest)  # type: ignore[arg-type]


def _pattern_of_six(config: Config) -> Config:
    kinds = {"num_hidden_layers": 7, "intermediate_size": 8, "layer_types": [SLIDING] * 5 + [FULL, SLIDING]}
    return config | kinds | {"num_attention_heads": 2, "num_key_value_heads": 1}


def _multimodal(config: Config) -> Config:
    """The config of a multimodal model around a text model's, with a vision tower of one tiny layer."""
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
    }
    return {
        "text_config": config,
        "vision_config": vision,
        "mm_tokens_per_image": 4,
        "image_token_index": 62,
        "boi_token_index": 60,
        "eoi_token_index": 61,
    }


def names_of_v5(weights: Weights) -> Weights:
    """transformers 5 may save the names that its model has: model.language_model.layers..., lm_head."""
    return {
        name.replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head", "lm_head")
        .replace("vision_tower.", "model.vision_tower.")
        .replace("multi_modal_projector.", "model.multi_modal_projector."): w
        for name, w in weights.items()
    }


_GEMMA3 = [
    _gemma3(
        "gemma3",
        {},
        OFFSET,
        QK_OFFSET,
        UNSCALED,
        SWAPPED,
        UNTIED,
        *THETAS,
        *windows(WINDOW - 1, WINDOW + 1, 200),
        kinds("every second full", SLIDING, FULL, SLIDING),
        Control("scale of head_dim", {"query_pre_attn_scalar": 8}),
        old={"sliding_window_pattern": 3, "layer_types": ...},
    ),
    _gemma3(
        "gemma3_six",
        _pattern_of_six({}),
        kinds("all sliding", *[SLIDING] * 7),
        Control("a step later", {"layer_types": [*[SLIDING] * 6, FULL]}),
        old={"layer_types": ...},
    ),
    _gemma3(  # gemma-3-4b and larger
        "gemma3_linear",
        LINEAR,
        Control("not scaled", two_ropes()),
        Control("factor 4", two_ropes({"rope_type": "linear", "factor": 4.0})),
        Control(
            "all layers scaled",
            two_ropes({"rope_type": "linear", "factor": 8.0}) | {"layer_types": [FULL] * 3},
        ),
    ),
    _gemma3(
        "gemma3_default_thetas",
        two_ropes({"rope_theta": 1e6}, sliding=1e4),
        *THETAS,
        old={"rope_theta": ..., "rope_local_base_freq": ..., "rope_scaling": ...},
    ),
    _gemma3(
        "gemma3_logit_cap",
        {"final_logit_softcapping": 3.0},
        Control("no cap", {"final_logit_softcapping": None}),
    ),
    # transformers reads attn_logit_softcapping and does not use it in Gemma 3.
    _gemma3("gemma3_unused_score_cap", {"attn_logit_softcapping": 0.5}, OFFSET, QK_OFFSET),
    _gemma3("gemma3_untied", {"tie_word_embeddings": False}, OFFSET),
    Variant("gemma3_multimodal", "gemma3", _multimodal(GEMMA3), (OFFSET, QK_OFFSET, SWAPPED)),
    Variant("gemma3_multimodal_v5_names", "gemma3", _multimodal(GEMMA3), (OFFSET,), stored=names_of_v5),
]

GEMMA = [*_GEMMA2, *_GEMMA3]
