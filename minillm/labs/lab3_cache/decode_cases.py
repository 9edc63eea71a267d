"""Task 3.6, one token for every sequence: cases and known mistakes of `decode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.labs.grader.lab import Mistake
from minillm.labs.lab3_cache.loop_cases import Loop, decode_case
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


DECODE_CASES = (
    decode_case("one sequence, one token", [0], 1),
    decode_case("one sequence, three tokens", [0], 3),
    decode_case("two sequences, one token", [0, 1], 1),
    decode_case("two sequences, five tokens, into a new block", [0, 1], 5),
)
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
    Mistake(
        "the rows of the logits are not in the order of the sequences",
        lambda runner, rows: decode(runner, rows[::-1]),
    ),
    Mistake(
        "hidden states are returned: return logits, call `last_logits`",
        hidden_states,
    ),
)
