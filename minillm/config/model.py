"""What a model is: a decoder Transformer, family differences resolved into plain fields.

`minillm.model.families` builds a `ModelConfig` from a Hugging Face `config.json`. It knows each family's keys
and remembers where every value came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from minillm.config.quantization import Form


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: `default`, `linear`, `dynamic`, `llama3`, `yarn` or `longrope`.

    `rotary_factor` is the part of each head that is rotated. The fields below it belong to the scaled kinds;
    `model/rope.py` says what each does.
    """

    kind: str = "default"
    theta: float = 10000.0
    rotary_factor: float = 1.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def rotary_dim(self, head_dim: int) -> int:
        """The number of a head's first components that are rotated."""
        return int(head_dim * self.rotary_factor)


@dataclass(frozen=True)
class ExpertSpec:
    """The mixture of experts that stands in the place of a layer's MLP.

    count         experts in the layer
    per_token     experts that each token uses
    size          the intermediate size of one expert
    renormalize   whether the weights of the chosen experts are scaled to sum to 1
    """

    count: int
    per_token: int
    size: int
    renormalize: bool


Norms = Literal["pre", "post", "sandwich"]
SCALE_BYTES = 4  # of a scale in a KV cache in 8 bits
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped"]


@dataclass(frozen=True)
class LayerSpec:
    """What one layer does differently from others.

    window        its sliding window in tokens (the token itself included), or None for full attention
    scale         of attention scores
    rope          how queries and keys are rotated to their positions, or None: they are not rotated
    norms         where they stand: "pre", before attention and MLP; "post", after both; "sandwich", on
                  both sides
    softcap       attention scores s become softcap * tanh(s / softcap), or None
    sinks         whether each head has a learned score that takes a part of the softmax and adds nothing
    experts       None: the layer has one MLP
    quantization  form by matrix name ("qkv", "o", "gate_up", "down"), or None: nothing is quantised
    """

    window: int | None
    scale: float
    rope: RopeConfig | None = field(default_factory=RopeConfig)
    norms: Norms = "pre"
    softcap: float | None = None
    sinks: bool = False
    experts: ExpertSpec | None = None
    quantization: Mapping[str, Form] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder Transformer, family differences resolved into plain fields.

    `layers` has one entry a layer. The fields from `norm_kind` to `logits_softcap` have Llama's values as
    defaults:

    norm_kind           "rms", or "layer": LayerNorm, with a bias
    norm_offset         a norm multiplies by (weight + offset); Gemma stores weights around 0
    qk_norm             norms on queries and keys: "head", each head apart; "wide", over all heads; None
    activation          of the MLP: "silu", "gelu", "gelu_tanh", "relu", or "swiglu_clamped" (gpt-oss)
    gated               whether the MLP has a gate: down(act(gate(x)) * up(x)); else down(act(up(x)))
    expert_bias         whether router and experts have biases
    learned_positions   whether a learned vector per position is added to the embedding
    embedding_scale     multiplies the embedding, rounded to the model's dtype
    residual_scale      multiplies what attention and MLP add
    logits_divisor      divides the logits
    logits_softcap      logits x become softcap * tanh(x / softcap), or None
    multimodal          whether this is the text model of a checkpoint that has a vision part, too
    quantization        form of "embedding" and "head", or None
    kv_dtype            "int8" or "fp8": keys and values are stored as codes, with a float32 scale for each
                        token and head; None: as numbers of the model's dtype

    `allowed_keys` are keys of the config that minillm does not know and the user takes for harmless.
    `sources` maps each field to the config key it came from, or "default".
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    layers: tuple[LayerSpec, ...]
    norm_kind: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    qk_norm: Literal["head", "wide"] | None = None
    activation: Activation = "silu"
    gated: bool = True
    expert_bias: bool = False
    learned_positions: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    logits_softcap: float | None = None
    multimodal: bool = False
    quantization: Mapping[str, Form] | None = None
    kv_dtype: str | None = None
    dtype: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    allowed_keys: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The different ropes of the layers, in the order of their first layer."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None))

    @property
    def context_limit(self) -> int:
        """The longest sequence the position embedding is defined for."""
        stretched = [int(r.factor * r.original_max_position) for r in self.ropes if r.kind == "yarn"]
        return max([self.max_position_embeddings, *stretched])

    @property
    def q_size(self) -> int:
        """Columns of the query projection: num_attention_heads * head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key (and of the value) projection: num_key_value_heads * head_dim."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights of the model, a tied embedding counted once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        positions = self.learned_positions * self.max_position_embeddings * self.hidden_size
        layers = sum(self._layer_parameters(layer) for layer in self.layers)
        return embeddings + positions + layers + self._norm_parameters

    def mlp_parameters(self, layer: LayerSpec, num_experts: int | None = None) -> int:
        """Weights of one layer's MLP; of `num_experts` of its experts and the router, by default of all."""
        h, experts = self.hidden_size, layer.experts
        if experts is None:
            return self._gated_parameters(self.intermediate_size, self.mlp_bias)
        each = self._gated_parameters(experts.size, self.expert_bias)
        count = experts.count if num_experts is None else num_experts
        return count * each + experts.count * (h + self.expert_bias)

    def kv_bytes_per_layer(self, dtype_bytes: int) -> int:
        """Bytes one token occupies in the KV cache of one layer, K and V; in 8 bits with its scales."""
        if self.kv_dtype is not None:
            return 2 * self.num_key_value_heads * (self.head_dim + SCALE_BYTES)
        return 2 * self.kv_size * dtype_bytes

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """The same in all layers."""
        return self.num_hidden_layers * self.kv_bytes_per_layer(dtype_bytes)

    def _layer_parameters(self, layer: LayerSpec) -> int:
        h, qkv = self.hidden_size, self.q_size + 2 * self.kv_size
        attention = h * qkv + self.q_size * h + self.qkv_bias * qkv + self.o_bias * h
        attention += layer.sinks * self.num_attention_heads
        attention += {None: 0, "head": 2 * self.head_dim, "wide": self.q_size + self.kv_size}[self.qk_norm]
        norms = (4 if layer.norms == "sandwich" else 2) * self._norm_parameters
        return attention + self.mlp_parameters(layer) + norms

    def _gated_parameters(self, inner: int, bias: bool) -> int:
        up = (2 if self.gated else 1) * inner
        return self.hidden_size * (up + inner) + bias * (up + self.hidden_size)

    @property
    def _norm_parameters(self) -> int:
        return (2 if self.norm_kind == "layer" else 1) * self.hidden_size
