"""The model runner: turns new tokens of several sequences into one pass over the model.

The runner owns the decoder and the cache tensors. Python lists become index tensors here and nowhere else.
Prefill and decode run in the same way: both pass a list of `SequenceRows`.

    rows  a: tokens 0..4 of 5      ids          a0 a1 a2 a3 a4 | b9 | c8 c9 ca
          b: token  9 of 10   ->   positions     0  1  2  3  4 |  9 |  8  9 10
          c: tokens 8..10 of 11    query_start   0              5    6          9
                                   kv_len        5               10   11
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minillm.memory.block_table import slot_mapping
from minillm.memory.kv_cache import KVCache
from minillm.model.decoder import Decoder
from minillm.ops.columns import column
from minillm.ops.contract import AttentionMetadata
from minillm.ops.fused import FusedModel
from minillm.ops.sampling import SamplingBatch
from minillm.worker.passes import choose_pass
from minillm.worker.step import Copy, SequenceRows


class SlotMapping(Protocol):
    """The cache slots of logical positions of one sequence."""

    def __call__(
        self, block_table: Sequence[int], positions: Sequence[int], block_size: int, /
    ) -> list[int]: ...


class StepRows(NamedTuple):
    """One sequence in future decode steps: `num_steps` rows from position `start` on, one in each step."""

    start: int
    block_table: Sequence[int]
    num_steps: int
    rope_offset: int = 0


class ModelRunner:
    """Runs the decoder over a paged cache. `slot_mapping` may be replaced (a seam for labs)."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, block_size: int, slots: SlotMapping = slot_mapping
    ) -> None:
        self.decoder, self.cache, self.block_size = decoder, cache, block_size
        self.device = decoder.embed_tokens.device
        self._slots = slots
        self._pass, self._fused = choose_pass(decoder, cache)
        # A fused pass checks the index tensors on the CPU and takes them to its device in one copy.
        self._index_device = torch.device("cpu") if self._fused is not None else self.device

    @property
    def is_fused(self) -> bool:
        """Whether the backend supports `step` and `decode_ahead`, which run in one call."""
        return self._fused is not None

    def forward(self, batch: Sequence[SequenceRows]) -> Tensor:
        """Run all rows of `batch` in one pass and write their keys and values to the cache.

        Returns:
            Hidden states [num_tokens, hidden_size], sequence after sequence in the order of `batch`.
        """
        return self._pass.hidden(*self._inputs(batch))

    def last_logits(self, batch: Sequence[SequenceRows]) -> Tensor:
        """Run one pass; return the logits after each sequence's last row: [len(batch), vocab_size]."""
        return self._pass.last_logits(*self._inputs(batch))

    def all_logits(self, batch: Sequence[SequenceRows]) -> Tensor:
        """Run one pass; return the logits after every row: [num_tokens, vocab_size]."""
        return self.decoder.logits(self.forward(batch))

    def step_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """Run one token per sequence, `ids` [num_seqs], with metadata from `step_metadata`.

        Returns:
            Logits [num_seqs, vocab_size].
        """
        return self._pass.last_logits(ids, meta)

    def step(
        self,
        batch: Sequence[SequenceRows],
        sampling: SamplingBatch,
        *,
        all_rows: bool = False,
        draw_rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one pass and sample from its logits in one call; requires `is_fused`.

        Logits are those of each sequence's last row, or with `all_rows` of every row. Draw i reads row
        `draw_rows[i]` of the logits; None: one draw per row, in order.

        Returns:
            (tokens, finite, logits). If a row of logits is not finite, a token drawn from it has no meaning.
        """
        model = self._require_fused()
        return model.step(*self._inputs(batch), sampling, all_rows=all_rows, draw_rows=draw_rows)

    def decode_ahead(
        self,
        batch: Sequence[SequenceRows],
        depths: Sequence[int],
        keys: Sequence[Sequence[int]],
        sampling: SamplingBatch,
    ) -> list[list[int]]:
        """Run `batch` and sample the next `depths[i]` tokens of sequence i in one call; requires `is_fused`.

        `batch` is sorted by depth, the deepest first. `keys[i]`: the noise keys of sequence i's tokens.
        """
        return self._require_fused().decode_ahead(*self._inputs(batch), depths, keys, sampling)

    def copy_blocks(self, copies: Sequence[Copy]) -> None:
        """Copy each (source, destination) pair of blocks, in all layers."""
        if copies:
            index = (column(blocks, device=self.device) for blocks in zip(*copies, strict=True))
            self.decoder.ops.copy_blocks([*self.cache.k, *self.cache.v], *index)

    def metadata(self, batch: Sequence[SequenceRows]) -> AttentionMetadata:
        """The sequence, position and slot of each row, as tensors for the ops."""
        positions: list[int] = []
        slots: list[int] = []
        query_start = [0]
        for rows in batch:
            new = range(rows.start, rows.end)
            positions += range(rows.rope_offset + rows.start, rows.rope_offset + rows.end)
            slots += self._slots(rows.block_table, new, self.block_size)
            query_start.append(len(positions))
        return AttentionMetadata(
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slots),
            block_table=self._table([rows.block_table for rows in batch]),
            query_start=self._query_start(query_start),
            kv_len=self._tensor([rows.start + len(rows.token_ids) for rows in batch], torch.int32),
        )

    def step_metadata(self, rows: Sequence[StepRows]) -> list[AttentionMetadata]:
        """Make the metadata of several future decode steps at once.

        Args:
            rows: one for each sequence, the most steps first.

        Returns:
            One metadata object per step. Step i covers the sequences that have more than i steps; these are
            the first ones of `rows`.
        """
        count, width, size = rows[0].num_steps, len(rows), self.block_size
        positions = [row.start + row.rope_offset + step for step in range(count) for row in rows]
        lengths = [row.start + step + 1 for step in range(count) for row in rows]
        slots = [self._slots(table, range(at, at + n), size) + [0] * (count - n) for at, table, n, _ in rows]
        by_step = [slot for step in zip(*slots, strict=True) for slot in step]
        fields = (  # each [count, width]; one tensor split into rows is cheaper than one tensor per row
            self._tensor(values, dtype).view(count, width).unbind()
            for values, dtype in (
                (positions, torch.int64),
                (by_step, torch.int64),
                (lengths, torch.int32),
            )
        )
        tables = self._table([row.block_table for row in rows])
        query_start = _counted(width + 1, self._index_device)
        steps = [
            AttentionMetadata(at, slot, tables, query_start, kv_len)
            for at, slot, kv_len in zip(*fields, strict=True)
        ]
        alive = [sum(row.num_steps > step for row in rows) for step in range(count)]
        return [meta.first(n) if n < width else meta for n, meta in zip(alive, steps, strict=True)]

    def _inputs(self, batch: Sequence[SequenceRows]) -> tuple[Tensor, AttentionMetadata]:
        ids = self._tensor([token for rows in batch for token in rows.token_ids])
        return ids, self.metadata(batch)

    def _require_fused(self) -> FusedModel:
        if self._fused is None:
            raise TypeError("this backend is not fused")
        return self._fused

    def _table(self, tables: Sequence[Sequence[int]]) -> Tensor:
        """Block tables [num_seqs, widest], padded with 0."""
        widest = max(map(len, tables), default=0)
        padded = [block for table in tables for block in (*table, *[0] * (widest - len(table)))]
        return self._tensor(padded, torch.int32).view(len(tables), widest)

    def _query_start(self, starts: list[int]) -> Tensor:
        """Row ranges of the sequences. A decode pass has one row per sequence; its ranges are cached."""
        if starts == list(range(len(starts))):
            return _counted(len(starts), self._index_device)
        return self._tensor(starts, torch.int32)

    def _tensor(self, values: Iterable[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return column(values, dtype, self._index_device)


@lru_cache(maxsize=128)
def _counted(count: int, device: torch.device) -> Tensor:
    """int32 0, 1, .. count - 1."""
    return column(range(count), torch.int32, device)
