"""Variants of Phi-3 and 4-mini, Granite 3 and GPT-2."""

from __future__ import annotations

import torch
from family_controls import (
    DEFAULT_ROPE,
    SMALL,
    UNTIED,
    WINDOW,
    Config,
    Control,
    Variant,
    Weights,
    filled,
    rope,
    without_bias,
)

FULL, SLIDING = "full_attention", "sliding_attention"
# The families of this file derive head_dim: 16 / 2.
PLAIN: Config = {key: value for key, value in SMALL.items() if key != "head_dim"}


def windows(*sizes: int | None) -> tuple[Control, ...]:
    return tuple(Control(f"window {size}", {"sliding_window": size}) for size in sizes)


NEAR_WINDOWS = windows(WINDOW - 1, WINDOW + 1)


# ---- Phi ------------------------------------------------------------------------------------------


def halves_exchanged(*endings: str) -> Control:
    """The two last of the fused projections are taken for each other: k and v, gate and up."""

    def edit(weights: Weights, config: Config) -> Weights:
        edited = dict(weights)
        for name, tensor in weights.items():
            if name.endswith(endings):
                size = 8 if "qkv" in name else len(tensor) // 2
                first, a, b = tensor.split([len(tensor) - 2 * size, size, size])
                edited[name] = torch.cat([first, b, a])
        return edited

    return Control(f"{endings[0]}: halves exchanged", edit=edit)


def longrope(partial: float = 1.0, **keys: object) -> Config:
    """Phi-3-mini-128k in small: trained on 32 positions, stretched to 256."""
    pairs = int(8 * partial) // 2
    factors = {"short_factor": [1.0, 1.1, 1.3, 1.7][:pairs], "long_factor": [1.2, 2.5, 4.0, 7.0][:pairs]}
    parameters = factors | {"partial_rotary_factor": partial, "original_max_position_embeddings": 32} | keys
    return rope("longrope", **parameters) | {"original_max_position_embeddings": 32}


def partial(factor: float) -> Config:
    return rope("default", partial_rotary_factor=factor)


def _same_factors(which: str, part: float = 1.0) -> Control:
    """The divisors of the other side of the original length."""
    factors = longrope(part)["rope_parameters"]
    return Control(
        f"{which} factors", longrope(part, short_factor=factors[which], long_factor=factors[which])
    )


def _phi3(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "phi3", PLAIN | config, controls, **rest)  # type: ignore[arg-type]


# Phi-3-mini-128k was published with this name of longrope. transformers 5 asks for the length inside, too.
SU: Config = {"type": "su", "original_max_position_embeddings": 32} | {
    key: longrope()["rope_parameters"][key] for key in ("short_factor", "long_factor")
}
HALVES = (halves_exchanged("qkv_proj.weight"), halves_exchanged("gate_up_proj.weight"))
NO_FACTOR = Control("attention factor 1", longrope(attention_factor=1.0))

PHI3 = [
    _phi3("phi3", partial(1.0) | {"sliding_window": WINDOW}, *HALVES, *NEAR_WINDOWS, *windows(None)),
    _phi3(
        "phi3_partial",
        partial(0.75) | {"tie_word_embeddings": True},
        UNTIED,
        Control("all rotated", partial(1.0)),
        Control("half rotated", partial(0.5)),
        *HALVES,
    ),
    _phi3(
        "phi3_longrope_short",
        longrope(),
        NO_FACTOR,
        DEFAULT_ROPE,
        _same_factors("long_factor"),
        length=32,
        old={"rope_scaling": SU},
    ),
    _phi3("phi3_longrope_long", longrope(), NO_FACTOR, DEFAULT_ROPE, _same_factors("short_factor")),
    _phi3(
        "phi3_longrope_partial",
        longrope(0.75),
        _same_factors("long_factor", 0.75),
        length=32,
        rope_type_keys=("type",),
    ),
    _phi3("phi3_longrope_partial_long", longrope(0.75), _same_factors("short_factor", 0.75)),
    _phi3(
        "phi3_longrope_factors", longrope(factor=2.0), Control("factor of the lengths", longrope()), length=30
    ),
    _phi3(
        "phi3_longrope_attention_factor",
        longrope(attention_factor=1.5),
        Control("factor of the lengths", longrope()),
        length=30,
    ),
]


# ---- Granite --------------------------------------------------------------------------------------

MULTIPLIERS: Config = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}


def _granite(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "granite", PLAIN | MULTIPLIERS | config, controls, **rest)  # type: ignore[arg-type]


EACH_MULTIPLIER = tuple(Control(f"{key} 1", {key: 1.0}) for key in MULTIPLIERS)

GRANITE = [
    _granite(
        "granite",
        {"tie_word_embeddings": True},
        UNTIED,
        *EACH_MULTIPLIER,
        Control("scale of head_dim", {"attention_multiplier": 8**-0.5}),
    ),
    _granite("granite_untied", {}, *EACH_MULTIPLIER),
    _granite(
        "granite_defaults",
        dict.fromkeys(MULTIPLIERS, 1.0),
        Control("scale of head_dim", {"attention_multiplier": 8**-0.5}),
        old=dict.fromkeys(MULTIPLIERS, ...),
    ),
    _granite(
        "granite_biases",
        {"attention_bias": True, "mlp_bias": True},
        *without_bias("q", "k", "v", "o", "gate", "up", "down"),
    ),
    _granite("granite_linear", rope("linear", factor=4.0), DEFAULT_ROPE, rope_type_keys=("type",)),
]


# ---- GPT-2 ----------------------------------------------------------------------------------------

GPT2_BASE: Config = {
    "vocab_size": 48,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OLD_GPT2: Config = {"n_ctx": 64, "task_specific_params": {"text-generation": {"do_sample": True}}}


def as_published(weights: Weights) -> Weights:
    """As openai-community/gpt2: without the prefix, and with a mask in each layer."""
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    masks = {f"h.{i}.attn.bias": torch.ones(8, 8).tril()[None, None] for i in range(2)}
    return renamed | masks


def shifted_positions(weights: Weights, config: Config) -> Weights:
    return weights | {"transformer.wpe.weight": weights["transformer.wpe.weight"].roll(-1, 0).contiguous()}


def _gpt2(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "gpt2", GPT2_BASE | config, controls, **({"old": _OLD_GPT2} | rest))  # type: ignore[arg-type]


GPT2_BIASES = tuple(
    Control(f"no {name}", edit=filled(name, value=0.0))
    for name in (
        "c_attn.bias",
        "attn.c_proj.bias",
        "c_fc.bias",
        "mlp.c_proj.bias",
        "ln_1.bias",
        "ln_2.bias",
        "ln_f.bias",
    )
)
POSITIONS = (
    Control("no positions", edit=filled("wpe.weight", value=0.0)),
    Control("positions from 1", edit=shifted_positions),
)

GPT2 = [
    _gpt2(
        "gpt2",
        {},
        UNTIED,
        *POSITIONS,
        *GPT2_BIASES,
        *(Control(f"{n} 1", edit=filled(f"{n}.weight", value=1.0)) for n in ("ln_1", "ln_2", "ln_f")),
    ),
    _gpt2("gpt2_published", {}, *POSITIONS, stored=as_published),
    _gpt2(
        "gpt2_by_depth",
        {"scale_attn_by_inverse_layer_idx": True},
        Control("equal scales", {"scale_attn_by_inverse_layer_idx": False}),
    ),
    _gpt2("gpt2_unscaled", {"scale_attn_weights": False}, Control("scaled", {"scale_attn_weights": True})),
    _gpt2(
        "gpt2_inner",
        {"n_inner": 24, "activation_function": "relu"},
        Control("gelu", {"activation_function": "gelu_new"}),
    ),
    _gpt2("gpt2_gelu", {"activation_function": "gelu"}, Control("relu", {"activation_function": "relu"})),
    _gpt2("gpt2_eps", {"layer_norm_epsilon": 0.1}, Control("eps 1e-5", {"layer_norm_epsilon": 1e-5})),
    _gpt2("gpt2_untied", {"tie_word_embeddings": False}, *POSITIONS),
]

MORE = [*PHI3, *GRANITE, *GPT2]
