"""What model families add to a layer, in float64, written directly from the formulas; see `oracle.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import torch
from cases import Case
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * torch.erfc(-x / math.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: torch.where(x < 0, 0.0, x),
}


def act_and_mul(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    if activation == "swiglu_clamped":
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        return gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)
    return ACTIVATIONS[activation](gate) * up


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    apart = x.double() - x.double().mean(-1, keepdim=True)
    return apart / (apart.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double() + bias.double()


def variant_attention(
    case: Case,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: list[list[int]],
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Row by row and head by head, like `oracle.paged_attention`."""
    out, row, group = torch.full(q.shape, math.nan, dtype=torch.float64), 0, case.heads // case.kv_heads
    for table, (q_len, kv_len) in zip(tables, case.seqs, strict=True):
        slots = [(table[p // case.block_size], p % case.block_size) for p in range(kv_len)]
        for position in range(kv_len - q_len, kv_len):
            first = 0 if case.window is None else max(0, position + 1 - case.window)
            visible = slots[first : position + 1]
            for head in range(case.heads):
                k, v = (
                    torch.stack([c[s][head // group] for s in visible]).double() for c in (k_cache, v_cache)
                )
                scores = k @ q[row, head].double() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                sink = torch.zeros(0) if sinks is None else sinks[head : head + 1]
                weights = torch.cat([scores, sink.double()]).softmax(0)[: len(visible)]
                out[row, head] = weights @ v
            row += 1
    return out


def route(logits: Tensor, per_token: int, renormalize: bool) -> tuple[list[list[int]], Tensor]:
    """Chosen experts and their weights; Python's sort is stable, so ties go to the lower number."""
    chosen, weights = [], []
    for row in logits.double().tolist():
        key = [-math.inf if math.isnan(x) else -x for x in row]
        nan_first = sorted(range(len(row)), key=lambda e: (not math.isnan(row[e]), key[e]))
        chosen.append(sorted(nan_first[:per_token]))
        scores = torch.tensor(row, dtype=torch.float64)
        of_chosen = scores[chosen[-1]]
        weights.append(of_chosen.softmax(0) if renormalize else scores.softmax(0)[chosen[-1]])
    return chosen, torch.stack(weights) if weights else torch.zeros(0, per_token, dtype=torch.float64)


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: list[Tensor],
    gate_up_bias: list[Tensor] | None,
    down: list[Tensor],
    down_bias: list[Tensor] | None,
    activation: str,
) -> Tensor:
    """One token and one expert at a time; the matrices are those of single experts."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(chosen.tolist()):
        for n, e in enumerate(row):
            first = oracle.linear(x[token], gate_up[e], gate_up_bias and gate_up_bias[e])
            inner = act_and_mul(first, activation)
            out[token] += weights[token, n].double() * oracle.linear(
                inner, down[e], down_bias and down_bias[e]
            )
    return out
