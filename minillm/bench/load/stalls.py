"""Stalls counted without a clock: the tokens that the engine computed between two tokens of a sequence.

    step      1      2                 3      4
    computed  2      2 + 512 prompt    2      2          tokens of all sequences
    A         a1     a2                a3     a4         stalls of A: 514, 2, 2
    B         b1     b2                b3     b4

A long prompt that is prefilled whole, or a preemption, is a large number here on every machine: it depends on
what the scheduler chose and not on how fast the processor is. Of drafts, all rows that were verified count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, pairwise

from minillm.observe.events import Event


def stalls(events: Iterable[Event]) -> list[int]:
    """Tokens computed between each two tokens of each sequence; 0 for tokens of one step."""
    prefilled, decoded = Counter[int](), dict[int, int]()  # by step
    sampled = dict[tuple[str, int], list[int]]()
    for event in events:
        if event.kind == "prefill_chunk":
            prefilled[event.step] += event["end"] - event["start"]
        elif event.kind in ("decode_step", "speculate"):
            decoded[event.step] = event["rows"]  # of one step, `speculate` comes last and has all rows
        elif event.kind == "sample":
            for request_id, index in event["requests"]:
                sampled.setdefault((request_id, index), []).append(event.step)
    steps = sorted(prefilled.keys() | decoded)
    until = dict(zip(steps, accumulate(prefilled[s] + decoded.get(s, 0) for s in steps), strict=True))
    return [until[later] - until[earlier] for s in sampled.values() for earlier, later in pairwise(s)]
