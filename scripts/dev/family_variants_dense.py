"""Variants of SmolLM3 and of OLMo 2 and 3."""

from __future__ import annotations

from family_controls import (
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
    _smollm3(
        "smollm3",
        nope(1, 1, 1, 0),
        UNTIED,
        Control("rope everywhere", nope(1, 1, 1, 1)),
        Control("a layer earlier", nope(1, 1, 0, 1)),
        Control("theta 10000", rope("default", 1e4)),
        old={"no_rope_layers": ..., "max_window_layers": 28, "pretraining_tp": 2},
    ),
    _smollm3(
        "smollm3_interval",
        {"no_rope_layer_interval": 2},
        Control("rope everywhere", nope(1, 1)),
        Control("the other layer", nope(0, 1)),
        old={"no_rope_layers": ...},
    ),
    _smollm3(
        "smollm3_window",
        NOPE_WINDOW,
        *windows(None),
        *NEAR_WINDOWS,
        Control("window in rotated layers", {"layer_types": [SLIDING, FULL, SLIDING]}),
    ),
    _smollm3(
        "smollm3_layer_types",
        NOPE_WINDOW | {"layer_types": [SLIDING, FULL, FULL]},
        *NEAR_WINDOWS,
        Control("window without rope", {"layer_types": [FULL, SLIDING, FULL]}),
    ),
    _smollm3(
        "smollm3_biases",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        *without_bias("q", "k", "v", "o", "gate", "up", "down"),
    ),
    _smollm3("smollm3_yarn", yarn() | nope(1, 0), *YARN_CONTROLS),
]


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
    _olmo(
        "olmo2",
        {"num_key_value_heads": 2},
        *NO_QK_NORM,
        BY_HEAD,
        *NO_NORM_AFTER,
        NO_NORM_WEIGHTS,
        old={"num_key_value_heads": ..., "clip_qkv": None},
    ),
    _olmo("olmo2_gqa", {}, *NO_QK_NORM, BY_HEAD),
    _olmo("olmo2_attention_bias", {"attention_bias": True}, *without_bias("q", "k", "v", "o")),
    _olmo("olmo2_default_eps", {"rms_norm_eps": 1e-5}, BY_HEAD, old={"rms_norm_eps": ..., "rope_theta": 100}),
    _olmo("olmo2_tied", {"tie_word_embeddings": True}, UNTIED),
    _olmo(
        "olmo3",
        {"num_hidden_layers": 4},
        *NO_QK_NORM,
        BY_HEAD,
        *NO_NORM_AFTER,
        *NEAR_WINDOWS,
        *windows(200),
        Control("all sliding", {"layer_types": [SLIDING] * 4}),
        Control("a layer earlier", {"layer_types": [SLIDING, SLIDING, FULL, SLIDING]}),
        old={"layer_types": ...},
    ),
    _olmo(
        "olmo3_yarn",
        LONG_YARN | {"layer_types": [SLIDING, FULL]},
        Control("not scaled", olmo3_ropes()),
        Control("all layers scaled", LONG_YARN | {"layer_types": [FULL, FULL]}),
        Control("attention factor 1", olmo3_ropes(OLMO_YARN | {"attention_factor": 1.0})),
    ),
    # transformers does not find `truncate` inside the ropes of two kinds of layers.
    _olmo(
        "olmo3_yarn_truncate",
        olmo3_ropes(OLMO_YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False})
        | {"layer_types": [SLIDING, FULL]},
        Control("not scaled", olmo3_ropes()),
    ),
    # The older format cannot name the theta of sliding layers: transformers takes 500000 for them.
    _olmo(
        "olmo3_theta",
        olmo3_ropes({"rope_theta": 50.0}) | {"layer_types": [SLIDING, FULL]},
        Control("theta 500000", olmo3_ropes()),
        Control("theta 50 in all", olmo3_ropes({"rope_theta": 50.0}, 50.0)),
    ),
    _olmo(
        "olmo3_two_thetas",
        olmo3_ropes(sliding=50.0) | {"layer_types": [SLIDING, FULL]},
        Control("theta 500000", olmo3_ropes()),
        old=None,
    ),
]


DENSE = [*SMOLLM3, *OLMO]
