"""Raw logits of a whole list of tokens, computed with the paged prefill path while other requests run.

A temporary sequence allocates blocks from the KV manager like any other, computes its tokens in chunks, and
frees the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from contextlib import contextmanager

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.config.sizes import format_apart
from minillm.engine.sequence import Sequence
from minillm.engine.tenant_memory import KVMemory
from minillm.errors import PromptTooLong, UsageError
from minillm.memory.block_table import BlockTable
from minillm.model.loader import LoadedModel
from minillm.observe.events import Events
from minillm.text.detokenizer import NullDetokenizer
from minillm.worker.step import SequenceRows
from minillm.worker.worker import Worker

MAX_LOGITS_BYTES = 1 << 30
NAME = "logits"  # the request id in events


def check_logits(model: LoadedModel, token_ids: List[int]) -> list[int]:
    """Return the ids, if logits can be computed for all of them.

    Raises:
        UsageError: an id is out of range, or the result would be larger than 1 GiB.
        PromptTooLong: more tokens than the context holds.
    """
    try:
        ids = model.token_ids(list(token_ids))
    except TypeError:
        kind = type(token_ids).__name__
        raise UsageError(f"token_ids must be a list of token ids, not {kind}") from None
    if len(ids) > model.max_model_len:
        raise PromptTooLong(f"{len(ids)} tokens are more than the context of {model.max_model_len}")
    nbytes = 4 * len(ids) * model.config.vocab_size
    if nbytes > MAX_LOGITS_BYTES:
        needed, most = format_apart(nbytes, MAX_LOGITS_BYTES)
        raise UsageError(
            f"the logits would take {needed}, more than {most}",
            "pass fewer tokens at a time",
        )
    return ids


def compute_logits(
    worker: Worker, memory: KVMemory, events: Events, ids: list[int], chunk: int, rope_offset: int
) -> Tensor:
    """Compute logits, at most `chunk` tokens per pass; float32 [len(ids), vocab_size].

    `rope_offset`: with longrope the number of ids decides whether they are a short or a long sequence.

    Raises:
        OutOfBlocks: the free blocks do not hold all tokens; nothing has changed.
    """
    with borrowed_blocks(memory, len(ids)) as block_table:
        parts = []
        for start in range(0, len(ids), chunk):
            end = min(start + chunk, len(ids))
            events.emit("prefill_chunk", NAME, start=start, end=end, tokens=len(ids))
            parts.append(worker.logits(SequenceRows(ids[start:end], start, block_table, rope_offset)))
        return torch.cat(parts)


@contextmanager
def borrowed_blocks(memory: KVMemory, num_tokens: int) -> Iterator[list[int]]:
    """Yield the block table of a temporary sequence with room for `num_tokens` tokens; free it at the end.

    Raises:
        OutOfBlocks: the free blocks do not hold all tokens; nothing has changed.
    """
    sequence = Sequence(NAME, 0, [], SamplingParams(), 0, 0, BlockTable(memory.pool), NullDetokenizer())
    memory.open([sequence])
    memory.allocate_slots(sequence, num_tokens)
    try:
        yield sequence.block_table.block_ids
    finally:
        memory.free(sequence)
