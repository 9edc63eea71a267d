"""Variants of SmolLM3, OLMo 2 and 3, Phi-3 and 4-mini, Granite 3 and GPT-2."""

from __future__ import annotations

import torch
from family_controls import (
    DEFAULT_ROPE,
    LINEAR_ROPE,
    NO_NORM_WEIGHTS,
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
OLMO3_THETA = 500000.0
# The families of this file derive head_dim: 16 / 2.
PLAIN: Config = {key: value for key, value in SMALL.items() if key != "head_dim"}


def windows(*sizes: int | None) -> tuple[Control, ...]:
    return tuple(Control(f"window {size}", {"sliding_window": size}) for size in sizes)


NEAR_WINDOWS = windows(WINDOW - 1, WINDOW + 1)


# ---- SmolLM3 --------------------------------------------------------------------------------------


def nope(*layers: int) -> Config:
    return {"num_hidden_layers": len(layers), "no_rope_layers": list(layers)}


def _smollm3(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "smollm3", PLAIN | rope("default", 500.0) | config, controls, **rest)  # type: ignore[arg-type]


NOPE_WINDOW: Config = nope(1, 0, 1) | {"use_sliding_window": True, "sliding_window": WINDOW}

SMOLLM3 = [
    _smollm3("smollm3", nope(1, 1, 1, 0), UNTIED, Control("rope everywhere", nope(1, 1, 1, 1)),
             Control("a layer earlier", nope(1, 1, 0, 1)), Control("theta 10000", rope("default", 1e4)),
             old={"no_rope_layers": ..., "max_window_layers": 28, "pretraining_tp": 2}),
    _smollm3("smollm3_interval", {"no_rope_layer_interval": 2} , Control("rope everywhere", nope(1, 1)),
             Control("the other layer", nope(0, 1)), old={"no_rope_layers": ...}),
    _smollm3("smollm3_window", NOPE_WINDOW, *windows(None), *NEAR_WINDOWS,
             Control("window in rotated layers", {"layer_types": [SLIDING, FULL, SLIDING]})),
    _smollm3("smollm3_layer_types", NOPE_WINDOW | {"layer_types": [SLIDING, FULL, FULL]}, *NEAR_WINDOWS,
             Control("window without rope", {"layer_types": [FULL, SLIDING, FULL]})),
    _smollm3("smollm3_biases", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
             *without_bias("q", "k", "v", "o", "gate", "up", "down")),
    _smollm3("smollm3_yarn", yarn() | nope(1, 0), *YARN_CONTROLS),
]  # fmt: skip


# ---- OLMo -----------------------------------------------------------------------------------------


def norm_of_each_head(weights: Weights, config: Config) -> Weights:
    """The weights of the first head's norm in all heads, as where heads are normed apart."""
    edited, dim = dict(weights), config["hidden_size"] // config["num_attention_heads"]
    for name, tensor in weights.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            edited[name] = tensor[:dim].repeat(len(tensor) // dim)
    return edited


BY_HEAD = Control("norm weights of one head", edit=norm_of_each_head)
NO_NORM_AFTER = tuple(
    Control(f"{norm} weights 1", edit=filled(f"{norm}_layernorm.weight", value=1.0))
    for norm in ("post_attention", "post_feedforward")
)


def olmo3_ropes(full: Config | None = None, sliding: float = OLMO3_THETA) -> Config:
    by_kind = {FULL: {"rope_type": "default", "rope_theta": OLMO3_THETA} | (full or {})}
    return {"rope_parameters": by_kind | {SLIDING: {"rope_type": "default", "rope_theta": sliding}}}


def _olmo(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    keys = olmo3_ropes() | {"sliding_window": WINDOW} if name.startswith("olmo3") else {}
    return Variant(name, name.split("_")[0], PLAIN | keys | config, controls, **rest)  # type: ignore[arg-type]


OLMO_YARN: Config = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
LONG_YARN = olmo3_ropes(OLMO_YARN | {"beta_fast": 4.0, "beta_slow": 0.5})

OLMO = [
    _olmo("olmo2", {"num_key_value_heads": 2}, *NO_QK_NORM, BY_HEAD, *NO_NORM_AFTER, NO_NORM_WEIGHTS,
          old={"num_key_value_heads": ..., "clip_qkv": None}),
    _olmo("olmo2_gqa", {}, *NO_QK_NORM, BY_HEAD),
    _olmo("olmo2_attention_bias", {"attention_bias": True}, *without_bias("q", "k", "v", "o")),
    _olmo("olmo2_default_eps", {"rms_norm_eps": 1e-5}, BY_HEAD, old={"rms_norm_eps": ..., "rope_theta": 100}),
    _olmo("olmo2_tied", {"tie_word_embeddings": True}, UNTIED),
    _olmo("olmo3", {"num_hidden_layers": 4}, *NO_QK_NORM, BY_HEAD, *NO_NORM_AFTER, *NEAR_WINDOWS,
          *windows(200), Control("all sliding", {"layer_types": [SLIDING] * 4}),
          Control("a layer earlier", {"layer_types": [SLIDING, SLIDING, FULL, SLIDING]}), old={"layer_types": ...}),
    _olmo("olmo3_yarn", LONG_YARN | {"layer_types": [SLIDING, FULL]}, Control("not scaled", olmo3_ropes()),
          Control("all layers scaled", LONG_YARN | {"layer_types": [FULL, FULL]}),
          Control("attention factor 1", olmo3_ropes(OLMO_YARN | {"attention_factor": 1.0}))),
    # The older format cannot name the theta of sliding layers: transformers takes 500000 for them.
    _olmo("olmo3_theta", olmo3_ropes({"rope_theta": 50.0}) | {"layer_types": [SLIDING, FULL]},
          Control("theta 500000", olmo3_ropes()), Control("theta 50 in all", olmo3_ropes({"rope_theta": 50.0}, 50.0))),
    _olmo("olmo3_two_thetas", olmo3_ropes(sliding=50.0) | {"layer_types": [SLIDING, FULL]},
          Control("theta 500000", olmo3_ropes()), old=None),
]  # fmt: skip


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
    _phi3("phi3_partial", partial(0.75) | {"tie_word_embeddings": True}, UNTIED, Control("all rotated", partial(1.0)),
          Control("half rotated", partial(0.5)), *HALVES),
    _phi3("phi3_longrope_short", longrope(), NO_FACTOR, DEFAULT_ROPE, _same_factors("long_factor"), length=32,
          old={"rope_scaling": SU}),
    _phi3("phi3_longrope_long", longrope(), NO_FACTOR, DEFAULT_ROPE, _same_factors("short_factor")),
    _phi3("phi3_longrope_partial", longrope(0.75), _same_factors("long_factor", 0.75), length=32,
          rope_type_keys=("type",)),
    _phi3("phi3_longrope_partial_long", longrope(0.75), _same_factors("short_factor", 0.75)),
    _phi3("phi3_longrope_factors", longrope(factor=2.0), Control("factor of the lengths", longrope()), length=30),
    _phi3("phi3_longrope_attention_factor", longrope(attention_factor=1.5), Control("factor of the lengths", longrope()), length=30),
]  # fmt: skip


# ---- Granite --------------------------------------------------------------------------------------

MULTIPLIERS: Config = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 2.0
}  # fmt: skip


def _granite(name: str, config: Config, *controls: Control, **rest: object) -> Variant:
    return Variant(name, "granite", PLAIN | MULTIPLIERS | config, controls, **rest)  # type: ignore[arg-type]


EACH_MULTIPLIER = tuple(Control(f"{key} 1", {key: 1.0}) for key in MULTIPLIERS)

GRANITE = [
    _granite("granite", {"tie_word_embeddings": True}, UNTIED, *EACH_MULTIPLIER,
             Control("scale of head_dim", {"attention_multiplier": 8**-0.5})),
    _granite("granite_untied", {}, *EACH_MULTIPLIER),
    _granite("granite_defaults", dict.fromkeys(MULTIPLIERS, 1.0),
             Control("scale of head_dim", {"attention_multiplier": 8**-0.5}), old=dict.fromkeys(MULTIPLIERS, ...)),
    _granite("granite_biases", {"attention_bias": True, "mlp_bias": True},
             *without_bias("q", "k", "v", "o", "gate", "up", "down")),
    _granite("granite_linear", rope("linear", factor=4.0), DEFAULT_ROPE, rope_type_keys=("type",)),
]  # fmt: skip


# ---- GPT-2 ----------------------------------------------------------------------------------------

GPT2_BASE: Config = {
    "vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip
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
    for name in ("c_attn.bias", "attn.c_proj.bias", "c_fc.bias", "mlp.c_proj.bias", "ln_1.bias", "ln_2.bias",
                 "ln_f.bias")
)  # fmt: skip
POSITIONS = (
    Control("no positions", edit=filled("wpe.weight", value=0.0)),
    Control("positions from 1", edit=shifted_positions),
)

GPT2 = [
    _gpt2("gpt2", {}, UNTIED, *POSITIONS, *GPT2_BIASES,
          *(Control(f"{n} 1", edit=filled(f"{n}.weight", value=1.0)) for n in ("ln_1", "ln_2", "ln_f"))),
    _gpt2("gpt2_published", {}, *POSITIONS, stored=as_published),
    _gpt2("gpt2_by_depth", {"scale_attn_by_inverse_layer_idx": True},
          Control("equal scales", {"scale_attn_by_inverse_layer_idx": False})),
    _gpt2("gpt2_unscaled", {"scale_attn_weights": False}, Control("scaled", {"scale_attn_weights": True})),
    _gpt2("gpt2_inner", {"n_inner": 24, "activation_function": "relu"}, Control("gelu", {"activation_function": "gelu_new"})),
    _gpt2("gpt2_gelu", {"activation_function": "gelu"}, Control("relu", {"activation_function": "relu"})),
    _gpt2("gpt2_eps", {"layer_norm_epsilon": 0.1}, Control("eps 1e-5", {"layer_norm_epsilon": 1e-5})),
    _gpt2("gpt2_untied", {"tie_word_embeddings": False}, *POSITIONS),
]  # fmt: skip

DENSE = [*SMOLLM3, *OLMO, *PHI3, *GRANITE, *GPT2]
