"""Fragmentation and headroom of the KV memory over the steps of a run.

    a sequence of 9 tokens:   [ x x x x | x x x x | x . . . ]     12 slots, 3 of them waste

    the pool:   | used by sequences | cached: unused, can be evicted | free |
                                    | headroom --------------------------- |

The blocks of different sequences can lie anywhere, so no block is lost between them. What is lost is the rest
of each sequence's last block (Kwon et al., PagedAttention, SOSP 2023). Left out: copies that a fork avoids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from minillm.observe.events import Event


class MemoryUse(NamedTuple):
    """The KV memory over a run.

    `fragmentation`: the share of all allocated slots that had no token. `worst_step`: the step whose own
    share was the largest. `headroom`: the fewest blocks that a sequence could have got, at the end of any
    step.
    """

    fragmentation: float = 0.0
    worst_step: int | None = None
    headroom: int | None = None


def memory_use(events: Iterable[Event]) -> MemoryUse:
    """The fragmentation and the headroom over the `step` events of a trace.

    Of a step: `event["slots"]` are allocated, `event["waste"]` of them have no token. Cached blocks are
    headroom too: they are evicted when room is needed. `fragmentation` is over the slots of all steps
    together, so a step with more slots counts more. Steps without slots have no share. Of equal shares the
    first step is the worst. Without a step: `MemoryUse()`; without slots: no worst step.

    The work may grow with the events, but not faster.
    """
    slots = waste = 0
    worst, worst_step, headroom = -1.0, None, None
    for event in events:
        if event.kind != "step":
            continue
        room = event["cached"] + event["free"]
        headroom = room if headroom is None else min(headroom, room)
        slots += event["slots"]
        waste += event["waste"]
        if event["slots"] and event["waste"] / event["slots"] > worst:
            worst, worst_step = event["waste"] / event["slots"], event.step
    return MemoryUse(waste / slots if slots else 0.0, worst_step, headroom)
