"""The decode loop: one new token for every running request.

A token depends on the one before it, so a request can only advance by one row a step. The whole
model is read for that row; with one request decode is bound by memory bandwidth, and nearly all of
the arithmetic idles. Batching is what fills it: the weights are read once for all requests.

    request a  cache: 0 1 2 3 4 5 6     in: token 7   ->  logits for token 8
    request b  cache: 0 1 2             in: token 3   ->  logits for token 4
"""

from __future__ import annotations

from collections.abc import Sequence

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
    logits = runner.last_logits(_newest_rows(requests))
    _count_as_computed(requests)
    return logits


def decode_and_draw(
    runner: ModelRunner, requests: Sequence[Request], sampling: SamplingBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """`decode`, a look for broken logits and the draws, in one call of a backend that has it, to the bit.

    Returns:
        Token ids [len(requests)]; whether the logits they were drawn from are finite [len(requests)]; and
        the logits.

    Raises:
        OutOfBlocks: as `decode`.
    """
    found = runner.decode_step(_newest_rows(requests), sampling)
    _count_as_computed(requests)
    return found


def _newest_rows(requests: Sequence[Request]) -> list[SequenceRows]:
    batch = []
    for request in requests:
        position = request.num_computed_tokens
        request.block_table.grow(position + 1)
        batch.append(SequenceRows(request.output_token_ids[-1:], position, request.block_table.block_ids))
    return batch


def _count_as_computed(requests: Sequence[Request]) -> None:
    for request in requests:
        request.num_computed_tokens += 1
