"""The Llama architecture for training: dense batches [batch, length] and autograd.

The engine's decoder (`minillm/model/decoder.py`) computes the same function over a paged cache,
one flat token dimension and fused projections; a test checks that the two agree on one set of
weights. Parameters carry Hugging Face's names, so a state dict is a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_THETA = 10000.0
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, named as in config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 64
    vocab_size: int = 4096


SHAPES = {
    "target": Shape(384, 768, 8, 6, 2),
    "draft": Shape(192, 768, 1, 3, 1),
}


class Cache:
    """Keys and values of the tokens so far, for a batch that grows by one token at a time."""

    def __init__(self, length: int) -> None:
        self._capacity = length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, kv_heads, 1, head_dim]; return all so far: [batch, kv_heads, length, head_dim]."""
        if layer not in self._layers:
            batch, heads, _, head_dim = k.shape
            self._layers[layer] = tuple(x.new_empty(batch, heads, self._capacity, head_dim) for x in (k, v))
        stored = self._layers[layer]
        for whole, new in zip(stored, (k, v), strict=True):
            whole[:, :, self.length] = new[:, :, 0]
        return stored[0][:, :, : self.length + 1], stored[1][:, :, : self.length + 1]


class Norm(nn.Module):
    """RMSNorm in the dtype of x; the kernel itself sums in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # it would make float32 of x
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPS)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rope over [batch, heads, length, head_dim]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, s: Shape, layer: int) -> None:
        super().__init__()
        self.shape, self._layer = s, layer
        self.q_proj = nn.Linear(s.hidden_size, s.num_attention_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * s.head_dim, s.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor:
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.shape.head_dim)
        q = _rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)
        k = _rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self._layer, k, v)
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each added to the running sum."""

    def __init__(self, s: Shape, layer: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(s, layer)
        self.mlp = MLP(s)
        self.input_layernorm = Norm(s.hidden_size)
        self.post_attention_layernorm = Norm(s.hidden_size)
        self._dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor:
        x = x + self._dropout(self.self_attn(self.input_layernorm(x), cos, sin, cache))
        return x + self._dropout(self.mlp(self.post_attention_layernorm(x)))


class _Body(nn.Module):
    def __init__(self, s: Shape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s, i, dropout) for i in range(s.num_hidden_layers))
        self.norm = Norm(s.hidden_size)


class LanguageModel(nn.Module):
    """ids [batch, length] -> logits [batch, length, vocab_size], head tied to the embedding.

    Dropout acts on what each layer adds to the sum, in training only. With a cache, `ids` is one
    token per row, [batch, 1], behind those that the cache holds.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape, dropout)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            # Layers start as the identity: what they add to the sum is zero.
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        start = cache.length if cache is not None else 0
        half = torch.arange(0, self.shape.head_dim, 2, device=ids.device).float() / self.shape.head_dim
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).float()
        angles = positions[:, None] * ROPE_THETA**-half
        x = self.model.embed_tokens(ids)
        # Most of a step is reading and writing activations: in autocast all of them take 16 bits.
        if torch.is_autocast_enabled(ids.device.type):
            x = x.to(torch.get_autocast_dtype(ids.device.type))
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.length += 1
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)
