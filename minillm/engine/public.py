"""Fills the public prefixes: reads them from the options, computes their blocks when the engine starts.

    "You are a helpful ..."  --token ids--> prefill, chunk by chunk --> pinned blocks (`public_prefixes.py`)

A text is taken as it stands after the chat template. Where the tokenizer puts a token before every text, as
`generate` does with a plain prompt, both forms are prefilled.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from minillm.config import EngineConfig
from minillm.errors import KVCapacityError, MinillmError, PromptTooLong
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import CachedBlock
from minillm.memory.public_prefixes import PublicPrefixes
from minillm.model.loader import LoadedModel
from minillm.worker.step import PrefillChunk, StepInput
from minillm.worker.worker import Worker

_log = logging.getLogger(__name__)


def read_prefixes(model: LoadedModel, config: EngineConfig, num_blocks: int) -> PublicPrefixes:
    """The public prefixes of the options, checked and not yet filled.

    Raises:
        UsageError, TokenizerError, PromptTooLong: a prefix is no prompt; the message begins with its index.
        KVCapacityError: they need more than the pool's `num_blocks` blocks.
    """
    found = list[tuple[list[int], int]]()
    for index, prefix in enumerate(config.public_prefixes):
        try:
            for ids in _forms(model, prefix):
                found.append((ids, model.rope_offset(len(ids))))
        except MinillmError as error:
            raise type(error)(f"public prefix {index}: {error.message}", error.hint) from None
    public = PublicPrefixes(found, config.block_size)
    if public.num_blocks > num_blocks:
        raise KVCapacityError(
            f"the public prefixes need {public.num_blocks} KV blocks, the pool has {num_blocks}",
            "raise kv_memory or shorten them",
        )
    return public


def _forms(model: LoadedModel, prefix: str | Sequence[int]) -> list[list[int]]:
    forms = [model.token_ids(prefix)]
    if isinstance(prefix, str):
        plain = model.require_tokenizer().encode(prefix, add_special_tokens=False)
        forms += [plain] if plain and plain != forms[0] else []
    for ids in forms:
        if len(ids) >= model.max_model_len:
            raise PromptTooLong(
                f"{len(ids)} tokens leave no room in the context of {model.max_model_len}", "shorten it"
            )
    return forms


def fill(public: PublicPrefixes, pool: BlockPool, worker: Worker, chunk: int) -> None:
    """Compute the full blocks of all prefixes, at most `chunk` tokens per pass, in an empty pool."""
    public.forget(pool)
    for ids, offset in public.prefixes:
        size = pool.block_size
        chain = public.match(ids, offset)
        start, end = len(chain) * size, len(ids) // size * size
        own = pool.allocate((end - start) // size)
        table = [block.block_id for block in chain] + own
        try:
            for first in range(start, end, chunk):
                rows = list(ids[first : min(first + chunk, end)])
                worker.execute(StepInput(prefill=[PrefillChunk(rows, first, table, offset)]))
        except BaseException:
            pool.free(own)
            raise
        last: CachedBlock | int = chain[-1] if chain else offset
        for i in range(len(chain), len(table)):
            last = public.add(last, ids[i * size : (i + 1) * size], table[i])


def refill(public: PublicPrefixes, pool: BlockPool, worker: Worker, chunk: int) -> None:
    """Fill the prefixes again, if a failed step has replaced the pool. If that fails too, go on without."""
    if public.is_in(pool):
        return
    try:
        fill(public, pool, worker, chunk)
    except Exception as error:
        _log.error("the public prefixes could not be computed again: %s", type(error).__name__)
