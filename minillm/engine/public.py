"""Fills the public prefixes: reads them from the options, computes their blocks when the engine starts.

    "You are a helpful ..."  --token ids--> prefill, chunk by chunk --> pinned blocks (`public_prefixes.py`)

A text is taken as it stands after the chat template. Where the tokenizer puts a token before every text, as
`generate` does with a plain prompt, both forms are prefilled. A draft model computes its keys and values at
the same time. If the requests did it, one tenant would see that another has come first.
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
from minillm.speculation.draft_model import DraftModel
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


class PublicFiller:
    """Computes the public prefixes with the target and, if there is one, with the draft model.

    Args:
        chunk: the most tokens of a pass.
        draft: the draft model, and the digest of its KV envelope.
    """

    def __init__(
        self, public: PublicPrefixes, worker: Worker, chunk: int, draft: tuple[DraftModel, str] | None
    ) -> None:
        self._public, self._worker, self._chunk, self._draft = public, worker, chunk, draft

    def fill(self, pool: BlockPool) -> None:
        """Compute the full blocks of all prefixes in an empty pool."""
        self._public.forget(pool)
        for ids, offset in self._public.prefixes:
            chain = self._public.match(ids, offset)
            start, end = len(chain) * pool.block_size, len(ids) // pool.block_size * pool.block_size
            own = pool.allocate((end - start) // pool.block_size)
            try:
                table = [block.block_id for block in chain] + own
                written = self._compute(ids[:end], start, table, offset)
            except BaseException:
                pool.free(own)
                raise
            self._add(chain, ids, offset, own, written)

    def refill(self, pool: BlockPool) -> None:
        """Fill the prefixes again if a failed step has replaced the pool. If that fails, go on without."""
        if self._public.is_in(pool):
            return
        try:
            self.fill(pool)
        except Exception as error:
            _log.error("the public prefixes could not be computed again: %s", type(error).__name__)

    def _compute(self, ids: Sequence[int], start: int, table: list[int], offset: int) -> int:
        """Compute `ids` from `start` on; return how many the draft model has."""
        written = len(ids) if self._draft else 0
        for first in range(start, len(ids), self._chunk):
            chunk = PrefillChunk(list(ids[first : first + self._chunk]), first, table, offset)
            self._worker.execute(StepInput(prefill=[chunk]))
            if self._draft and not self._draft[0].prefill(chunk):
                written = min(written, first)
        return written

    def _add(
        self, chain: list[CachedBlock], ids: Sequence[int], offset: int, own: list[int], written: int
    ) -> None:
        size, last = self._public.block_size, chain[-1] if chain else offset
        for i, block_id in enumerate(own, len(chain)):
            last = self._public.add(last, ids[i * size : (i + 1) * size], block_id)
            if self._draft and (i + 1) * size <= written:
                last.draft = self._draft[1]
