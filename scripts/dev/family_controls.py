"""What a table of tiny checkpoints is made of: variants, their controls, and edits of weights and configs.

A variant has one feature of a config.json that changes the logits: a bias, a window, a kind of rope. Each
variant lists *controls*: the same checkpoint with that feature switched off, or with a plausible mistake (a
window off by one, heads grouped in the wrong order). The tables are in `family_variants.py` and the files
that it joins; `make_family_checkpoints.py` builds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
    old: Config | None = field(default_factory=dict)  # keys that differ in the older format; ... removes the
    # key; None: the older format cannot say it
    rope_type_keys: tuple[str, ...] = ("rope_type",)  # the older format's keys for the kind of rope
    stored: Callable[[Weights], Weights] | None = None  # as published, where transformers saves other names


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
    (embedding,) = (w for name, w in weights.items() if name.endswith(("embed_tokens.weight", "wte.weight")))
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

# What the families beyond Llama's relatives share: 48 x 16 numbers for words, 8 in a head.
SMALL: Config = BASE | {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 16,
    "head_dim": 8,
    "pad_token_id": 0,
}
