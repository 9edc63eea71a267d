"""What a model family is: how to read its config.json, and what its tensors are called.

A family has no layer code. It says which keys of a config it reads, what a missing key means, and what
differs from Llama; `model/decoder.py` runs the `ModelConfig` that results.

    config.json --reader.py--> ModelConfig as for Llama --Family.differs--> ModelConfig
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minillm.config import ModelConfig
from minillm.model.config_reader import ConfigReader
from minillm.model.rope_config import RopeRules

# One name, or the names of tensors whose rows stand one after another in one matrix.
Parts = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class CheckpointNames:
    """What a family's tensors are called in its checkpoints, without the endings ".weight" and ".bias".

    parts           a layer's, by name in `LayerWeights`; "{e}" is the number of an expert. A name with an
                    ending, e.g. "expert_down.bias", is that of one tensor, taken as it is
    transposed      matrices are stored [in, out]
    interleaved     one tensor holds all experts, [num_experts, in, out], with gate and up in turns
    """

    parts: Parts
    prefix: str = "model."
    layer: str = "layers.{i}."
    embedding: str = "embed_tokens"
    final_norm: str = "norm"
    head: str = "lm_head"
    positions: str = ""
    transposed: bool = False
    interleaved: bool = False


LLAMA_PARTS: Parts = {
    "input_norm": "input_layernorm",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": "mlp.down_proj",
}
LLAMA_NAMES = CheckpointNames(LLAMA_PARTS)


PLAIN_ROPE = RopeRules()


def as_llama(cfg: ConfigReader, config: ModelConfig) -> ModelConfig:
    """No difference."""
    return config


@dataclass(frozen=True)
class Family:
    """One family: the keys it reads beyond the common ones, its defaults, and what differs from Llama.

    architecture   in config.json
    reads          keys beyond the common ones
    defaults       values of missing keys, where they differ from those in `reader.py`
    spelled        other names of common keys: {"hidden_size": "n_embd"}
    aliases        second names of keys, which transformers takes, too: {"num_local_experts": "num_experts"}
    unused         keys of its published configs that transformers does not use
    qkv_bias       and `o_bias`: True, False, or "attention_bias" if that key of the config decides
    rope           how its configs mean rope; None: it has none
    sliding_theta  of layers with a window, where these have a rope of their own
    windows        which layers have the window that `sliding_window` names, if the config has no
                   `layer_types`: "none", "all", "switched" (all, if `use_sliding_window`), "deep" (the same
                   from `max_window_layers` on), or n: all but every n-th layer; "own": `differs` says
    inner_ratio    intermediate_size / hidden_size where a config lacks the former
    differs        replaces fields of the config as it would be for Llama
    """

    architecture: str
    reads: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    names: CheckpointNames = LLAMA_NAMES
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    qk_norm: Literal["head", "wide"] | None = None
    rope: RopeRules | None = PLAIN_ROPE
    sliding_theta: float | None = None
    windows: Literal["none", "all", "switched", "deep", "own"] | int = "none"
    inner_ratio: int | None = None
    differs: Callable[[ConfigReader, ModelConfig], ModelConfig] = as_llama
