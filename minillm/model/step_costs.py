"""What a step costs, in FLOPs and bytes, as an estimate that is made in every step.

    weights    read once by the prefill pass and once by the decode pass
    keys       a decoded token reads all that it sees; a chunk reads each key that one of its tokens sees once
    written    keys and values of every computed token

The formulas are those of `costs.py`; here they are prepared, so that a step costs a few multiplications.
The estimate knows no caches of the hardware, no activations, and of experts only as many as one token uses.
A decode step is known by the sum of its contexts. With sliding windows the mean context stands for each.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from minillm.config import ModelConfig
from minillm.model.costs import matmul_weights


class Cost(NamedTuple):
    """FLOPs, and bytes that are read and written."""

    flops: int
    read: int
    written: int


class StepCosts:
    """Estimates of one model.

    Args:
        weight_bytes: bytes of weights that a pass reads.
        number_bytes: the size of a key's number.
    """

    def __init__(self, config: ModelConfig, weight_bytes: int, number_bytes: int) -> None:
        self.weight_bytes = weight_bytes
        self._head = 2 * config.vocab_size * config.hidden_size
        self._token = 2 * matmul_weights(config) - self._head  # FLOPs of a token below the head
        self._pair = 4 * config.q_size  # FLOPs of a token that sees a key, in one layer
        self._key = config.kv_bytes_per_layer(number_bytes)  # bytes of a token's key and value, in one layer
        self._written = config.kv_bytes_per_token(number_bytes)
        self._windows = list(Counter(layer.window or 0 for layer in config.layers).items())

    def prefill(self, start: int, end: int) -> Cost:
        """A chunk with the tokens `start` to `end`; the head runs once."""
        tokens, pairs, keys = end - start, 0, 0
        for window, layers in self._windows:
            pairs += layers * (_pairs(end, window) - _pairs(start, window))
            keys += layers * (min(end, window + tokens - 1) if window else end)
        flops = self._token * tokens + self._head + self._pair * pairs
        return Cost(flops, self._key * keys, self._written * tokens)

    def decode(self, rows: int, sequences: int, context: int) -> Cost:
        """`rows` rows of `sequences` sequences that have `context` tokens together."""
        seen = 0
        for window, layers in self._windows:
            seen += layers * (min(context, window * sequences) if window else context)
        flops = (self._token + self._head) * rows + self._pair * seen * rows // max(sequences, 1)
        return Cost(flops, self._key * seen, self._written * rows)


def _pairs(tokens: int, window: int) -> int:
    """Query-key pairs of a causal prompt where each query sees at most `window` keys; 0: all."""
    seen = min(window or tokens, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen
