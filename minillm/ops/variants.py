"""What model families add to Llama's arithmetic, in plain PyTorch. Kernels are checked against it.

    activations   silu, gelu (by the error function), gelu_tanh, relu, and gpt-oss's clamped SwiGLU
    softcap       cap * tanh(x / cap): Gemma 2 keeps scores and logits small
    sinks         one learned score per head in the softmax, without a value: gpt-oss's heads can attend to
                  nothing
    experts       a router picks a few MLPs for each token

        logits   0.1  2.0  0.3  1.5      per_token 2: experts 1 and 3
        weights       .62       .38      softmax over the two ("renormalize"), or over all four

Which experts a token gets, and the order in which their outputs are added, depend on that token alone: equal
logits are decided by the expert's number (contract C2).

Sources: Hendrycks & Gimpel 1606.08415 (GELU); Gemma 2 2408.00118 (softcaps); Shazeer et al. 1701.06538 and
Fedus et al. 2101.03961 (experts); the gpt-oss model card 2508.10925 (sinks, clamped SwiGLU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.config import Activation
from minillm.ops.contract import Matrix, Routing, Weight, expert_rows, plain
from minillm.ops.quantized import QuantizedMatrix

CLAMP, SIGMOID_SCALE = 7.0, 1.702  # of gpt-oss's SwiGLU
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def swiglu_clamped(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss's gate: gate * sigmoid(1.702 gate) * (up + 1), with gate cut at 7 and up at -7 and 7."""
    gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
    return gate * torch.sigmoid(gate * SIGMOID_SCALE) * (up + 1)


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap) of every number of `x`, computed in float32."""
    return (cap * torch.tanh(x.float() / cap)).to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`reference.grouped_query_attention` with a cap on the scores and a sink for each head.

    `q` and the result [q_len, num_heads, head_dim], `k`, `v` [kv_len, num_kv_heads, head_dim], `sinks`
    [num_heads].
    """
    (q_len, num_heads, _), (kv_len, num_kv_heads, _) = q.shape, k.shape
    grouped = q.unflatten(1, (num_kv_heads, num_heads // num_kv_heads)).float()
    scores = torch.einsum("qhgd,khd->hgqk", grouped, k.float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)

    row = torch.arange(q_len, device=q.device).unsqueeze(1) + (kv_len - q_len)
    col = torch.arange(kv_len, device=q.device)
    hidden = (col > row) | (col <= row - window if window is not None else False)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(num_kv_heads, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(dim=-1)[..., :kv_len]
    return torch.einsum("hgqk,khd->qhgd", weights, v.float()).reshape(q.shape).to(q.dtype)


def route(logits: Tensor, per_token: int, renormalize: bool) -> Routing:
    """`Ops.route`. A stable sort decides ties by the expert's number; `torch.topk` promises no order."""
    scores = logits.float()
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :per_token]
    chosen = best.sort(dim=-1).values
    of_chosen = scores.gather(1, chosen)
    if renormalize:
        return Routing(chosen, of_chosen.softmax(dim=-1))
    return Routing(chosen, scores.softmax(dim=-1).gather(1, chosen))


class _Gated(Protocol):
    """The two ops that an expert is made of."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor: ...

    def act_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor: ...


def experts(
    ops: _Gated, x: Tensor, routing: Routing, gate_up: Matrix, down: Matrix, activation: Activation
) -> Tensor:
    """`Ops.experts` over single ops: expert by expert, all tokens of one at a time."""
    hidden, size = x.shape[1], down.weight.shape[1]
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in routing.chosen.unique().tolist():
        token, place = (routing.chosen == expert).nonzero(as_tuple=True)
        inner = ops.act_and_mul(ops.linear(x[token], *_expert(gate_up, expert, 2 * size)), activation)
        output = ops.linear(inner, *_expert(down, expert, hidden))
        total[token] += routing.weights[token, place].unsqueeze(1) * output.float()
    return total.to(x.dtype)


def _expert(stacked: Matrix, expert: int, size: int) -> Matrix:
    """One expert's matrix of `size` rows, without the rows that fill it up."""
    first = expert * expert_rows(size)
    bias = None if stacked.bias is None else stacked.bias[first : first + size]
    if isinstance(stacked.weight, QuantizedMatrix):
        return Matrix(stacked.weight.rows(first, first + size), bias)
    return Matrix(plain(stacked.weight)[first : first + size], bias)
