"""`Ops` in plain PyTorch: the definition that kernels are checked against.

It is written to be read. It runs on every device of torch, and it is differentiable: the shipped models are
trained through these functions. It does not keep contract C2. torch chooses the order of summation by the
number of rows, so a token gets slightly different bits alone and in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.config import KV_DTYPES, Activation, LayerSpec
from minillm.config.quantization import Form
from minillm.ops import kv_codes, sampling, shapes, variants, verification
from minillm.ops.contract import AttentionMetadata, LayerCache, Matrix, RopeTables, Routing, Weight, plain
from minillm.ops.quantized import QuantizedMatrix, rounded_x

RopeFn = Callable[[Tensor, Tensor, Tensor], Tensor]
AttendFn = Callable[[Tensor, Tensor, Tensor, float, int | None], Tensor]
WriteFn = Callable[[Tensor, Tensor, Tensor], None]
ReadFn = Callable[[Tensor, Tensor, int], Tensor]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's halves: component i is paired with i + head_dim / 2, not with its neighbour.

        (a, b) -> (a cos - b sin, b cos + a sin)     a = first half, b = second half

    All tokens and heads are rotated at once: no loop over the tokens.

    Args:
        x: [num_tokens, num_heads, head_dim]; not changed. It may be a slice of a wider tensor.
        cos, sin: float32 [num_tokens, head_dim / 2], the angles of each token's position.

    Returns:
        [num_tokens, num_heads, head_dim] in x's dtype; computed in float32, and rounded once.

    Source: Su et al., "RoFormer" (arXiv 2104.09864), in the half-rotation layout of Llama.
    """
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def write_cache(cache: Tensor, slot_mapping: Tensor, rows: Tensor) -> None:
    """Write the new rows of K (or of V) to their slots of one layer's cache, in place: a scatter.

        slot_mapping  [ 9, 20, 3 ]          row 0 -> slot 9, row 1 -> slot 20, row 2 -> slot 3
        slot          block slot // block_size, place slot % block_size in that block

    Only these slots are written; the rest of the cache may be gigabytes and belongs to other sequences.

    Args:
        cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        slot_mapping: int64 [num_tokens], all different.
        rows: [num_tokens, num_kv_heads, head_dim], perhaps in another dtype than the cache; the cache keeps
            its own.
    """
    cache.flatten(0, 1).index_copy_(0, slot_mapping, rows.to(cache.dtype))


def read_cache(cache: Tensor, block_table: Tensor, num_tokens: int) -> Tensor:
    """Read the rows of K (or of V) of one sequence from one layer's cache, in order: a gather.

        block_table   [ 5, 2, 7, 0, 0 ]     10 tokens in blocks of 4: all rows of blocks 5 and 2,
                                            then the first two rows of block 7

    Only the blocks that hold these tokens are read. The table may have more entries: blocks of later tokens,
    and zeros up to the length of the longest table in the batch.

    Args:
        cache: [num_blocks, block_size, num_kv_heads, head_dim].
        block_table: int32 [width], the sequence's block ids.
        num_tokens: the number of the sequence's tokens that are in the cache.

    Returns:
        A new tensor [num_tokens, num_kv_heads, head_dim] in the cache's dtype.
    """
    block_size = cache.shape[1]
    blocks = block_table[: -(-num_tokens // block_size)]
    return cache[blocks].flatten(0, 1)[:num_tokens]


def grouped_query_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of one sequence's new rows over all its keys.

    Query head h reads kv head h // (num_heads / num_kv_heads): with 6 heads over 2 kv heads, heads
    0-2 share the first and 3-5 the second. Scores and softmax are float32.

        keys    0 1 2 3 4 5      q_len 2, kv_len 6: the new rows are the last of the sequence,
        row 0   x x x x x .      so the mask is aligned bottom-right; with a window of 3,
        row 1   x x x x x x      row 1 sees only keys 3 4 5

    The rows are computed at once: no loop over rows or keys. The mask has q_len rows, one in decode. k and v,
    the largest tensors, are not repeated for each query head.

    Args:
        q: [q_len, num_heads, head_dim]; not changed.
        k, v: [kv_len, num_kv_heads, head_dim]; not changed.
        scale: the factor of the scores, usually head_dim ** -0.5.
        window: the number of last keys that a row sees, its own included; None for all.

    Returns:
        [q_len, num_heads, head_dim] in q's dtype.
    """
    q_len, num_heads, head_dim = q.shape
    kv_len, num_kv_heads, _ = k.shape
    grouped = q.view(q_len, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("qhgd,khd->hgqk", grouped.float(), k.float()) * scale

    row = torch.arange(q_len, device=q.device).unsqueeze(1) + (kv_len - q_len)
    col = torch.arange(kv_len, device=q.device)
    hidden = col > row
    if window is not None:
        hidden |= col <= row - window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hgqk,khd->qhgd", weights, v.float()).reshape(q_len, num_heads, head_dim).to(q.dtype)


def rotate_and_write(
    rotate: RopeFn,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: RopeTables,
    cache: LayerCache,
    meta: AttentionMetadata,
    write: WriteFn = write_cache,
    view_keys: Callable[[Tensor], kv_codes.CodedRows] = kv_codes.columns,
) -> Tensor:
    """`Ops.rope_and_cache`, composed of a rope function and two cache writes; returns the rotated q.

    `write` is not used for a cache in 8 bits, whose keys `view_keys` shows (`Ops.view_keys`).
    """
    cos, sin = rope.cos[meta.positions], rope.sin[meta.positions]
    turned = _rotate_first(rotate, k, cos, sin)
    if kv_codes.has_codes(cache.k):
        kv_codes.write_rows(view_keys(cache.k), meta.slot_mapping, turned)
        kv_codes.write_rows(kv_codes.rows(cache.v), meta.slot_mapping, v)
    else:
        write(cache.k, meta.slot_mapping, turned)
        write(cache.v, meta.slot_mapping, v)
    return _rotate_first(rotate, q, cos, sin)


def _rotate_first(rotate: RopeFn, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first components of each head, as many as the tables are made for; keep the others."""
    rotary_dim = 2 * cos.shape[1]
    if rotary_dim == x.shape[-1]:
        return rotate(x, cos, sin)
    if rotary_dim == 0:
        return x
    return torch.cat([rotate(x[..., :rotary_dim], cos, sin), x[..., rotary_dim:]], dim=-1)


def attend_pages(
    attend: AttendFn,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    scale: float,
    window: int | None = None,
    read: ReadFn = read_cache,
) -> Tensor:
    """`Ops.paged_attention`, composed of a gather of each sequence's pages and a dense attention.

    `read` is not used for a cache in 8 bits.
    """
    shapes.check_attention(q, k_cache, v_cache, meta)
    in_codes = kv_codes.has_codes(k_cache)
    coded = (kv_codes.columns(k_cache), kv_codes.rows(v_cache)) if in_codes else ()
    starts, kv_lens = meta.query_start.tolist(), meta.kv_len.tolist()
    out = torch.empty_like(q)
    for i, kv_len in enumerate(kv_lens):
        rows = slice(starts[i], starts[i + 1])
        if rows.start == rows.stop:
            continue
        table = meta.block_table[i]
        if in_codes:
            k, v = (kv_codes.read_rows(cache, table, kv_len) for cache in coded)
        else:
            k, v = (read(cache, table, kv_len) for cache in (k_cache, v_cache))
        out[rows] = attend(q[rows], k, v, scale, window)
    return out


class ReferenceOps:
    """`Ops` in PyTorch. The methods are documented in `contract.py`."""

    name = "reference"
    kernel_set = "torch"
    kv_dtypes = KV_DTYPES
    view_keys = staticmethod(kv_codes.columns)
    packs = False
    plain_only = False

    def prepare_weight(self, weight: Tensor) -> Weight:
        return weight

    def unpack_weight(self, weight: Weight) -> Tensor:
        if isinstance(weight, QuantizedMatrix):
            return weight.dequantize().to(weight.dtype)
        return plain(weight)

    def begin_quantized(
        self, shape: tuple[int, int], form: Form, dtype: torch.dtype, order: Tensor | None = None
    ) -> Weight:
        return QuantizedMatrix.empty(shape, form, dtype, order)

    def put_quantized(self, weight: Weight, first: int, rows: QuantizedMatrix) -> None:
        if isinstance(weight, QuantizedMatrix):
            weight.put(first, rows)

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        shapes.check_embedding(ids, weight)
        if isinstance(weight, QuantizedMatrix):
            return weight.dequantize(ids).to(weight.dtype)
        return F.embedding(ids, plain(weight))

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        shapes.check_linear(x, weight, bias)
        if isinstance(weight, QuantizedMatrix):  # the weights keep all their digits
            own = None if bias is None else bias.float()
            rows = rounded_x(x, weight.form, weight.order) if weight.form.int8_x else x.float()
            return F.linear(rows, weight.dequantize(), own).to(x.dtype)
        return F.linear(x, plain(weight), bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        shapes.check_norm("rms_norm", x, weight)
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
        if offset:
            return (normed * (weight.float() + offset)).to(x.dtype)
        return normed.to(x.dtype) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        shapes.check_norm("layer_norm", x, weight)
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        shapes.check_norm("add_rms_norm", x, weight, residual)
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def act_and_mul(self, gate_up: Tensor, activation: Activation = "silu") -> Tensor:
        shapes.check_act_and_mul(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        if activation == "swiglu_clamped":
            return variants.swiglu_clamped(gate, up)
        return self.act(gate, activation) * up

    def act(self, x: Tensor, activation: Activation) -> Tensor:
        return variants.ACTIVATIONS[activation](x)

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return variants.softcap(x, cap)

    def route(self, logits: Tensor, per_token: int, renormalize: bool) -> Routing:
        return variants.route(logits, per_token, renormalize)

    def experts(
        self, x: Tensor, routing: Routing, gate_up: Matrix, down: Matrix, activation: Activation
    ) -> Tensor:
        shapes.check_experts(x, routing, gate_up, down)
        return variants.experts(self, x, routing, gate_up, down, activation)

    def rope_and_cache(
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata
    ) -> Tensor:
        shapes.check_rope(q, k, v, rope, cache, meta)
        return rotate_and_write(apply_rope, q, k, v, rope, cache, meta)

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        return attend_pages(grouped_query_attention, q, k_cache, v_cache, meta, scale, window)

    def variant_attention(
        self, q: Tensor, cache: LayerCache, meta: AttentionMetadata, spec: LayerSpec, sinks: Tensor | None
    ) -> Tensor:
        shapes.check_sinks(q, sinks)
        attend = partial(variants.attention, softcap=spec.softcap, sinks=sinks)
        return attend_pages(attend, q, *cache, meta, spec.scale, spec.window)

    def copy_blocks(self, caches: list[Tensor], source: Tensor, destination: Tensor) -> None:
        shapes.check_copy(caches, source, destination)
        for cache in caches:
            cache[destination] = cache[source]

    def sample(self, logits: Tensor, batch: sampling.SamplingBatch) -> Tensor:
        return sampling.sample(logits, batch)

    def token_logprobs(
        self, logits: Tensor, token_ids: Tensor, tops: Sequence[int]
    ) -> list[dict[int, float]]:
        return sampling.token_logprobs(logits, token_ids, tops)

    def finite_rows(self, logits: Tensor) -> Tensor:
        return sampling.finite_rows(logits)

    def verify_coupled(
        self, sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        shapes.check_verify_coupled(sampled, drafted, parents, node_start)
        return verification.verify_coupled(sampled, drafted, parents, node_start)

    def verify_draft(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        shapes.check_verify_draft(draft, draft_probs, target_probs, uniforms)
        return verification.verify_draft(draft, draft_probs, target_probs, uniforms)
