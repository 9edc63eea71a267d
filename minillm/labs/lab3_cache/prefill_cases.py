"""Task 3.5, many known tokens in one pass: cases and known mistakes of `prefill`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab3_cache.loop_cases import BLOCK_SIZE, Loop, prefill_case
from minillm.worker.prefill import prefill
from minillm.worker.runner import ModelRunner
from minillm.worker.step import PrefillChunk, SequenceRows

Chunks = Sequence[PrefillChunk]


def prefill_with(rows: Callable[[PrefillChunk], SequenceRows]) -> Loop:
    """Prefill with another function from a chunk to the runner's input."""
    return lambda runner, chunks: runner.last_logits([rows(chunk) for chunk in chunks])


def as_rows(chunks: Chunks) -> list[SequenceRows]:
    """The engine's own rows."""
    return [SequenceRows(chunk.token_ids, chunk.start, chunk.block_table) for chunk in chunks]


def one_pass_each(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """One run of the model for each chunk."""
    return torch.cat([prefill(runner, [chunk]) for chunk in chunks])


def shortest_first(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """The result is sorted by the length of the chunks."""
    return prefill(runner, sorted(chunks, key=lambda chunk: len(chunk.token_ids)))


def first_table_for_all(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """Every chunk uses the first chunk's block table."""
    rows = [SequenceRows(chunk.token_ids, chunk.start, chunks[0].block_table) for chunk in chunks]
    return runner.last_logits(rows)


def one_long_sequence(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """All chunks are run as one chunk."""
    tokens = [token_id for chunk in chunks for token_id in chunk.token_ids]
    return runner.last_logits([SequenceRows(tokens, chunks[0].start, chunks[0].block_table)])


def token_by_token(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """The logits are correct, but the model runs once for each token."""
    logits = []
    for chunk in chunks:
        for i, token_id in enumerate(chunk.token_ids):
            row = runner.last_logits([SequenceRows([token_id], chunk.start + i, chunk.block_table)])
        logits.append(row)
    return torch.cat(logits)


PREFILL_CASES = (
    prefill_case("a whole prompt", [(0, 0, 14)]),
    prefill_case("one prompt in two chunks", [(1, 0, 4)], [(1, 4, 7)]),
    prefill_case(
        "two prompts in chunks, side by side", [(0, 0, 5), (1, 0, 5)], [(0, 5, 10), (1, 5, 7)], [(0, 10, 14)]
    ),
    prefill_case(
        "a preempted sequence, with its answer so far", [(0, 0, 9)], [(0, 9, 17)], answer=(5, 33, 2)
    ),
)
PREFILL_MISTAKES = (
    Mistake(
        "positions restart at 0 in the second chunk: a chunk begins at chunk.start",
        prefill_with(lambda c: SequenceRows(c.token_ids, 0, c.block_table)),
    ),
    Mistake(
        "the chunk is run at the position where it ends: its first token has position chunk.start",
        prefill_with(lambda c: SequenceRows(c.token_ids, c.end, c.block_table)),
    ),
    Mistake(
        "only the chunk's last token is run: the tokens before it must leave keys and values in the cache",
        prefill_with(lambda c: SequenceRows(c.token_ids[-1:], c.end - 1, c.block_table)),
    ),
    Mistake(
        "the last token is left out: the next token is sampled from its logits",
        prefill_with(lambda c: SequenceRows(c.token_ids[:-1], c.start, c.block_table)),
    ),
    Mistake(
        "the table is cut to the chunk's own blocks: attention also reads the earlier blocks, and entry i of "
        "the table holds the positions from i * block_size on",
        prefill_with(lambda c: SequenceRows(c.token_ids, c.start, c.block_table[c.start // BLOCK_SIZE :])),
    ),
    Mistake("all chunks use the first chunk's block table: each sequence has its own", first_table_for_all),
    Mistake(
        "the chunks are run as one long sequence: each has its own positions and block table",
        one_long_sequence,
    ),
    Mistake(
        "one run of the model for each chunk: run it once for all, so every weight is read once",
        one_pass_each,
    ),
    Mistake(
        "one run of the model for each token: all tokens are known, so run the chunk at once", token_by_token
    ),
    Mistake("the rows of the logits are not in the order of the chunks", shortest_first),
    Mistake(
        "logits of every token are returned: return those of each chunk's last token, call `last_logits`",
        lambda runner, chunks: runner.all_logits(as_rows(chunks)),
    ),
    Mistake(
        "hidden states are returned: return logits, call `last_logits`",
        lambda runner, chunks: runner.forward(as_rows(chunks)),
    ),
)
