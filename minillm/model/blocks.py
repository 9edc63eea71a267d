"""The parts of a layer: projections, norms, attention, MLP, experts. `decoder.py` joins them.

Each part calls `ops` for its arithmetic and holds its weights. Projections of the same input are stored
fused, their rows one after another: q, k and v as `qkv`, gate and up as `gate_up`. So the input is read once
instead of two or three times. The matrices of all experts of a layer are one matrix, expert below expert:

    expert_gate_up   expert 0: gate rows, up rows | expert 1: gate rows, up rows | ...

Papers: Vaswani et al. 1706.03762; Zhang & Sennrich 1910.07467 (RMSNorm); Shazeer 2002.05202 (SwiGLU);
Ainslie et al. 2305.13245 (grouped-query attention); Shazeer et al. 1701.06538 (mixture of experts).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minillm.config import ExpertSpec, LayerSpec, ModelConfig
from minillm.ops.contract import AttentionMetadata, LayerCache, Matrix, Ops, RopeTables, Weight, expert_rows
from minillm.ops.fused import LayerWeights, NormWeights


def empty(*shape: int) -> nn.Parameter:
    """An uninitialised weight; the loader or the trainer fills it."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class Linear(nn.Module):
    """x [num_tokens, in] -> [num_tokens, out]."""

    weight: Weight

    def __init__(self, ops: Ops, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.ops = ops
        self.weight = empty(out_features, in_features)
        self.bias = empty(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)

    @property
    def matrix(self) -> Matrix:
        """The weight and the bias."""
        weight, bias = self.weight, self.bias
        return Matrix(
            weight.detach() if isinstance(weight, Tensor) else weight, None if bias is None else bias.detach()
        )


class Norm(nn.Module):
    """Root-mean-square norm over the last dimension, or LayerNorm: `ModelConfig.norm_kind`."""

    def __init__(self, ops: Ops, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.ops, self.eps, self.offset = ops, config.norm_eps, config.norm_offset
        self.weight = empty(size)
        self.bias = empty(size) if config.norm_kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return self.ops.layer_norm(x, self.weight, self.bias, self.eps)
        if self.offset:
            return self.ops.rms_norm(x, self.weight, self.eps, self.offset)
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual); for Llama's norm in one op, which reads both inputs once."""
        if self.bias is None and not self.offset:
            return self.ops.add_rms_norm(x, residual, self.weight, self.eps)
        total = x + residual
        return self.forward(total), total

    @property
    def weights(self) -> NormWeights:
        """The weight and the bias."""
        return NormWeights(self.weight.detach(), None if self.bias is None else self.bias.detach())


class Attention(nn.Module):
    """Grouped-query attention over the paged cache."""

    def __init__(self, config: ModelConfig, ops: Ops, spec: LayerSpec) -> None:
        super().__init__()
        self.ops, self.config, self.spec = ops, config, spec
        c = config
        self.qkv = Linear(ops, c.hidden_size, c.q_size + 2 * c.kv_size, c.qkv_bias)
        self.o = Linear(ops, c.q_size, c.hidden_size, c.o_bias)
        self.q_norm = self.k_norm = None
        if c.qk_norm:
            q_size, k_size = (c.q_size, c.kv_size) if c.qk_norm == "wide" else (c.head_dim, c.head_dim)
            self.q_norm, self.k_norm = Norm(ops, q_size, c), Norm(ops, k_size, c)
        self.sinks = empty(c.num_attention_heads) if spec.sinks else None

    def forward(self, x: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata) -> Tensor:
        c = self.config
        q, k, v = torch.split(self.qkv.forward(x), [c.q_size, c.kv_size, c.kv_size], dim=-1)
        q, k = self._heads(q, self.q_norm), self._heads(k, self.k_norm)
        q = self.ops.rope_and_cache(q, k, v.unflatten(1, (-1, c.head_dim)), rope, cache, meta)
        return self.o.forward(self._attend(q, cache, meta).flatten(1))

    def _heads(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Split [num_tokens, num_heads * head_dim] into heads, normed as a whole before, or each after."""
        wide = self.config.qk_norm == "wide"
        if norm is not None and wide:
            x = norm.forward(x)
        x = x.unflatten(1, (-1, self.config.head_dim))
        return x if norm is None or wide else norm.forward(x)

    def _attend(self, q: Tensor, cache: LayerCache, meta: AttentionMetadata) -> Tensor:
        if self.spec.softcap is None and self.sinks is None:
            return self.ops.paged_attention(q, *cache, meta, self.spec.scale, self.spec.window)
        return self.ops.variant_attention(q, cache, meta, self.spec, self.sinks)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or without a gate: down(act(up(x)))."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops, self.config = ops, config
        up = (2 if config.gated else 1) * config.intermediate_size
        self.gate_up = Linear(ops, config.hidden_size, up, config.mlp_bias)
        self.down = Linear(ops, config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        x, activation = self.gate_up.forward(x), self.config.activation
        x = self.ops.act_and_mul(x, activation) if self.config.gated else self.ops.act(x, activation)
        return self.down.forward(x)


class Experts(nn.Module):
    """A router, and many MLPs of which each token uses a few."""

    def __init__(self, config: ModelConfig, ops: Ops, spec: ExpertSpec) -> None:
        super().__init__()
        self.ops, self.config, self.spec = ops, config, spec
        hidden, bias = config.hidden_size, config.expert_bias
        self.router = Linear(ops, hidden, spec.count, bias)
        self.gate_up = Linear(ops, hidden, spec.count * expert_rows(2 * spec.size), bias)
        self.down = Linear(ops, spec.size, spec.count * expert_rows(hidden), bias)

    def forward(self, x: Tensor) -> Tensor:
        routing = self.ops.route(self.router.forward(x), self.spec.per_token, self.spec.renormalize)
        return self.ops.experts(x, routing, self.gate_up.matrix, self.down.matrix, self.config.activation)

    def clear_padding(self) -> None:
        """Set the rows between the experts to zero; no checkpoint has numbers for them."""
        for linear, size in ((self.gate_up, 2 * self.spec.size), (self.down, self.config.hidden_size)):
            for stacked in (linear.weight, linear.bias):
                if isinstance(stacked, Tensor):
                    stacked.data.unflatten(0, (self.spec.count, -1))[:, size:] = 0


class Layer(nn.Module):
    """Attention, then MLP or experts, and the norms around them. A norm that a family lacks is None."""

    def __init__(self, config: ModelConfig, ops: Ops, spec: LayerSpec) -> None:
        super().__init__()

        def norm(*placements: str) -> Norm | None:
            return Norm(ops, config.hidden_size, config) if spec.norms in placements else None

        self.input_norm = norm("pre", "sandwich")
        self.attention = Attention(config, ops, spec)
        self.attention_output_norm = norm("post", "sandwich")
        self.mlp_norm = norm("pre", "sandwich")
        self.mlp = MLP(config, ops) if spec.experts is None else Experts(config, ops, spec.experts)
        self.mlp_output_norm = norm("post", "sandwich")

    def linears(self) -> dict[str, Linear]:
        """The projections by their names in `LayerWeights`."""
        attention, mlp = self.attention, self.mlp
        found = {"qkv": attention.qkv, "o": attention.o}
        if isinstance(mlp, MLP):
            return found | {"gate_up": mlp.gate_up, "down": mlp.down}
        return found | {"router": mlp.router, "expert_gate_up": mlp.gate_up, "expert_down": mlp.down}

    def norms(self) -> dict[str, Norm]:
        """The norms by their names in `LayerWeights`."""
        every = {
            "input_norm": self.input_norm,
            "q_norm": self.attention.q_norm,
            "k_norm": self.attention.k_norm,
            "attention_output_norm": self.attention_output_norm,
            "mlp_norm": self.mlp_norm,
            "mlp_output_norm": self.mlp_output_norm,
        }
        return {name: norm for name, norm in every.items() if norm is not None}

    def weights(self) -> LayerWeights:
        """The layer's weights by name; no tensor is copied."""
        sinks = self.attention.sinks
        named: dict[str, Any] = {name: linear.matrix for name, linear in self.linears().items()}
        named |= {name: norm.weights for name, norm in self.norms().items()}
        return LayerWeights(sinks=None if sinks is None else sinks.detach(), **named)
