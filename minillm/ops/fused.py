"""The weights of a whole model by name, and a backend that runs the whole model in one call.

The decoder calls `Ops` one by one. A backend that derives from `FusedOps` gets all weights once and runs a
pass over all layers in one call, with the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.ops.contract import AttentionMetadata, Matrix, PackedWeight, RopeTables, Weight
from minillm.ops.sampling import SamplingBatch


class NormWeights(NamedTuple):
    """A norm's weight [n], and its bias [n] if it has one."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weights of one layer; None: the layer has no such part.

    `qkv` and `gate_up` are fused projections, see `model/decoder.py`; without a gate, `gate_up` is the
    projection up. `sinks` [num_heads]. The C++ struct has members of the same names
    (csrc/shared/places.h).
    """

    qkv: Matrix
    o: Matrix
    input_norm: NormWeights | None = None
    q_norm: NormWeights | None = None
    k_norm: NormWeights | None = None
    sinks: Tensor | None = None
    attention_output_norm: NormWeights | None = None
    mlp_norm: NormWeights | None = None
    gate_up: Matrix | None = None
    down: Matrix | None = None
    router: Matrix | None = None
    expert_gate_up: Matrix | None = None
    expert_down: Matrix | None = None
    mlp_output_norm: NormWeights | None = None

    def named(self) -> Iterator[tuple[str, Weight]]:
        """Every weight that is present, by name: "input_norm.weight", "qkv.weight", "qkv.bias", "sinks"."""
        for field in fields(self):
            value = getattr(self, field.name)
            parts = value._asdict() if isinstance(value, Matrix | NormWeights) else {"": value}
            for part, weight in parts.items():
                if weight is not None:
                    yield f"{field.name}.{part}".rstrip("."), weight

    def matrices(self) -> Iterator[Weight]:
        """The weights of the projections."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Matrix):
                yield value.weight


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """All weights of a decoder, and its config.

    In a tied model `head` is the same object as `embedding`. `ropes` has the tables of each layer; layers
    with the same rope share them, and the tables of a layer without rope have no columns. `positions`
    [max_positions, hidden] are the learned ones.
    """

    config: ModelConfig
    layers: tuple[LayerWeights, ...]
    embedding: Weight
    head: Weight
    final_norm: NormWeights
    ropes: tuple[RopeTables, ...]
    positions: Tensor | None = None

    def own(self) -> Iterator[tuple[str, Weight]]:
        """The weights that are not part of a layer, by name; without `positions`, which are a table."""
        yield from (("embedding.weight", self.embedding), ("head.weight", self.head))
        for part, weight in self.final_norm._asdict().items():
            if weight is not None:
                yield f"final_norm.{part}", weight

    @property
    def is_packed(self) -> bool:
        """Whether every matrix is packed."""
        in_layers = chain.from_iterable(layer.matrices() for layer in self.layers)
        return all(isinstance(matrix, PackedWeight) for matrix in (self.embedding, self.head, *in_layers))


def rounded_to(dtype: torch.dtype, value: float) -> float:
    """The number of `dtype` nearest to `value`: Gemma's embedding factor is of the model's dtype."""
    return float(torch.tensor(value, dtype=dtype))


class FusedModel(ABC):
    """A whole model and its cache, bound to a backend that runs one or several passes in one call.

    In all methods `ids` are int64 [num_tokens] and `meta` describes their rows; all these tensors are on the
    CPU, also for a model on a GPU. Keys and values are written to the bound caches. Results have the same
    bits as the decoder's loop over single ops.
    """

    @abstractmethod
    def hidden(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """`Decoder.forward`: the final norm's output [num_tokens, hidden_size]."""

    @abstractmethod
    def last_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """The logits of each sequence's last row: [num_seqs, vocab_size]."""

    @abstractmethod
    def step(
        self,
        ids: Tensor,
        meta: AttentionMetadata,
        batch: SamplingBatch,
        *,
        all_rows: bool = False,
        draw_rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A pass, `finite_rows` and `sample` in one call: (tokens, finite, logits).

        Logits are those of each sequence's last row, or with `all_rows` of every row. Draw i reads row
        `draw_rows[i]` of the logits; None: one draw per row, in order. Tokens [num_draws] and flags
        [num_rows] are on the CPU, logits [num_rows, vocab_size] on the model's device. If a row of logits is
        not finite, a token drawn from it has no meaning.
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
    def can_bind(self, weights: ModelWeights) -> bool:
        """Whether `bind` accepts these weights."""

    @abstractmethod
    def bind(self, weights: ModelWeights, k_cache: list[Tensor], v_cache: list[Tensor]) -> FusedModel:
        """The model with these weights and caches (one key and one value tensor per layer).

        This backend must have prepared the matrices. Caches and weights stay alive as long as the result.
        """
