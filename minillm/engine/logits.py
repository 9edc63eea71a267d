"""Raw logits of a whole list of tokens, through the paged prefill path, beside whatever else is running.

A sequence of its own takes blocks by the same door as every other, computes chunk by chunk, and gives them
back.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from contextlib import contextmanager

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.config.sizes import format_bytes
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.sequence import Sequence
from minillm.errors import PromptTooLong, UsageError
from minillm.memory.block_table import BlockTable
from minillm.model.loader import LoadedModel
from minillm.observe.events import Events
from minillm.text.detokenizer import NullDetokenizer
from minillm.worker.step import SequenceRows
from minillm.worker.worker import Worker

MAX_LOGITS_BYTES = 1 << 30
NAME = "logits"  # its request id in events


def check_logits(model: LoadedModel, token_ids: List[int]) -> list[int]:
    """The ids, if logits can be computed for all of them.

    Raises:
        UsageError: a bad id, or a result above 1 GiB.
        PromptTooLong: more tokens than the context.
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
        raise UsageError(
            f"the logits would take {format_bytes(nbytes)}, more than {format_bytes(MAX_LOGITS_BYTES)}",
            "ask for fewer tokens at a time",
        )
    return ids


def compute_logits(
    worker: Worker, memory: KVCacheManager, events: Events, ids: list[int], chunk: int
) -> Tensor:
    """float32 [len(ids), vocab_size], at most `chunk` tokens in a pass.

    Raises:
        OutOfBlocks: the free blocks do not hold them; nothing has changed.
    """
    with borrowed_blocks(memory, len(ids)) as block_table:
        parts = []
        for start in range(0, len(ids), chunk):
            end = min(start + chunk, len(ids))
            events.emit("prefill_chunk", NAME, start=start, end=end, tokens=len(ids))
            parts.append(worker.logits(SequenceRows(ids[start:end], start, block_table)))
        return torch.cat(parts)


@contextmanager
def borrowed_blocks(memory: KVCacheManager, num_tokens: int) -> Iterator[list[int]]:
    """The block table of a sequence that no request has, with room for `num_tokens` tokens; given back at the
    end.

    Raises:
        OutOfBlocks: the free blocks do not hold them; nothing has changed.
    """
    table = BlockTable(memory.pool)
    sequence = Sequence(NAME, 0, [], SamplingParams(), 0, 0, table, NullDetokenizer())
    memory.allocate_slots(sequence, num_tokens)
    try:
        yield table.block_ids
    finally:
        memory.free(sequence)
