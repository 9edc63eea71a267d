"""The two forms of a pass over the model: op by op, or fused into one call. This file chooses between them.

    op by op   embedding -> layer 0 -> ... -> layer n -> norm -> head     one call of `Ops` per operation
    fused      the same operations in the same order                     one call of the backend, same bits

In a small model the arithmetic of a decode step takes less time than the Python calls that start it. So a
backend may bind the weights and the caches once, and then run a whole pass, or several decode steps, in one
call (`FusedOps`). Left out: passes captured as CUDA graphs.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from minillm.memory.kv_cache import KVCache
from minillm.model.decoder import Decoder
from minillm.ops.contract import AttentionMetadata
from minillm.ops.fused import FusedModel, FusedOps


class Pass(Protocol):
    """Runs all layers over rows of token ids. `meta` gives the sequence and the slot of each row."""

    def hidden(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """The final hidden states of every row: [num_tokens, hidden_size]."""

    def last_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """The logits after each sequence's last row: [num_seqs, vocab_size]."""


class OpByOp:
    """The loop over the decoder's layers. Works with every backend and with replaced ops."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache

    def hidden(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        return self._decoder.forward(ids, self._cache.k, self._cache.v, meta)

    def last_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """The head, the largest matrix of a small model, is computed only for each sequence's last row."""
        hidden = self.hidden(ids, meta)
        if len(hidden) != len(meta.kv_len):
            hidden = hidden[meta.query_start[1:] - 1]
        return self._decoder.logits(hidden)


def choose_pass(decoder: Decoder, cache: KVCache) -> tuple[Pass, FusedModel | None]:
    """Choose the pass for this decoder: fused if its backend can run the whole model in one call.

    Returns:
        The pass; and, if it is fused, the same object again as a `FusedModel`, which has more methods.
    """
    ops, weights = decoder.ops, decoder.weights()
    if not (isinstance(ops, FusedOps) and ops.can_bind(weights)):
        return OpByOp(decoder, cache), None
    fused = ops.bind(weights, cache.k, cache.v)
    return fused, fused
