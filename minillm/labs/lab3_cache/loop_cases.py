"""The input of a loop in the cases of tasks 3.7 and 3.8: the tiny model, prompts, block tables with room.

    a loop may        write keys and values to the cache, in one run of the model for all sequences
    an answer has     the logits; the tables and tokens, which must not change
    a cost case has   the runs of the model, and the rows in each

The logits of the next step show whether the keys and values in the cache are correct. Each case has its own
tokens and its own engine; prefill and decode have other blocks, so that nothing that a file keeps is right by
chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.lab import Words
from minillm.labs.grader.tiny_model import LAYERS, VOCAB_SIZE, random_tensor, tiny_llm
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.memory.kv_cache import KVCache
from minillm.model.decoder import Decoder
from minillm.model.loader import LoadedModel
from minillm.ops.swapped import SwappedOps
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, PrefillChunk

BLOCK_SIZE, NUM_BLOCKS = 4, 64
NUM_IDS = 90

Loop = Callable[[ModelRunner, Sequence[Any]], Tensor]
_KEPT: list[Any] = []  # lists stay alive, so that no two of them ever have the same `id`


class LinearCounter:
    """`linear`, which counts the runs of the model, their rows, and the rows of the vocabulary head."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from zero."""
        self._layers: list[int] = []  # rows of each layer that was run
        self._heads = 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape[0] == VOCAB_SIZE:
            self._heads += len(x)
        elif weight.shape[0] == 2 * weight.shape[1]:  # q, k and v of a layer
            self._layers.append(len(x))
        return torch.nn.functional.linear(x, weight, bias)

    def words(self) -> Words:
        """ "1 pass over 12 rows, 2 rows of logits"."""
        passes = self._layers[::LAYERS]
        name = "pass" if len(passes) == 1 else "passes"
        return Words(f"{len(passes)} {name} over {sum(passes)} rows, {self._heads} rows of logits")


@cache
def _model() -> tuple[LoadedModel, Decoder, LinearCounter]:
    """The tiny model, and its decoder with a counter in it."""
    model, counter = tiny_llm().engine.model, LinearCounter()
    return model, model.decoder.with_ops(SwappedOps(model.decoder.ops, linear=counter)), counter


def tokens_of(seed: int, count: int) -> list[int]:
    """Token ids; a seed gives the same ones in every run."""
    ids = torch.randint(1, NUM_IDS, (count,), generator=torch.Generator().manual_seed(seed))
    return [int(i) for i in ids]


class Setting:
    """A runner over a cache of its own, and the block tables of some sequences."""

    def __init__(self, num_sequences: int = 2, first_block: int = 0) -> None:
        model, decoder, self.counter = _model()
        kv = KVCache.allocate(model.config, NUM_BLOCKS, BLOCK_SIZE, model.dtype, model.device)
        for tensor in (*kv.k, *kv.v):
            tensor.copy_(random_tensor(7, *tensor.shape))
        self.runner = ModelRunner(decoder, kv, BLOCK_SIZE)
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.pool.allocate(first_block)  # blocks of other sequences
        self.tables = [BlockTable(self.pool) for _ in range(num_sequences)]

    def grow(self, index: int, num_tokens: int) -> list[int]:
        """The block table of sequence `index`, with room for so many tokens."""
        self.tables[index].grow(num_tokens)
        _KEPT.append(self.tables[index].block_ids)
        return self.tables[index].block_ids

    def end(self, index: int) -> None:
        """Sequence `index` ends; another one takes its place, and gets its blocks."""
        self.tables[index].release()
        self.tables[index] = BlockTable(self.pool)

    def chunk(self, index: int, tokens: Sequence[int], start: int) -> PrefillChunk:
        """A chunk of sequence `index`, with room for it."""
        return PrefillChunk(list(tokens), start, self.grow(index, start + len(tokens)))

    def row(self, index: int, token_id: int, position: int) -> DecodeRow:
        """A row of sequence `index`, with room for it."""
        return DecodeRow(token_id, position, self.grow(index, position + 1))

    def run(self, loop: Loop, work: Sequence[PrefillChunk | DecodeRow]) -> list[Any]:
        """The loop's logits, and its input afterwards."""
        self.counter.restart()
        logits = loop(self.runner, work)
        return [logits, [_plain(item) for item in work]]


def rounded(answer: Any) -> Any:
    """All logits in float16: compared with its tolerance, because the last bits depend on the batch.

    Called at the end of a case, so that logits that a later call has overwritten show.
    """
    if isinstance(answer, list):
        return [rounded(part) for part in answer]
    return answer.half() if isinstance(answer, Tensor) and answer.dtype == torch.float32 else answer


def copied(item: Any) -> Any:
    """The same chunk or row with a list of its own for the block table, as after a transfer."""
    table = list(item.block_table)
    _KEPT.append(table)
    if isinstance(item, DecodeRow):
        return DecodeRow(item.token_id, item.position, table)
    return PrefillChunk(item.token_ids, item.start, table)


def _plain(item: PrefillChunk | DecodeRow) -> list[Any]:
    if isinstance(item, DecodeRow):
        return [item.token_id, item.position, list(item.block_table)]
    return [list(item.token_ids), item.start, list(item.block_table)]
