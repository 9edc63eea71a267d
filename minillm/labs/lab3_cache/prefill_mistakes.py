"""Task 3.7: known mistakes of `prefill`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab3_cache.loop_cases import BLOCK_SIZE, Loop
from minillm.labs.lab3_cache.loop_mistakes import in_one_buffer, known, lookup_fails, runs_again
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
    return torch.cat([_one_by_one(runner, chunk) for chunk in chunks])


def _one_by_one(runner: ModelRunner, chunk: PrefillChunk) -> Tensor:
    for i, token_id in enumerate(chunk.token_ids):
        row = runner.last_logits([SequenceRows([token_id], chunk.start + i, chunk.block_table)])
    return row


def step_by_step(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """Token by token, all chunks side by side."""
    last: list[Any] = [None] * len(chunks)
    for i in range(max(len(chunk.token_ids) for chunk in chunks)):
        now = [n for n, chunk in enumerate(chunks) if i < len(chunk.token_ids)]
        rows = [
            SequenceRows([chunks[n].token_ids[i]], chunks[n].start + i, chunks[n].block_table) for n in now
        ]
        for n, row in zip(now, runner.last_logits(rows), strict=True):
            last[n] = row
    return torch.stack(last)


def all_then_last(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """The head is computed for every token, and most of the result is dropped."""
    ends = torch.tensor([len(chunk.token_ids) for chunk in chunks]).cumsum(0) - 1
    return runner.all_logits(as_rows(chunks))[ends]


def twice(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """Two runs: one writes the cache, one returns the logits."""
    runner.forward(as_rows(chunks))
    return prefill(runner, chunks)


def consumes(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """The chunks are empty afterwards."""
    logits = runner.last_logits([SequenceRows(list(c.token_ids), c.start, c.block_table) for c in chunks])
    for chunk in chunks:
        chunk.token_ids.clear()
    return logits


def moves_start(runner: ModelRunner, chunks: Chunks) -> Tensor:
    """Counts the tokens as computed."""
    logits, ends = prefill(runner, chunks), [chunk.end for chunk in chunks]
    for chunk, end in zip(chunks, ends, strict=True):
        chunk.start = end
    return logits


def returns_known(key: Callable[[PrefillChunk], Any]) -> Loop:
    """A chunk whose `key` has been seen is not run again."""

    def loop(runner: ModelRunner, chunks: Chunks) -> Tensor:
        memo = known(runner)
        new = [chunk for chunk in chunks if key(chunk) not in memo]
        for chunk, row in zip(new, prefill(runner, new) if new else (), strict=True):
            memo[key(chunk)] = row
        return torch.stack([memo[key(chunk)] for chunk in chunks])

    return loop


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
        "the chunk is run one position too late: its first token has position chunk.start",
        prefill_with(lambda c: SequenceRows(c.token_ids, c.start + 1, c.block_table)),
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
    Mistake(
        "one run of the model for each position: all tokens are known, so run the chunks at once",
        step_by_step,
    ),
    Mistake("the model is run twice for the same tokens: one run writes the cache and returns logits", twice),
    *(
        Mistake(
            "the tokens of earlier chunks are run again: their keys and values are in the cache",
            runs_again(key),
        )
        for key in (lambda c: id(c.block_table), lambda c: c.block_table[0])
    ),
    Mistake(
        "tokens are kept by their position alone: other sequences have other tokens at this position",
        runs_again(lambda c: None),
    ),
    Mistake(
        "a chunk with known tokens is not run: keys also depend on the tokens before, and the other "
        "sequence's blocks stay empty",
        returns_known(lambda c: (tuple(c.token_ids), c.start)),
    ),
    Mistake(
        "a chunk with known tokens and blocks is not run: the blocks may belong to another sequence now",
        returns_known(lambda c: (tuple(c.token_ids), c.start, tuple(c.block_table))),
    ),
    Mistake("the logits of an earlier call are overwritten: return a new tensor", in_one_buffer(prefill)),
    Mistake("the chunk's list of tokens is changed: the engine still needs it", consumes),
    Mistake("chunk.start is changed: the engine counts computed tokens after the step", moves_start),
    Mistake("the rows of the logits are not in the order of the chunks", shortest_first),
    Mistake(
        "logits are computed for every token, then dropped: the head runs for each chunk's last token only, "
        "call `last_logits`",
        all_then_last,
    ),
    Mistake(
        "logits of every token are returned: return those of each chunk's last token, call `last_logits`",
        lambda runner, chunks: runner.all_logits(as_rows(chunks)),
    ),
    Mistake(
        "hidden states are returned: return logits, call `last_logits`",
        lambda runner, chunks: runner.forward(as_rows(chunks)),
    ),
    Mistake("a lookup fails: a chunk has all that the loop needs, do not keep anything", lookup_fails),
)
