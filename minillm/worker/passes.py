"""The forms of a pass over the model: op by op, or fused into one call. Chosen here and nowhere else.

    op by op   embedding -> layer 0 -> ... -> layer n -> norm -> head     a call of `Ops` for each operation
    fused      the same operations in the same order                     one call of the backend, same bits

The decode step of a small model takes less time than Python needs to name its operations, so a backend may
bind the weights and the caches once and run a whole pass, or several decode steps, in one call (`FusedOps`).
Left out: passes captured as CUDA graphs.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from minillm.memory.kv_cache import KVCache
from minillm.model.decoder import Decoder
from minillm.ops.contract import AttentionMetadata, FusedModel, FusedOps


class Pass(Protocol):
    """Runs all layers over rows of token ids. `meta` says which row belongs to which sequence and slot."""

    def hidden(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """Final hidden states of every row: [num_tokens, hidden_size]."""

    def last_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """Logits behind each sequence's last row only: [num_seqs, vocab_size]."""


class OpByOp:
    """The decoder's own loop. Works with every backend and with replaced ops."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache

    def hidden(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        return self._decoder.forward(ids, self._cache.k, self._cache.v, meta)

    def last_logits(self, ids: Tensor, meta: AttentionMetadata) -> Tensor:
        """The head is the largest matrix of a small model; a prompt needs it once, not for every token."""
        hidden = self.hidden(ids, meta)
        if len(hidden) != len(meta.kv_len):
            hidden = hidden[meta.query_start[1:] - 1]
        return self._decoder.logits(hidden)


def choose_pass(decoder: Decoder, cache: KVCache) -> tuple[Pass, FusedModel | None]:
    """How passes run on this decoder: fused where its backend can and has packed every matrix.

    Returns:
        The pass; and the same object again where it is a fused one, which can do more than a pass.
    """
    ops, weights = decoder.ops, decoder.weights()
    if not (isinstance(ops, FusedOps) and weights.is_packed):
        return OpByOp(decoder, cache), None
    fused = ops.bind(weights, cache.k, cache.v)
    return fused, fused
