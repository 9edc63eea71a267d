"""Loops that keep something from earlier calls: the mistakes that `prefill` and `decode` have in common.

What a student's file would keep in a global is kept here with the runner: each case begins without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from minillm.labs.lab3_cache.loop_cases import Loop
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, PrefillChunk, SequenceRows

Item = PrefillChunk | DecodeRow


def known(runner: ModelRunner) -> dict[Any, Any]:
    """What a loop keeps from call to call."""
    kept: dict[Any, Any] = vars(runner).setdefault("kept_by_a_loop", {})
    return kept


def new_tokens(item: Item) -> tuple[int, list[int]]:
    """The first position and the tokens of a chunk or a row."""
    if isinstance(item, DecodeRow):
        return item.position, [item.token_id]
    return item.start, list(item.token_ids)


def runs_again(key: Callable[[Any], Any], unknown: int | None = None) -> Loop:
    """Keeps tokens under `key(item)` and runs all that it has kept again; with `unknown`, from position 0."""

    def rows(runner: ModelRunner, item: Item) -> SequenceRows:
        at, new = new_tokens(item)
        tokens: dict[int, int] = known(runner).setdefault(key(item), {})
        tokens.update(enumerate(new, at))
        start = 0 if unknown is not None else at
        while start - 1 in tokens:
            start -= 1
        run = [tokens.get(position, unknown or 0) for position in range(start, at + len(new))]
        return SequenceRows(run, start, item.block_table)

    return lambda runner, items: runner.last_logits([rows(runner, item) for item in items])


def keeps(key: Callable[[Any], Any], loop: Loop) -> Loop:
    """Keeps the tokens under `key(item)` for another loop, and runs only the new ones."""

    def keeping(runner: ModelRunner, items: Sequence[Item]) -> Tensor:
        for item in items:
            at, new = new_tokens(item)
            known(runner).setdefault(key(item), {}).update(enumerate(new, at))
        return loop(runner, items)

    return keeping


def in_one_buffer(loop: Loop) -> Loop:
    """Returns the same memory for every batch of the same size."""

    def buffered(runner: ModelRunner, items: Sequence[Item]) -> Tensor:
        logits = loop(runner, items)
        buffer: Tensor = known(runner).setdefault(len(items), logits)
        return buffer.copy_(logits)

    return buffered


def lookup_fails(runner: ModelRunner, items: Sequence[Item]) -> Tensor:
    """Looks up what only an earlier call of another function would have stored."""
    raise KeyError(runner.block_size)
