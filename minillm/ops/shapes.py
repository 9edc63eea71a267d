"""Errors for wrong shapes: they name the op, the argument, the shapes, and the config key if there is one.

The checks read shapes only, so each costs a microsecond and works for every backend. The backend itself
checks the content of index tensors (an id beyond the vocabulary, a block that does not exist).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minillm.ops.contract import (
    AttentionMetadata,
    LayerCache,
    Matrix,
    RopeTables,
    Routing,
    Weight,
    expert_rows,
)
from minillm.ops.kv_codes import logical_shape


def check_embedding(ids: Tensor, weight: Weight) -> None:
    """`ids` [num_tokens], `weight` [vocab_size, hidden]. This check and all others raise ValueError."""
    _need_dims("embedding", "ids", ids, 1)
    _need_dims("embedding", "weight", weight, 2)


def check_linear(x: Tensor, weight: Weight, bias: Tensor | None) -> None:
    """`x` [..., in], `weight` [out, in], `bias` [out] or None."""
    _need_dims("linear", "weight", weight, 2)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x is {_of(x)}, weight is {_of(weight)}: in-features differ")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"linear: bias is {_of(bias)}, weight has {weight.shape[0]} outputs")


def check_norm(op: str, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> None:
    """`x` [..., n], `weight` [n], `residual` like `x`."""
    if x.dim() == 0 or tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(
            f"{op}: weight is {_of(weight)}, x is {_of(x)}: weight needs the size of x's last dimension"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"{op}: residual is {_of(residual)}, x is {_of(x)}: the shapes must be equal")


def check_act_and_mul(gate_up: Tensor) -> None:
    """`gate_up` [..., 2 * n]."""
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"act_and_mul: gate_up is {_of(gate_up)}, not [..., 2 * intermediate_size]")


def check_experts(x: Tensor, routing: Routing, gate_up: Matrix, down: Matrix) -> None:
    """Shapes as in `Ops.experts`."""
    op, (chosen, weights) = "experts", routing
    _need_dims(op, "x", x, 2)
    _need_dims(op, "chosen", chosen, 2)
    (rows, hidden), size = x.shape, down.weight.shape[1]
    if chosen.shape != weights.shape or chosen.shape[0] != rows:
        raise ValueError(
            f"{op}: chosen is {_of(chosen)}, weights is {_of(weights)}: both need one row for each of {rows}"
        )
    of_gate_up, of_down = expert_rows(2 * size), expert_rows(hidden)
    count = gate_up.weight.shape[0] // of_gate_up
    if gate_up.weight.shape != (count * of_gate_up, hidden) or down.weight.shape[0] != count * of_down:
        raise ValueError(
            f"{op}: gate_up is {_of(gate_up.weight)}, down {_of(down.weight)}: not the stacked matrices of "
            f"experts of size {size} over {hidden} numbers"
        )


def check_chosen(chosen: Tensor, count: int) -> None:
    """Experts that exist: 0 to `count` - 1. Reads the numbers, so on a GPU it waits."""
    outside = chosen[(chosen < 0) | (chosen >= count)]
    if outside.numel():
        raise ValueError(f"experts: expert {outside[0].item()} is chosen, and there are {count}")


def check_rope(
    q: Tensor, k: Tensor, v: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata
) -> None:
    """Shapes as in `Ops.rope_and_cache`."""
    op, (cos, sin) = "rope_and_cache", rope
    _check_caches(op, q, cache.k, cache.v)
    num_tokens, (_, _, num_kv_heads, head_dim) = q.shape[0], logical_shape(cache.k)
    for name, tensor in (("k", k), ("v", v)):
        if tuple(tensor.shape) != (num_tokens, num_kv_heads, head_dim):
            raise ValueError(
                f"{op}: {name} is {_of(tensor)}, q has {num_tokens} tokens and the cache "
                f"{num_kv_heads} kv heads of {head_dim}"
            )
    if cos.dim() != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > head_dim:
        raise ValueError(
            f"{op}: cos is {_of(cos)}, sin is {_of(sin)}: both must have rotary_dim / 2 columns, "
            f"at most half of head_dim, which is {head_dim}"
        )
    for name, tensor in (("positions", meta.positions), ("slot_mapping", meta.slot_mapping)):
        if tuple(tensor.shape) != (num_tokens,):
            raise ValueError(f"{op}: {name} is {_of(tensor)}, q has {num_tokens} tokens")


def check_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata) -> None:
    """Shapes as in `Ops.paged_attention`."""
    op = "paged_attention"
    _check_caches(op, q, k_cache, v_cache)
    num_heads, num_kv_heads = q.shape[1], k_cache.shape[2]
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(
            f"{op}: q has {num_heads} heads, not divisible by {num_kv_heads} kv heads "
            "(config num_key_value_heads)"
        )
    num_seqs = meta.kv_len.shape[0]
    _need_dims(op, "block_table", meta.block_table, 2)
    if meta.query_start.shape[0] != num_seqs + 1 or meta.block_table.shape[0] != num_seqs:
        raise ValueError(
            f"{op}: kv_len has {num_seqs} sequences, query_start needs {num_seqs + 1} "
            f"entries and has {meta.query_start.shape[0]}, block_table has {meta.block_table.shape[0]} rows"
        )


def check_sinks(q: Tensor, sinks: Tensor | None) -> None:
    """`q` [num_tokens, num_heads, head_dim], `sinks` [num_heads] or None."""
    if sinks is not None and tuple(sinks.shape) != (q.shape[1],):
        raise ValueError(f"variant_attention: sinks is {_of(sinks)}, q has {q.shape[1]} heads")


def check_copy(caches: Sequence[Tensor], source: Tensor, destination: Tensor) -> None:
    """`source` and `destination` [count], equal in length."""
    if source.dim() != 1 or source.shape != destination.shape:
        raise ValueError(f"copy_blocks: source is {_of(source)}, destination {_of(destination)}")


def check_verify_coupled(sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor) -> None:
    """`sampled`, `drafted` and `parents` [num_nodes], `node_start` [num_requests + 1]."""
    op = "verify_coupled"
    _need_dims(op, "sampled", sampled, 1)
    for name, tensor in (("drafted", drafted), ("parents", parents)):
        if tensor.shape != sampled.shape:
            raise ValueError(f"{op}: {name} is {_of(tensor)}, sampled has {sampled.shape[0]} nodes")
    if node_start.dim() != 1 or node_start.shape[0] < 1:
        raise ValueError(f"{op}: node_start is {_of(node_start)}, it must be [num_requests + 1]")


def check_verify_draft(
    draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
) -> None:
    """`draft` [n, k], `draft_probs` [n, k, v], `target_probs` [n, k + 1, v], `uniforms` [n, k + 1]."""
    op = "verify_draft"
    _need_dims(op, "draft", draft, 2)
    _need_dims(op, "target_probs", target_probs, 3)
    (count, k), vocab_size = draft.shape, target_probs.shape[2]
    wanted = {
        "target_probs": (target_probs, (count, k + 1, vocab_size)),
        "uniforms": (uniforms, (count, k + 1)),
    }
    if draft_probs is not None:
        wanted["draft_probs"] = (draft_probs, (count, k, vocab_size))
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{op}: {name} is {_of(tensor)}, not {list(shape)}: draft has {count} requests of up to {k}"
            )


def _check_caches(op: str, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    _need_dims(op, "q", q, 3)
    _need_dims(op, "k_cache", k_cache, 4)
    if k_cache.shape != v_cache.shape or q.shape[2] != logical_shape(k_cache)[3]:
        raise ValueError(
            f"{op}: q has head_dim {q.shape[2]}, k_cache is {_of(k_cache)}, v_cache {_of(v_cache)}"
        )


def _need_dims(op: str, name: str, tensor: Weight, count: int) -> None:
    if len(tensor.shape) != count:
        raise ValueError(f"{op}: {name} is {_of(tensor)}, it needs {count} dimensions")


def _of(tensor: Weight) -> str:
    return str(list(tensor.shape))
