"""The decode loop: one new token for every running request.

A token depends on the one before it, so a request can only advance by one row a step. The whole
model is read for that row; with one request decode is bound by memory bandwidth, and nearly all of
the arithmetic idles. Batching is what fills it: the weights are read once for all requests.

    request a  cache: 0 1 2 3 4 5 6     in: token 7   ->  logits for token 8
    request b  cache: 0 1 2             in: token 3   ->  logits for token 4
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from minillm.engine.request import Request
from minillm.model.runner import ModelRunner, SequenceRows
from minillm.ops.sampling import SamplingBatch


def decode(runner: ModelRunner, requests: Sequence[Request]) -> Tensor:
    """Run each request's newest token, whose key and value are not in the cache yet.

    Args:
        runner: runs the model over the paged cache.
        requests: past their prefill, each with at least one output token.

    Returns:
        Logits of the next token of each request [len(requests), vocab_size].

    Raises:
        OutOfBlocks: the pool cannot hold the token; that request's table is unchanged.
    """
    batch = []
    for request in requests:
        position = request.num_computed_tokens
        request.block_table.grow(position + 1)
        batch.append(SequenceRows(request.output_token_ids[-1:], position, request.block_table.block_ids))
    logits = runner.last_logits(batch)
    for request in requests:
        request.num_computed_tokens += 1
    return logits


def decode_and_draw(
    runner: ModelRunner, requests: Sequence[Request], sampling: SamplingBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """`decode`, a look for broken logits and the draws, where a backend does all of it in one call.

    Returns:
        Token ids [len(requests)]; whether the logits they were drawn from are finite [len(requests)]; and
        the logits, all the same to the bit as one after the other.
    """
    drawing = _Drawing(runner, sampling)
    logits = decode(cast(ModelRunner, drawing), requests)
    return drawing.tokens, drawing.finite, logits


class _Drawing:
    """A runner whose pass draws as well; it keeps what it drew."""

    tokens: Tensor
    finite: Tensor

    def __init__(self, runner: ModelRunner, sampling: SamplingBatch) -> None:
        self._runner, self._sampling = runner, sampling

    def last_logits(self, batch: Sequence[SequenceRows]) -> Tensor:
        self.tokens, self.finite, logits = self._runner.decode_step(batch, self._sampling)
        return logits
