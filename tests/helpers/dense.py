"""An independent computation of the tiny model: one dense pass over a whole sequence, without a cache.

It uses no code of the package. Attention is a loop over query heads and rows, so grouping, mask and window
are implemented separately from the code under test.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: Tensor, theta: float = 10000.0) -> Tensor:
    """x [tokens, heads, dim]: pair i with i + dim/2."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(len(x)).double(), theta ** (-torch.arange(half).double() / half))
    turned = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1).contiguous())
    turned = turned * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    return torch.cat([turned.real, turned.imag], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    group = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        for row in range(len(q)):
            first = 0 if window is None else max(0, row - window + 1)
            scores = k[first : row + 1, head // group] @ q[row, head] / q.shape[-1] ** 0.5
            out[row, head] = scores.softmax(0) @ v[first : row + 1, head // group]
    return out


def logits(cfg: dict[str, Any], weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """float64 [len(ids), vocab_size]."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, kv_heads, eps = cfg["num_attention_heads"], cfg["num_key_value_heads"], cfg["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][ids]
    for i in range(cfg["num_hidden_layers"]):
        layer = {n.split(".", 3)[3]: t for n, t in w.items() if n.startswith(f"model.layers.{i}.")}
        y = norm(x, layer["input_layernorm.weight"], eps)
        q, k, v = (
            y @ layer[f"self_attn.{name}_proj.weight"].T + layer.get(f"self_attn.{name}_proj.bias", 0)
            for name in "qkv"
        )
        q, k = (t.view(len(ids), n, -1) for t, n in ((q, heads), (k, kv_heads)))
        if cfg.get("qk_norm", "self_attn.q_norm.weight" in layer):
            q, k = (norm(t, layer[f"self_attn.{name}_norm.weight"], eps) for t, name in ((q, "q"), (k, "k")))
        q, k = rotate(q), rotate(k)
        out = attend(q, k, v.view(len(ids), kv_heads, -1), cfg.get("sliding_window"))
        x = x + out.flatten(1) @ layer["self_attn.o_proj.weight"].T
        y = norm(x, layer["post_attention_layernorm.weight"], eps)
        gate, up = y @ layer["mlp.gate_proj.weight"].T, y @ layer["mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ layer["mlp.down_proj.weight"].T
    head = w["model.embed_tokens.weight" if cfg["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x, w["model.norm.weight"], eps) @ head.T
