"""OLMo 2 and 3: the norms stand after attention and after the MLP, and q and k are normed over all heads.

    Llama    x + attention(norm(x))         OLMo    x + norm(attention(x))

OLMo 3 adds windows in three of four layers. Only its layers with full attention have a scaled rope.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import ModelConfig
from minillm.model.config_reader import ConfigReader
from minillm.model.families.family import LLAMA_PARTS, CheckpointNames, Family
from minillm.model.rope_config import RopeRules

_PARTS = {name: part for name, part in LLAMA_PARTS.items() if name not in ("input_norm", "mlp_norm")}
_NAMES = CheckpointNames(
    _PARTS
    | {
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
)


def norms_after(cfg: ConfigReader, base: ModelConfig) -> ModelConfig:
    """The norms stand behind attention and MLP, none before."""
    return replace(base, layers=tuple(replace(layer, norms="post") for layer in base.layers))


OLMO2 = Family(
    "Olmo2ForCausalLM",
    reads=frozenset({"attention_bias"}),
    defaults={"rms_norm_eps": 1e-5},
    names=_NAMES,
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm="wide",
    differs=norms_after,
)

OLMO3 = replace(
    OLMO2,
    architecture="Olmo3ForCausalLM",
    reads=OLMO2.reads | {"sliding_window"},
    rope=RopeRules(theta=500000.0),
    # transformers takes this theta for layers with a window, whatever `rope_theta` of the older format says.
    sliding_theta=500000.0,
    windows=4,
)
