"""Task 3.8: known mistakes of `decode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab3_cache.loop_cases import Loop
from minillm.labs.lab3_cache.loop_mistakes import in_one_buffer, known, lookup_fails, runs_again
from minillm.worker.decode import decode
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, SequenceRows

Rows = Sequence[DecodeRow]


def decode_with(rows: Callable[[DecodeRow], SequenceRows]) -> Loop:
    """Decode with another function from a row to the runner's input."""
    return lambda runner, batch: runner.last_logits([rows(row) for row in batch])


def one_pass_each(runner: ModelRunner, rows: Rows) -> Tensor:
    """One run of the model for each row."""
    return torch.cat([decode(runner, [row]) for row in rows])


def first_table_for_all(runner: ModelRunner, rows: Rows) -> Tensor:
    """Every row uses the first row's block table."""
    return runner.last_logits([SequenceRows([r.token_id], r.position, rows[0].block_table) for r in rows])


def first_position_for_all(runner: ModelRunner, rows: Rows) -> Tensor:
    """Every row uses the first row's position."""
    return runner.last_logits([SequenceRows([r.token_id], rows[0].position, r.block_table) for r in rows])


def one_long_sequence(runner: ModelRunner, rows: Rows) -> Tensor:
    """All rows are run as one sequence."""
    tokens = [row.token_id for row in rows]
    return runner.last_logits([SequenceRows(tokens, rows[0].position, rows[0].block_table)])


def hidden_states(runner: ModelRunner, rows: Rows) -> Tensor:
    """The output of the last layer, before the head."""
    return runner.forward([SequenceRows([r.token_id], r.position, r.block_table) for r in rows])


def twice(runner: ModelRunner, rows: Rows) -> Tensor:
    """Two runs: one writes the cache, one returns the logits."""
    decode(runner, rows)
    return decode(runner, rows)


def moves_position(runner: ModelRunner, rows: Rows) -> Tensor:
    """Counts the token as computed."""
    logits = decode(runner, rows)
    for row in rows:
        row.position += 1
    return logits


def returns_known(key: Callable[[DecodeRow], Any]) -> Loop:
    """A row whose `key` has been seen is not run again."""

    def loop(runner: ModelRunner, rows: Rows) -> Tensor:
        memo = known(runner)
        new = [row for row in rows if key(row) not in memo]
        for row, logits in zip(new, decode(runner, new) if new else (), strict=True):
            memo[key(row)] = logits
        return torch.stack([memo[key(row)] for row in rows])

    return loop


def once_each(runner: ModelRunner, rows: Rows) -> Tensor:
    """Rows with one token and one position are run once."""
    first = {(row.token_id, row.position): row for row in reversed(rows)}
    logits = dict(zip(first, decode(runner, list(first.values())), strict=True))
    return torch.stack([logits[row.token_id, row.position] for row in rows])


def counts_positions(runner: ModelRunner, rows: Rows) -> Tensor:
    """Keeps each table's next position."""
    memo, batch = known(runner), []
    for row in rows:
        at = memo.get(id(row.block_table), row.position)
        memo[id(row.block_table)] = at + 1
        batch.append(SequenceRows([row.token_id], at, row.block_table))
    return runner.last_logits(batch)


DECODE_MISTAKES = (
    Mistake(
        "the position is one too high: the token's position is row.position",
        decode_with(lambda r: SequenceRows([r.token_id], r.position + 1, r.block_table)),
    ),
    Mistake(
        "the position is one too low: it overwrites the key of the token before",
        decode_with(lambda r: SequenceRows([r.token_id], r.position - 1, r.block_table)),
    ),
    Mistake(
        "the token is run at position 0: the prompt comes before it; use row.position",
        decode_with(lambda r: SequenceRows([r.token_id], 0, r.block_table)),
    ),
    Mistake(
        "the whole sequence is computed again: all keys except the newest token's are in the cache",
        decode_with(lambda r: SequenceRows([r.token_id] * (r.position + 1), 0, r.block_table)),
    ),
    *(
        Mistake(
            "the whole sequence is computed again, from tokens that were kept: all keys except the newest "
            "token's are in the cache",
            runs_again(key, unknown=0),
        )
        for key in (lambda r: id(r.block_table), lambda r: r.block_table[0])
    ),
    *(
        Mistake("tokens of earlier steps are run again: their keys and values are in the cache", loop)
        for loop in (runs_again(lambda r: id(r.block_table)), runs_again(lambda r: r.block_table[0]))
    ),
    Mistake(
        "tokens are kept by their position alone: other sequences have other tokens at this position",
        runs_again(lambda r: None),
    ),
    Mistake(
        "a lookup fails: a row has all that the loop needs; the tokens before it are in the cache, so do not "
        "keep anything",
        lookup_fails,
    ),
    Mistake(
        "the table is cut to its last block: attention reads the keys of all blocks",
        decode_with(lambda r: SequenceRows([r.token_id], r.position, r.block_table[-1:])),
    ),
    Mistake("all rows use the first row's block table: each sequence has its own", first_table_for_all),
    Mistake("all rows use the first row's position: each sequence has its own", first_position_for_all),
    Mistake("the rows are run as one long sequence: each row belongs to another sequence", one_long_sequence),
    Mistake(
        "one run of the model for each sequence: run it once for all, so every weight is read once",
        one_pass_each,
    ),
    Mistake("the model is run twice for the same tokens: one run writes the cache and returns logits", twice),
    Mistake(
        "logits are kept by token and position: the tokens before differ from sequence to sequence",
        returns_known(lambda r: (r.token_id, r.position)),
    ),
    Mistake(
        "logits are kept by token, position and blocks: the blocks may belong to another sequence now",
        returns_known(lambda r: (r.token_id, r.position, tuple(r.block_table))),
    ),
    Mistake("the logits of an earlier call are overwritten: return a new tensor", in_one_buffer(decode)),
    Mistake(
        "rows with the same token and position are run once: the tokens before differ from sequence to "
        "sequence",
        once_each,
    ),
    Mistake(
        "positions are counted from step to step: a sequence can be rolled back; use row.position",
        counts_positions,
    ),
    Mistake("row.position is changed: the engine counts computed tokens after the step", moves_position),
    Mistake(
        "the rows of the logits are not in the order of the sequences",
        lambda runner, rows: decode(runner, rows[::-1]),
    ),
    Mistake(
        "hidden states are returned: return logits, call `last_logits`",
        hidden_states,
    ),
)
