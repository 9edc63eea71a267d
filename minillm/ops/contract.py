"""What the model asks of a machine: one small interface, implemented once per backend.

The decoder is written over `Ops` and knows nothing else of the hardware. `reference.py` implements
it in readable PyTorch. A backend is passed to the model, so two engines in one process may differ.

All sequences of a step lie end to end in one flat token dimension, without padding:

    tokens       a a a a a | b | c c c        num_tokens = 9
    query_start  0           5   6       9    [num_seqs + 1]: sequence i is rows start[i]..start[i+1]
    kv_len       5           12  40           [num_seqs]: its tokens in the cache, new ones included

Sequence a is a whole prompt, b decodes one token, c is the last chunk of a longer prompt: to the
attention they are one and the same function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minillm.ops.sampling import SamplingBatch


@dataclass(frozen=True)
class AttentionMetadata:
    """Where the rows of a step belong. All on the model's device.

    positions     int64 [num_tokens]             logical position of each token in its sequence
    slot_mapping  int64 [num_tokens]             cache slot each token's key and value go to
    block_table   int32 [num_seqs, max_blocks]   block ids; rows padded with anything valid
    query_start   int32 [num_seqs + 1]           row ranges, as above
    kv_len        int32 [num_seqs]               keys each sequence has, the new ones included
    """

    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    query_start: Tensor
    kv_len: Tensor

    def first(self, count: int) -> AttentionMetadata:
        """Of a step with one token a sequence, the first `count` sequences."""
        return AttentionMetadata(
            self.positions[:count],
            self.slot_mapping[:count],
            self.block_table[:count],
            self.query_start[: count + 1],
            self.kv_len[:count],
        )


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [out, in] in the order a backend reads it; `data` is that backend's own business.

    `dtype` is that of the matrix's numbers, and of what is multiplied with them; a backend may keep them in
    fewer bits if all of them fit.
    """

    data: Tensor
    out_features: int
    in_features: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), as of the matrix itself."""
        return self.out_features, self.in_features

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """What it takes in memory, and what reading all of it moves."""
        return self.data.nbytes

    @property
    def narrow(self) -> bool:
        """Whether its numbers are kept in fewer bits than their dtype has."""
        return self.data.dtype.itemsize < self.dtype.itemsize


Weight = Tensor | PackedWeight


@dataclass(frozen=True, eq=False)  # each is its own: a backend keeps what it made of one
class LayerStack:
    """All layers of a decoder, laid out for a backend that runs them in one call.

    `tensors` holds for each layer, in this order: qkv weight, qkv bias, q norm, k norm, o weight, o
    bias, post-attention norm, gate-up weight, gate-up bias, down weight, down bias, and the norm that
    follows (the next layer's first, or the last). Matrices are packed; what a model lacks is a tensor
    without elements. `windows` has 0 for full attention.
    """

    tensors: list[Tensor]
    windows: list[int]
    num_heads: int
    intermediate_size: int
    eps: float
    scale: float


class Ops(Protocol):
    """One machine's implementation of everything the decoder does to numbers.

    `kernel_set` names the arithmetic: equal names, equal bits. Arguments whose shapes do not fit each
    other raise ValueError, with the op, the argument and the numbers: `ops/shapes.py`.
    """

    name: str

    @property
    def kernel_set(self) -> str:
        """Which arithmetic runs; part of the KV envelope."""

    def prepare_weight(self, weight: Tensor) -> Weight:
        """The form this machine reads a matrix [out, in] in; asked once per matrix, after loading.

        The matrix is given away: its memory may be reused for the result.
        """

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        """Rows `ids` [num_tokens] of `weight` [vocab_size, hidden] -> [num_tokens, hidden]."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """`x` [num_tokens, in] times `weight` [out, in] transposed, plus `bias` [out]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension. `x` [..., n], `weight` [n]."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Sum = x + residual; returns (rms_norm(sum), sum), both [num_tokens, hidden]."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of `gate_up` [num_tokens, 2 * n] -> [num_tokens, n]."""

    def rope_and_cache(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
    ) -> Tensor:
        """Rotate q and k to their positions and write k and v to their cache slots.

        `q` [num_tokens, num_heads, head_dim], `k`, `v` [num_tokens, num_kv_heads, head_dim],
        `cos`, `sin` float32 [max_positions, head_dim / 2], caches [num_blocks, block_size,
        num_kv_heads, head_dim]. Returns the rotated q.
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

        The mask is aligned bottom-right: row r of a sequence with q_len new rows sees key c when
        c <= r + kv_len - q_len, and with a window only the last `window` of those. `q` and the
        result [num_tokens, num_heads, head_dim]; num_heads is a multiple of num_kv_heads.
        """

    def copy_blocks(self, caches: list[Tensor], source: Tensor, destination: Tensor) -> None:
        """Copy block `source[i]` to block `destination[i]` in every cache tensor."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """One token id per row of `logits` [num_rows, vocab_size]: `sampling.sample`."""

    def token_logprobs(
        self, logits: Tensor, token_ids: Tensor, tops: Sequence[int]
    ) -> list[dict[int, float]]:
        """Log-probabilities of each row's token and of its `tops[i]` likeliest: `sampling.token_logprobs`."""

    def finite_rows(self, logits: Tensor) -> Tensor:
        """Whether each row [num_rows, vocab_size] is free of NaN and infinity: bool [num_rows]."""

    def verify_coupled(
        self, sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which drafted tokens are those the target drew, (tokens, nodes): `verification.verify_coupled`."""

    def verify_draft(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rejection sampling, (tokens, number accepted): `verification.verify_draft`."""


@dataclass(frozen=True)
class Ends:
    """What a decoder has around its layers: matrices [vocab_size, hidden], the first norm, rope tables."""

    embedding: PackedWeight
    head: PackedWeight
    first_norm: Tensor
    cos: Tensor
    sin: Tensor


class Pass(NamedTuple):
    """A whole model, and the rows it is to run on: `ids` as `meta` says, keys and values into the caches."""

    stack: LayerStack
    ends: Ends
    ids: Tensor
    k_cache: list[Tensor]
    v_cache: list[Tensor]
    meta: AttentionMetadata


class LayerFusion(ABC):
    """A backend that also runs all layers of the decoder, a whole pass or several decode steps in one call.

    A base class, not a protocol: an object that wraps a backend to watch or replace single ops is none,
    so the decoder walks its loop for it, op by op.
    """

    @abstractmethod
    def run_layers(
        self,
        stack: LayerStack,
        residual: Tensor,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: list[Tensor],
        v_cache: list[Tensor],
        meta: AttentionMetadata,
    ) -> Tensor:
        """What the decoder's loop over its layers does, to the bit.

        `residual` is the running sum and `x` its norm, both [num_tokens, hidden] and left alone; caches
        are one tensor a layer. Returns the last norm's output [num_tokens, hidden].
        """

    @abstractmethod
    def last_logits(self, whole: Pass) -> Tensor:
        """What `Decoder.last_logits` does op by op, to the bit: [num_seqs, vocab_size]."""

    @abstractmethod
    def decode_step(self, whole: Pass, batch: SamplingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """`last_logits`, `finite_rows` and `sample` in one call: (tokens, finite, logits) of each sequence.

        Where logits are not finite the token says nothing.
        """

    @abstractmethod
    def decode_ahead(
        self,
        whole: Pass,
        depths: Sequence[int],
        keys: Sequence[Sequence[int]],
        batch: SamplingBatch,
    ) -> list[list[int]]:
        """The next `depths[i]` tokens of each sequence, every one drawn by `sample` and fed back.

        The first step runs `ids` as `meta` says, one or several rows of each sequence; sequences with the
        most to draw come first. `keys[i]` are the noise keys of sequence i's tokens; `batch`, a row for
        each sequence, has the rest, and no repetition penalty. Block tables cover all that is fed back.
        """


def plain(weight: Weight) -> Tensor:
    """The matrix itself, for a backend that packs nothing."""
    if isinstance(weight, PackedWeight):
        raise TypeError("this weight was packed for another backend")
    return weight


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
