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

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.ops.sampling import SamplingBatch


@dataclass(frozen=True)
class AttentionMetadata:
    """The sequence, position and cache slot of each row of a step. All tensors are on the model's device.

    positions     int64 [num_tokens]             position of each token in its sequence
    slot_mapping  int64 [num_tokens]             cache slot of each token's key and value
    block_table   int32 [num_seqs, max_blocks]   block ids; rows are padded with any valid id
    query_start   int32 [num_seqs + 1]           row ranges, as above
    kv_len        int32 [num_seqs]               keys of each sequence, the new ones included
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
    if that changes none of them.
    """

    data: Tensor
    out_features: int
    in_features: int
    dtype: torch.dtype

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
        """Whether the numbers are stored in fewer bits than `dtype` has."""
        return self.data.dtype.itemsize < self.dtype.itemsize


Weight = Tensor | PackedWeight


class RopeTables(NamedTuple):
    """Rotary angles: `cos` and `sin`, float32 [max_positions, head_dim / 2]."""

    cos: Tensor
    sin: Tensor


class LayerCache(NamedTuple):
    """One layer's keys and values: each [num_blocks, block_size, num_kv_heads, head_dim]."""

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
    def packs(self) -> bool:
        """Whether `prepare_weight` packs, and the ops accept packed weights."""

    def prepare_weight(self, weight: Tensor) -> Weight:
        """A matrix [out, in] in this backend's layout; called once per matrix, after loading.

        The caller must not use `weight` afterwards: its memory may be reused for the result.
        """

    def unpack_weight(self, weight: Weight) -> Tensor:
        """The matrix [out, in] that `prepare_weight` was given, bit for bit."""

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
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTables, cache: LayerCache, meta: AttentionMetadata
    ) -> Tensor:
        """Rotate q and k by their positions and write k and v to their cache slots.

        `q` [num_tokens, num_heads, head_dim], `k`, `v` [num_tokens, num_kv_heads, head_dim]. Returns
        the rotated q.
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


class Matrix(NamedTuple):
    """A projection: its weight [out, in], and its bias [out] if it has one."""

    weight: Weight
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weights of one layer. `q_norm` and `k_norm` [head_dim] are None if the model has none.

    `qkv` and `gate_up` are fused projections, see `model/decoder.py`. The C++ struct has members of the same
    names (csrc/cpu/bind_weights.cpp).
    """

    input_norm: Tensor
    qkv: Matrix
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Matrix
    post_attention_norm: Tensor
    gate_up: Matrix
    down: Matrix

    def named(self) -> Iterator[tuple[str, Weight]]:
        """Every weight that is present, by name: "input_norm", "qkv.weight", "qkv.bias", ..."""
        for field in fields(self):
            value = getattr(self, field.name)
            parts = value._asdict() if isinstance(value, Matrix) else {"": value}
            for part, weight in parts.items():
                if weight is not None:
                    yield f"{field.name}.{part}".rstrip("."), weight


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """All weights of a decoder, and its config. In a tied model `head` is the same object as `embedding`."""

    config: ModelConfig
    layers: tuple[LayerWeights, ...]
    embedding: Weight
    head: Weight
    final_norm: Tensor
    rope: RopeTables

    @property
    def is_packed(self) -> bool:
        """Whether every matrix is packed."""
        named = chain.from_iterable(layer.named() for layer in self.layers)
        matrices = [self.embedding, self.head, *(w for name, w in named if name.endswith(".weight"))]
        return all(isinstance(matrix, PackedWeight) for matrix in matrices)


class FusedModel(ABC):
    """A whole model and its cache, bound to a backend that runs one or several passes in one call.

    In all methods `ids` are int64 [num_tokens] and `meta` describes their rows. Keys and values are written
    to the bound caches. Results have the same bits as the decoder's loop over single ops.
    """

    @abstractmethod
    def hidden(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """`Decoder.forward`: the final norm's output [num_tokens, hidden_size]."""

    @abstractmethod
    def last_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """The logits of each sequence's last row: [num_seqs, vocab_size]."""

    @abstractmethod
    def decode_step(
        self, ids: Tensor, meta: AttentionMetadata, batch: SamplingBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`last_logits`, `finite_rows` and `sample` in one call: (tokens, finite, logits) of each sequence.

        If a row of logits is not finite, its token has no meaning.
        """

    @abstractmethod
    def decode_ahead(
        self,
        ids: Tensor,
        meta: AttentionMetadata,
        depths: Sequence[int],
        keys: Sequence[Sequence[int]],
        batch: SamplingBatch,
    ) -> list[list[int]]:
        """The next `depths[i]` tokens of each sequence, each drawn by `sample` and fed back.

        The first step runs `ids` with `meta`, one or several rows per sequence. Sequences are sorted by
        depth, the deepest first. `keys[i]` are the noise keys of sequence i's tokens; the other sampling
        parameters are in `batch`, one row per sequence, without a repetition penalty. Block tables must
        cover all tokens fed back.
        """


class FusedOps(ABC):
    """A backend that can also run a whole model in one call.

    This is a base class, not a protocol. So an object that wraps a backend, to observe or replace single
    ops, is not an instance, and the decoder runs its layers op by op.
    """

    @abstractmethod
    def bind(self, weights: ModelWeights, k_cache: list[Tensor], v_cache: list[Tensor]) -> FusedModel:
        """The model with these weights and caches (one key and one value tensor per layer).

        `weights.is_packed` must be true, and this backend must have packed the matrices. Caches and weights
        stay alive as long as the result.
        """


def plain(weight: Weight) -> Tensor:
    """`weight`, which must not be packed: for a backend without packing."""
    if isinstance(weight, PackedWeight):
        raise TypeError("this weight was packed for another backend")
    return weight


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
