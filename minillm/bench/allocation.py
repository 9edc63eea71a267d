"""Paged and contiguous allocation on a trace of requests: memory only, without a model.

    contiguous   [ prompt | answer ........reserved for the longest request........ ]   one piece per request
    paged        [ 16 ][ 16 ][ 16 ][ 7 ]                                                blocks as needed

Contiguous allocation does not know the length of an answer, so it reserves the longest one of the trace.
Paging wastes less than a block per request. The comparison counts how many requests each policy holds at
once.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from minillm.errors import UsageError
from minillm.memory.block_table import blocks_for

LENGTH_DIVISOR = 4  # the trace's lengths are divided by it, to fit a context of 4,096


@dataclass(frozen=True)
class Allocation:
    """One policy on one trace: the share of allocated slots never filled, and requests held at once."""

    policy: str
    waste: float
    held_at_once: float


def read_trace(path: Path) -> list[tuple[int, int]]:
    """(prompt, answer) lengths in tokens, divided by `LENGTH_DIVISOR`, of a trace in the Azure format.

    Raises:
        UsageError: the file does not exist, or has other columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        hint = "it needs the columns ContextTokens and GeneratedTokens"
        raise UsageError(f"{path} is not a trace: {error}", hint) from None
    return [(prompt // LENGTH_DIVISOR, answer // LENGTH_DIVISOR) for prompt, answer in rows]


def compare(trace: list[tuple[int, int]], block_size: int, slots: int) -> list[Allocation]:
    """Both policies for the requests' final lengths, with memory for `slots` tokens."""
    final = [prompt + answer for prompt, answer in trace]
    longest = max(final)
    paged = [blocks_for(length, block_size) * block_size for length in final]
    return [
        _allocation("contiguous", final, [longest] * len(final), slots),
        _allocation(f"paged, blocks of {block_size}", final, paged, slots),
    ]


def _allocation(policy: str, filled: list[int], allocated: list[int], slots: int) -> Allocation:
    waste = 1 - sum(filled) / sum(allocated)
    return Allocation(policy, waste, _held(allocated, slots))


def _held(sizes: list[int], slots: int) -> float:
    """Requests that fit at once, in the order of the trace: the mean over all starting points."""
    counts, end, used = [], 0, 0
    for start, size in enumerate(sizes):
        while end < len(sizes) and used + sizes[end] <= slots:
            used += sizes[end]
            end += 1
        if end == len(sizes):
            break
        counts.append(end - start)
        used -= size
    return sum(counts) / len(counts) if counts else float(len(sizes))
