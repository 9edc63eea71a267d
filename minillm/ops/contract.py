"""The operations of a model: one small interface, implemented once per backend.

The decoder uses only `Ops`; it contains no other code for the hardware. `reference.py` implements `Ops` in
readable PyTorch. A backend is passed to the model, so two engines in one process may use different backends.

All sequences of a step lie end to end in one token dimension, without padding:

    tokens       a a a a a | b | c c c        num_tokens = 9
    query_start  0           5   6       9    [num_seqs + 1]: sequence i has rows start[i] to start[i + 1]
    kv_len       5           12  40           [num_seqs]: tokens in the cache, new ones included

Sequence a is a whole prompt, b decodes one token, c is the last chunk of a longer prompt. Attention treats
all three with one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minillm.config import Activation, LayerSpec
from minillm.config.quantization import Form
from minillm.ops.kv_codes import CodedRows
from minillm.ops.quantized import QuantizedMatrix
from minillm.ops.sampling import SamplingBatch


@dataclass(frozen=True)
class AttentionMetadata:
    """The sequence, position and cache slot of each row of a step. All tensors are on the model's device.

    positions     int64 [num_tokens]             row of each token in the rope tables, or among the learned
                                                 positions: its position, unless longrope adds an offset
    slot_mapping  int64 [num_tokens]             cache slot of each token's key and value
    block_table   int32 [num_seqs, max_blocks]   block ids; rows are padded with any valid id
    query_start   int32 [num_seqs + 1]           row ranges, as above
    kv_len        int32 [num_seqs]               keys of each sequence, the new ones included

    `positions` is read for rotation and learned positions only. What a row may attend to follows from
    `kv_len` and `query_start`; its place in the cache is in `slot_mapping`. So longrope can add an offset to
    the positions (`model/rope.py`), and no attention kernel sees it.
    """

    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    query_start: Tensor
    kv_len: Tensor

    def first(self, count: int) -> AttentionMetadata:
        """The first `count` sequences of a step that has one token per sequence."""
        return AttentionMetadata(
            self.positions[:count],
            self.slot_mapping[:count],
            self.block_table[:count],
            self.query_start[: count + 1],
            self.kv_len[:count],
        )


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [out, in] in a backend's own layout; only that backend reads `data`.

    `dtype` is the dtype of the matrix and of the activations. A backend may store the numbers in fewer bits
    if that changes none of them. `form` is that of a quantised matrix.
    """

    data: Tensor
    out_features: int
    in_features: int
    dtype: torch.dtype
    form: Form | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), the shape of the matrix before packing."""
        return self.out_features, self.in_features

    @property
    def device(self) -> torch.device:
        """The device of `data`."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of `data`: the memory it takes, and the traffic of reading it once."""
        return self.data.nbytes

    @property
    def narrow(self) -> bool:
        """Whether the numbers of a matrix that is not quantised are stored in fewer bits than `dtype` has."""
        return self.form is None and self.data.dtype.itemsize < self.dtype.itemsize


# A quantised matrix is packed, or a `QuantizedMatrix` where a backend keeps it as it is.
Weight = Tensor | PackedWeight | QuantizedMatrix


class Matrix(NamedTuple):
    """A projection: its weight [out, in], and its bias [out] if it has one."""

    weight: Weight
    bias: Tensor | None = None


def expert_rows(size: int) -> int:
    """Rows that one expert's matrix of `size` rows takes among the others: a multiple of 16."""
    return -(-size // 16) * 16


class Routing(NamedTuple):
    """The experts of each token in rising order, and the weights of their outputs.

    chosen   int64 [num_tokens, per_token]
    weights  float32 [num_tokens, per_token]
    """

    chosen: Tensor
    weights: Tensor


class RopeTables(NamedTuple):
    """Rotary angles: `cos` and `sin`, float32 [max_positions, rotary_dim / 2]."""

    cos: Tensor
    sin: Tensor


class LayerCache(NamedTuple):
    """One layer's keys and values: each [num_blocks, block_size, num_kv_heads, head_dim].

    A cache in 8 bits has head_dim + 4 in the last place, and a layout of its own (`ops/kv_codes.py`).
    """

    k: Tensor
    v: Tensor


class Ops(Protocol):
    """One backend's implementation of all the decoder's arithmetic.

    `kernel_set` names the arithmetic: backends with equal names give equal bits. Arguments whose shapes do
    not match raise ValueError with the op, the argument and the shapes (`ops/shapes.py`).
    """

    name: str

    @property
    def kernel_set(self) -> str:
        """The name of the arithmetic; part of the KV envelope."""

    @property
    def kv_dtypes(self) -> Sequence[str]:
        """The names for `kv_dtype` that this backend has kernels for."""

    @property
    def view_keys(self) -> Callable[[Tensor], CodedRows]:
        """Shows the keys of a cache in 8 bits, which each backend lays out for its kernels."""

    @property
    def packs(self) -> bool:
        """Whether `prepare_weight` packs, and the ops accept packed weights."""

    @property
    def plain_only(self) -> bool:
        """Whether the ops take matrices [out, in] alone, not quantised ones: a replaced `linear` does."""

    def prepare_weight(self, weight: Tensor) -> Weight:
        """A matrix [out, in] in this backend's layout; called once per matrix, after loading.

        The caller must not use `weight` afterwards: its memory may be reused for the result.
        """

    def unpack_weight(self, weight: Weight) -> Tensor:
        """The matrix [out, in] that `prepare_weight` was given, bit for bit; a quantised one dequantised."""

    def begin_quantized(
        self, shape: tuple[int, int], form: Form, dtype: torch.dtype, order: Tensor | None = None
    ) -> Weight:
        """A quantised matrix [out, in] of zeros for activations of `dtype`; `put_quantized` writes its rows.

        Raises:
            BackendError: this backend has no kernels for quantised matrices.
        """

    def put_quantized(self, weight: Weight, first: int, rows: QuantizedMatrix) -> None:
        """Write rows of the matrix's form, from row `first` on."""

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        """Rows `ids` [num_tokens] of `weight` [vocab_size, hidden] -> [num_tokens, hidden]."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """`x` [num_tokens, in] times `weight` [out, in] transposed, plus `bias` [out]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """x / rms(x) * (weight + offset) over the last dimension. `x` [..., n], `weight` [n]."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """(x - mean) / deviation * weight + bias over the last dimension, like `rms_norm`."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Sum = x + residual; returns (rms_norm(sum), sum), both [num_tokens, hidden]."""

    def act_and_mul(self, gate_up: Tensor, activation: Activation = "silu") -> Tensor:
        """act(gate) * up of `gate_up` [num_tokens, 2 * n] -> [num_tokens, n].

        "swiglu_clamped" is gpt-oss's: gate * sigmoid(1.702 gate) * (up + 1), with gate cut at 7 and up at
        -7 and 7.
        """

    def act(self, x: Tensor, activation: Activation) -> Tensor:
        """The activation of every number of `x` [num_tokens, n]; not "swiglu_clamped"."""

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap) of `x` [num_rows, n]: numbers near 0 stay, none leaves (-cap, cap)."""

    def route(self, logits: Tensor, per_token: int, renormalize: bool) -> Routing:
        """The experts of each token, and their weights, from the router's `logits` [num_tokens, num_experts].

        The experts with the highest logits are chosen; of equal ones those with the lower number; NaN counts
        as the highest. The weights are a softmax over all experts, or with `renormalize` over the chosen.
        """

    def experts(
        self, x: Tensor, routing: Routing, gate_up: Matrix, down: Matrix, activation: Activation
    ) -> Tensor:
        """A mixture of gated MLPs: the weighted sum of the outputs of each token's experts, in rising order.

        `x` and the result [num_tokens, hidden]. The experts' matrices lie one below the other:
        `gate_up` [num_experts * expert_rows(2 * size), hidden], `down` [num_experts * expert_rows(hidden),
        size]; biases likewise. Only the matrices of chosen experts are read.
        """

    def rope_and_cache(
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata
    ) -> Tensor:
        """Rotate q and k by row `meta.positions` of the tables; write k and v to their cache slots.

        `q` [num_tokens, num_heads, head_dim], `k`, `v` [num_tokens, num_kv_heads, head_dim]. The tables
        have rotary_dim / 2 columns: the first rotary_dim components of a head are rotated, the others are
        kept. Returns the rotated q.
        """

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Causal attention of the new rows over their sequence's cached keys and values.

        The mask is aligned bottom-right: row r of a sequence with q_len new rows sees key c if
        c <= r + kv_len - q_len; with a window, only the last `window` of those. `q` and the result are
        [num_tokens, num_heads, head_dim]; num_heads is a multiple of num_kv_heads.
        """

    def variant_attention(
        self, q: Tensor, cache: LayerCache, meta: AttentionMetadata, spec: LayerSpec, sinks: Tensor | None
    ) -> Tensor:
        """`paged_attention` of a layer whose scores are capped (`spec.softcap`) or that has sinks.

        `sinks` [num_heads] adds one more score to the softmax of each row, and no value for it: a head can
        so attend to nothing.
        """

    def copy_blocks(self, caches: list[Tensor], source: Tensor, destination: Tensor) -> None:
        """Copy block `source[i]` to block `destination[i]` in every cache tensor."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """One token id per row of `logits` [num_rows, vocab_size]: `sampling.sample`."""

    def token_logprobs(
        self, logits: Tensor, token_ids: Tensor, tops: Sequence[int]
    ) -> list[dict[int, float]]:
        """Log-probabilities of each row's token and of its `tops[i]` best: `sampling.token_logprobs`."""

    def finite_rows(self, logits: Tensor) -> Tensor:
        """Whether each row [num_rows, vocab_size] is free of NaN and infinity: bool [num_rows]."""

    def verify_coupled(
        self, sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Coupled verification, (tokens, nodes): `verification.verify_coupled`."""

    def verify_draft(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Verification by rejection sampling, (tokens, number accepted): `verification.verify_draft`."""


def plain(weight: Weight) -> Tensor:
    """`weight`, which must not be packed: for a backend without packing."""
    if isinstance(weight, PackedWeight | QuantizedMatrix):
        raise TypeError("this weight was packed for another backend")
    return weight


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
