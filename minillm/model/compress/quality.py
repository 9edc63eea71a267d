"""What quantising costs: perplexity, and how often the most likely next token is still the same one.

    perplexity = exp(mean of -log p(next token))     over all tokens of all windows but each window's first
    agreement  = share of the same positions where both models have the same most likely token

`measure` computes in float32 with `ReferenceOps`; `minillm bench quality` takes the engine's logits. Left
out: what a model can do with a task; a small loss here is usually a small loss there, but not always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.model.compress.text import Windows, require_finite
from minillm.model.decoder import Decoder

_ROWS = 256  # of logits at a time
_LARGEST_EXPONENT = 709  # exp of more is no double


@dataclass(frozen=True, eq=False)
class Quality:
    """Of one model on one text. `best`: int64 [num_predicted], the most likely token at each position."""

    perplexity: float
    best: Tensor

    @property
    def for_json(self) -> float | None:
        """The perplexity; None: it is infinite, which JSON has no number for."""
        return self.perplexity if math.isfinite(self.perplexity) else None

    def agreement(self, other: Quality) -> float:
        """The share of positions where both have the same most likely token."""
        return float((self.best == other.best).float().mean())


def quality_of(parts: Iterable[tuple[Tensor, Tensor]]) -> Quality:
    """Of logits, float [rows, vocab_size], and the tokens that follow in the text, int64 [rows].

    Raises:
        WeightsError: a logit is NaN or infinite.
    """
    loss, best = 0.0, []
    for logits, targets in parts:
        require_finite(logits)
        loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        best.append(logits.argmax(-1))
    found = torch.cat(best)
    mean = loss / len(found)
    return Quality(math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf, found)


@torch.no_grad()
def measure(decoder: Decoder, text: Windows) -> Quality:
    """Perplexity and most likely tokens of the windows, each scored by itself."""
    return quality_of(_logits(decoder, text))


def _logits(decoder: Decoder, text: Windows) -> Iterator[tuple[Tensor, Tensor]]:
    for window in text.ids:
        single = Windows(window.unsqueeze(0), text.source)
        meta = single.metadata()
        x, residual = decoder.begin(window, meta)
        for i in range(len(decoder.config.layers)):
            x, residual = decoder.run_layer(i, x, residual, single.cache(decoder.config), meta)
        for rows, targets in zip(x[:-1].split(_ROWS), window[1:].split(_ROWS), strict=True):
            yield decoder.logits(rows).float(), targets
