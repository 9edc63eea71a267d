"""What a model is: a decoder Transformer, family differences resolved into plain fields.

`minillm.model.families` builds a `ModelConfig` from a Hugging Face `config.json`. It knows each family's keys
and remembers where every value came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: one of `default`, `linear`, `dynamic`, `llama3`, `yarn`.

    The fields below `theta` belong to the scaled kinds; `model/rope.py` says what each does.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LayerSpec:
    """What one layer does differently from others.

    window        its sliding window in tokens (the token itself included), or None for full attention
    rope          whether queries and keys are rotated to their positions
    scale         of attention scores
    norm          where the norms stand: "pre" is before attention and before the MLP
    quantization  scheme by matrix name ("qkv", "o", "gate_up", "down"), or None
    """

    window: int | None
    scale: float
    rope: bool = True
    norm: str = "pre"
    quantization: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder Transformer, family differences resolved into plain fields.

    `layers` has one entry a layer. `allowed_keys` are keys of the config that minillm does not know
    and the user takes for harmless. `sources` maps each field to the config key it came from, or "default".
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layers: tuple[LayerSpec, ...]
    dtype: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    allowed_keys: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def context_limit(self) -> int:
        """The longest sequence the position embedding is defined for."""
        if self.rope.kind == "yarn":
            return max(self.max_position_embeddings, int(self.rope.factor * self.rope.original_max_position))
        return self.max_position_embeddings

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
        h, m = self.hidden_size, self.intermediate_size
        attention = h * (self.q_size + 2 * self.kv_size) + self.q_size * h
        attention += self.qkv_bias * (self.q_size + 2 * self.kv_size) + self.o_bias * h
        attention += self.qk_norm * 2 * self.head_dim
        mlp = 3 * h * m + self.mlp_bias * (2 * m + h)
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * (attention + mlp + 2 * h) + h

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes one token occupies in the KV cache, all layers, K and V."""
        return 2 * self.num_hidden_layers * self.kv_size * dtype_bytes
