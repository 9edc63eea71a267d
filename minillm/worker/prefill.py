"""The prefill loop: compute keys and values of known tokens, many at a time.

All prompt tokens are known, so a whole chunk goes through the model in one pass: each weight is read
once for hundreds of tokens. Prefill is bound by arithmetic. Its cost grows with the length of the prompt
(that of attention with the square of the length).

    prompt of request a      [ chunk 0 ][ chunk 1 ][ c2 ]      a step takes one chunk each of
    prompt of request b      [ chunk 0 ][ c1 ]                 several requests, one after the other

Only the last row of a prompt's last chunk predicts a token; the other rows only write keys and values.
A preempted sequence is prefilled again: its prompt and then the tokens of its answer.

The engine makes room in the block tables before the loop runs and counts the chunks as computed afterwards.
The loop changes nothing but the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minillm.worker.runner import ModelRunner
from minillm.worker.step import PrefillChunk, SequenceRows


def prefill(runner: ModelRunner, chunks: Sequence[PrefillChunk]) -> Tensor:
    """Compute one chunk of each sequence and write its keys and values to the cache.

    The model runs once for all chunks, over their tokens only: earlier chunks are in the cache. The head,
    the largest matrix of a small model, runs only for each chunk's last token. A chunk has all that is
    needed; nothing is kept from step to step. The chunks are not changed.

    Args:
        runner: runs the model over the paged cache.
        chunks: at most one per sequence.

    Returns:
        The logits after each chunk's last token, in the order of `chunks`: a new tensor
        [len(chunks), vocab_size]. If a chunk ends with the newest token of its sequence, these are the
        logits of the next token.
    """
    batch = [
        SequenceRows(chunk.token_ids, chunk.start, chunk.block_table, chunk.rope_offset) for chunk in chunks
    ]
    return runner.last_logits(batch)
