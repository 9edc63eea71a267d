"""One forward pass: from "these tokens of these sequences" to hidden states.

The runner owns the decoder and the cache tensors, and is the only place where Python lists become
index tensors. Prefill and decode differ in what they ask for, not in how it is run: both hand over
a list of `SequenceRows`.

    rows  a: tokens 0..4 of 5      ids          a0 a1 a2 a3 a4 | b9 | c8 c9 ca
          b: token  9 of 10   ->   positions     0  1  2  3  4 |  9 |  8  9 10
          c: tokens 8..10 of 11    query_start   0              5    6          9
                                   kv_len        5               10   11
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.memory.block_table import slot_mapping
from minillm.memory.kv_cache import KVCache
from minillm.model.decoder import Decoder
from minillm.ops.columns import column
from minillm.ops.contract import AttentionMetadata, FusedModel, FusedOps
from minillm.ops.sampling import SamplingBatch

SlotMapping = Callable[[Sequence[int], Sequence[int], int], list[int]]


@dataclass(frozen=True)
class SequenceRows:
    """The new tokens of one sequence: `token_ids` from position `start` on, and its block table."""

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]

    @property
    def end(self) -> int:
        """Tokens of the sequence in the cache once these are written."""
        return self.start + len(self.token_ids)


class ModelRunner:
    """Runs the decoder over a paged cache. `slot_mapping` may be replaced (a seam for labs)."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, block_size: int, slots: SlotMapping = slot_mapping
    ) -> None:
        self.decoder, self.cache, self.block_size = decoder, cache, block_size
        self.device = decoder.embed_tokens.device
        self._slots = slots
        self._fused: FusedModel | None = None  # where the backend runs a whole pass in one call
        weights = decoder.weights()
        if isinstance(decoder.ops, FusedOps) and weights.is_packed:
            self._fused = decoder.ops.bind(weights, cache.k, cache.v)

    @property
    def is_fused(self) -> bool:
        """Whether `decode_step` and `decode_ahead` can be called."""
        return self._fused is not None

    def forward(self, batch: Sequence[SequenceRows]) -> Tensor:
        """Run all rows of `batch` in one pass and write their keys and values to the cache.

        Returns:
            Hidden states [num_tokens, hidden_size], sequences end to end in the order given.
        """
        ids, meta = self._pass(batch)
        if self._fused:
            return self._fused.hidden(ids, meta)
        return self.decoder.forward(ids, self.cache.k, self.cache.v, meta)

    def last_logits(self, batch: Sequence[SequenceRows]) -> Tensor:
        """One pass, and the logits of each sequence's last row only: [len(batch), vocab_size]."""
        return self.step_logits(*self._pass(batch))

    def decode_step(
        self, batch: Sequence[SequenceRows], sampling: SamplingBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`last_logits` and a draw from each row, where `is_fused`: (tokens, finite, logits)."""
        return self._require_fused().decode_step(*self._pass(batch), sampling)

    def all_logits(self, batch: Sequence[SequenceRows]) -> Tensor:
        """`forward`, then the logits of every row: [num_tokens, vocab_size]."""
        return self.decoder.logits(self.forward(batch))

    def step_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """Logits [num_seqs, vocab_size] behind each sequence's last row of `ids` [num_tokens].

        The head is the largest matrix of a small model; a prompt needs it once, not per token.
        """
        if self._fused:
            return self._fused.last_logits(ids, meta)
        hidden = self.decoder.forward(ids, self.cache.k, self.cache.v, meta)
        last = hidden if len(hidden) == len(meta.kv_len) else hidden[meta.query_start[1:] - 1]
        return self.decoder.logits(last)

    def decode_ahead(
        self,
        batch: Sequence[SequenceRows],
        depths: Sequence[int],
        keys: Sequence[Sequence[int]],
        sampling: SamplingBatch,
    ) -> list[list[int]]:
        """The next `depths[i]` tokens of each sequence in one call, where `is_fused`.

        Sequences with the most to draw come first; `keys[i]` are the noise keys of sequence i's tokens.
        """
        return self._require_fused().decode_ahead(*self._pass(batch), depths, keys, sampling)

    def copy_blocks(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy each source block to its destination, in all layers."""
        index = self._tensor(sources), self._tensor(destinations)
        self.decoder.ops.copy_blocks([*self.cache.k, *self.cache.v], *index)

    def metadata(self, batch: Sequence[SequenceRows]) -> AttentionMetadata:
        """Whose row is whose, as tensors: what attention and the cache's writes go by."""
        positions: list[int] = []
        slots: list[int] = []
        query_start = [0]
        for rows in batch:
            new = range(rows.start, rows.end)
            positions += new
            slots += self._slots(rows.block_ids, new, self.block_size)
            query_start.append(len(positions))
        return AttentionMetadata(
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slots),
            block_table=self._table([rows.block_ids for rows in batch]),
            query_start=self._tensor(query_start, torch.int32),
            kv_len=self._tensor([rows.end for rows in batch], torch.int32),
        )

    def step_metadata(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> list[AttentionMetadata]:
        """Metadata of several decode steps to come, made at once.

        Args:
            rows: (next position, block ids, number of steps) of each sequence, the most steps first.

        Returns:
            One for each step; step i holds the first sequences, those that have more than i steps.
        """
        count, width, size = rows[0][2], len(rows), self.block_size
        positions = [at + step for step in range(count) for at, _, _ in rows]
        slots = [self._slots(ids, range(at, at + n), size) + [0] * (count - n) for at, ids, n in rows]
        by_step = [slot for step in zip(*slots, strict=True) for slot in step]
        fields = (  # [count, width] each; its rows all at once, which is cheaper than one by one
            self._tensor(values, dtype).view(count, width).unbind()
            for values, dtype in (
                (positions, torch.int64),
                (by_step, torch.int64),
                ([position + 1 for position in positions], torch.int32),
            )
        )
        table = self._table([ids for _, ids, _ in rows])
        query_start = self._tensor(range(width + 1), torch.int32)
        steps = [
            AttentionMetadata(at, slot, table, query_start, kv_len)
            for at, slot, kv_len in zip(*fields, strict=True)
        ]
        alive = [sum(n > step for _, _, n in rows) for step in range(count)]
        return [meta.first(n) if n < width else meta for n, meta in zip(alive, steps, strict=True)]

    def _pass(self, batch: Sequence[SequenceRows]) -> tuple[Tensor, AttentionMetadata]:
        """What a pass is given: ids, and whose row is whose."""
        return self._tensor([token for rows in batch for token in rows.token_ids]), self.metadata(batch)

    def _require_fused(self) -> FusedModel:
        if self._fused is None:
            raise TypeError("this backend runs one op at a time")
        return self._fused

    def _table(self, block_ids: Sequence[Sequence[int]]) -> Tensor:
        """Block tables [num_seqs, widest], padded with 0."""
        widest = max(map(len, block_ids), default=0)
        table = [block for ids in block_ids for block in (*ids, *[0] * (widest - len(ids)))]
        return self._tensor(table, torch.int32).view(len(block_ids), widest)

    def _tensor(self, values: Iterable[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return column(values, dtype, self.device)
