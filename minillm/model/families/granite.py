"""Granite 3: Llama with four multipliers, of the embedding, the residual, the scores and the logits."""

from __future__ import annotations

from dataclasses import replace

from minillm.config import ModelConfig
from minillm.model.config_reader import ConfigReader
from minillm.model.families.family import Family


def _granite(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    scale = cfg.number("attention_multiplier", 1.0)
    return replace(
        base,
        embedding_scale=cfg.number("embedding_multiplier", 1.0),
        residual_scale=cfg.number("residual_multiplier", 1.0),
        logits_divisor=cfg.number("logits_scaling", 1.0),
        layers=tuple(replace(layer, scale=scale) for layer in base.layers),
    )


GRANITE = Family(
    "GraniteForCausalLM",
    reads=frozenset(
        "attention_bias mlp_bias embedding_multiplier residual_multiplier attention_multiplier "
        "logits_scaling".split()
    ),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    differs=_granite,
)
