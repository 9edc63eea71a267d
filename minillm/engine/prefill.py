"""The prefill loop: read known tokens into the cache, many at a time.

Every prompt token is known, so a whole chunk goes through the model in one pass: each weight is
read once for hundreds of tokens. Prefill is bound by arithmetic, and its cost grows with the length
of the prompt (attention: with its square).

    prompt of request a      [ chunk 0 ][ chunk 1 ][ c2 ]      a step takes one chunk each of
    prompt of request b      [ chunk 0 ][ c1 ]                 several requests, end to end

Only the last chunk's last row predicts a token; the others exist to leave keys and values behind.
A sequence that was preempted comes here again, with the tokens of its answer behind those of its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minillm.engine.request import Request
from minillm.model.runner import ModelRunner, SequenceRows


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end` of a request, to be computed in one step."""

    request: Request
    start: int
    end: int


def prefill(runner: ModelRunner, chunks: Sequence[Chunk]) -> Tensor:
    """Compute one chunk of each request and write its keys and values to the cache.

    Args:
        runner: runs the model over the paged cache.
        chunks: at most one for each request; `start` is the request's `num_computed_tokens`.

    Returns:
        Logits of each chunk's last token [len(chunks), vocab_size]: for a chunk that holds the newest
        token, the scores of the next.

    Raises:
        OutOfBlocks: the pool cannot hold the chunk; that request's table is unchanged.
    """
    batch = []
    for chunk in chunks:
        request = chunk.request
        request.block_table.grow(chunk.end)
        tokens = request.tokens(chunk.start, chunk.end)
        batch.append(SequenceRows(tokens, chunk.start, request.block_table.block_ids))
    logits = runner.last_logits(batch)
    for chunk in chunks:
        chunk.request.num_computed_tokens = chunk.end
    return logits
