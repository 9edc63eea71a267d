"""The prefill loop: read prompts into the cache, many tokens at a time.

Every prompt token is known, so a whole chunk goes through the model in one pass: each weight is
read once for hundreds of tokens. Prefill is bound by arithmetic, and its cost grows with the length
of the prompt (attention: with its square).

    prompt of request a      [ chunk 0 ][ chunk 1 ][ c2 ]      a step takes one chunk each of
    prompt of request b      [ chunk 0 ][ c1 ]                 several requests, end to end

Only the last chunk's last row predicts a token; the others exist to leave keys and values behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minillm.engine.request import Request
from minillm.model.runner import ModelRunner, SequenceRows


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end` of a request's prompt, to be computed in one step."""

    request: Request
    start: int
    end: int


def prefill(runner: ModelRunner, chunks: Sequence[Chunk]) -> Tensor:
    """Compute one chunk of each request's prompt and write its keys and values to the cache.

    Args:
        runner: runs the model over the paged cache.
        chunks: at most one for each request; `start` is the request's `num_computed_tokens`.

    Returns:
        Logits of each chunk's last token [len(chunks), vocab_size]: for a chunk that completes its
        prompt, the scores of the first output token.

    Raises:
        OutOfBlocks: the pool cannot hold the chunk; that request's table is unchanged.
    """
    batch = []
    for chunk in chunks:
        request = chunk.request
        request.block_table.grow(chunk.end)
        tokens = request.prompt_token_ids[chunk.start : chunk.end]
        batch.append(SequenceRows(tokens, chunk.start, request.block_table.block_ids))
    logits = runner.last_logits(batch)
    for chunk in chunks:
        chunk.request.num_computed_tokens = chunk.end
    return logits
