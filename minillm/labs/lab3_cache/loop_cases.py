"""The input of a loop in the cases of tasks 3.5 and 3.6: the tiny model, two prompts, block tables with room.

    a loop may          write keys and values to the cache, in one run of the model for all sequences
    a result contains   the logits; the number of runs and of rows; the tables, which must not change

The logits of the next step show whether the keys and values in the cache are correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from minillm.labs.grader.lab import Case, Words
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.memory.block_table import BlockTable
from minillm.worker.prefill import prefill
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, PrefillChunk, SequenceRows

PROMPTS = ([11, 25, 38, 4, 57, 60, 7, 83, 9, 10, 31, 2, 44, 70], [90, 1, 72, 3, 54, 25, 16])
NEXT = ([5, 40], [33, 8], [61, 61], [2, 17], [80, 12])  # arbitrary output tokens
BLOCK_SIZE = 4

Loop = Callable[[ModelRunner, Sequence[Any]], Tensor]


class WatchedRunner(ModelRunner):
    """The same runner; it records the number of rows of each run of the model."""

    def __init__(self, runner: ModelRunner) -> None:
        vars(self).update(vars(runner))
        self.passes: list[int] = []

    def forward(self, batch: Sequence[SequenceRows]) -> Tensor:
        self.passes.append(sum(len(rows.token_ids) for rows in batch))
        return super().forward(batch)

    def last_logits(self, batch: Sequence[SequenceRows]) -> Tensor:
        self.passes.append(sum(len(rows.token_ids) for rows in batch))
        return super().last_logits(batch)


class Setting:
    """A runner and two sequences whose blocks are not neighbours."""

    def __init__(self) -> None:
        engine = tiny_llm().engine
        self.runner = WatchedRunner(engine.worker.runner)
        self.tables = [BlockTable(engine.memory.pool) for _ in PROMPTS]

    def grow(self, index: int, num_tokens: int) -> list[int]:
        """The block table of sequence `index`, with room for so many tokens."""
        self.tables[index].grow(num_tokens)
        return self.tables[index].block_ids

    def run(self, loop: Loop, work: Sequence[Any]) -> list[Any]:
        """The loop's result, the runs of the model, and the block tables afterwards."""
        self.runner.passes.clear()
        logits = loop(self.runner, work)
        passes = self.runner.passes
        shown = Words(f"{len(passes)} {'pass' if len(passes) == 1 else 'passes'} over {sum(passes)} rows")
        return [logits, shown, [list(table.block_ids) for table in self.tables]]


def prefill_case(name: str, *steps: Sequence[tuple[int, int, int]], answer: Sequence[int] = ()) -> Case:
    """Prefill in steps, lists of (sequence, start, end). `answer` is appended to the first prompt."""

    def run(loop: Loop) -> list[Any]:
        setting = Setting()
        tokens = [[*PROMPTS[0], *answer], PROMPTS[1]]
        seen: list[Any] = []
        for step in steps:
            tables = [setting.grow(i, end) for i, _, end in step]
            chunks = [
                PrefillChunk(tokens[i][start:end], start, table)
                for (i, start, end), table in zip(step, tables, strict=True)
            ]
            seen.append(setting.run(loop, chunks))
        return seen

    return Case(name, run)


def decode_case(name: str, batch: Sequence[int], steps: int) -> Case:
    """Decode after the engine's prefill. The tokens are given, because only the logits are checked."""

    def run(loop: Loop) -> list[Any]:
        setting = Setting()
        tables = [setting.grow(i, len(prompt)) for i, prompt in enumerate(PROMPTS)]
        chunks = [PrefillChunk(prompt, 0, table) for prompt, table in zip(PROMPTS, tables, strict=True)]
        prefill(setting.runner, chunks)
        seen: list[Any] = []
        for step, tokens in enumerate(NEXT[:steps]):
            at = [len(prompt) + step for prompt in PROMPTS]
            rows = [DecodeRow(tokens[i], at[i], setting.grow(i, at[i] + 1)) for i in batch]
            seen.append(setting.run(loop, rows))
        return seen

    return Case(name, run)
