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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.memory.block_table import slot_mapping
from minillm.memory.kv_cache import KVCache
from minillm.model.decoder import Decoder
from minillm.ops.contract import AttentionMetadata

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

    @torch.inference_mode()
    def forward(self, batch: Sequence[SequenceRows]) -> Tensor:
        """Run all rows of `batch` in one pass and write their keys and values to the cache.

        Returns:
            Hidden states [num_tokens, hidden_size], sequences end to end in the order given.
        """
        ids = [token for rows in batch for token in rows.token_ids]
        return self.decoder.forward(self._tensor(ids), self.cache.k, self.cache.v, self.metadata(batch))

    @torch.inference_mode()
    def last_logits(self, batch: Sequence[SequenceRows]) -> Tensor:
        """`forward`, then the logits of each sequence's last row only: [len(batch), vocab_size].

        The head is the largest matrix of a small model; a prompt needs it once, not per token.
        """
        hidden, last, end = self.forward(batch), [], 0
        for rows in batch:
            end += len(rows.token_ids)
            last.append(end - 1)
        if end > len(batch):
            hidden = hidden[self._tensor(last)]
        return self.decoder.logits(hidden)

    @torch.inference_mode()
    def copy_block(self, source: int, destination: int) -> None:
        """Copy one block in all layers."""
        index = self._tensor([source]), self._tensor([destination])
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
        widest = max((len(rows.block_ids) for rows in batch), default=0)
        table = [[*rows.block_ids, *[0] * (widest - len(rows.block_ids))] for rows in batch]
        return AttentionMetadata(
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slots),
            block_table=self._tensor(table, torch.int32),
            query_start=self._tensor(query_start, torch.int32),
            kv_len=self._tensor([rows.end for rows in batch], torch.int32),
        )

    def _tensor(self, values: Sequence[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)
