"""The prefill loop: read known tokens into the cache, many at a time.

Every prompt token is known, so a whole chunk goes through the model in one pass: each weight is
read once for hundreds of tokens. Prefill is bound by arithmetic, and its cost grows with the length
of the prompt (attention: with its square).

    prompt of request a      [ chunk 0 ][ chunk 1 ][ c2 ]      a step takes one chunk each of
    prompt of request b      [ chunk 0 ][ c1 ]                 several requests, end to end

Only the last chunk's last row predicts a token; the others exist to leave keys and values behind.
A sequence that was preempted comes here again, with the tokens of its answer behind those of its prompt.

The block tables have room for the chunks before the loop runs, and the engine counts them as computed
afterwards: the loop changes the cache and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minillm.worker.runner import ModelRunner
from minillm.worker.step import PrefillChunk, SequenceRows


def prefill(runner: ModelRunner, chunks: Sequence[PrefillChunk]) -> Tensor:
    """Compute one chunk of each sequence and write its keys and values to the cache.

    Args:
        runner: runs the model over the paged cache.
        chunks: at most one for each sequence.

    Returns:
        Logits of each chunk's last token [len(chunks), vocab_size]: for a chunk that holds the newest
        token, the scores of the next.
    """
    batch = [SequenceRows(chunk.token_ids, chunk.start, chunk.block_table) for chunk in chunks]
    return runner.last_logits(batch)
