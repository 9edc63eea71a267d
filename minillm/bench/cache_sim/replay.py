"""One cache on a trace: the share of prompt blocks that it finds.

for each request:   1. look up    [ 0 ][ 7 ][ 8 ]..     hits end at the first block that is absent
                    2. use all    8, 7, 0               from the last block to the first
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minillm.bench.cache_sim.policies import Policy
from minillm.bench.cache_sim.trace import TraceRequest


def prefix_hits(cache: Policy, hash_ids: Sequence[int]) -> int:
    """Blocks of the longest cached prefix."""
    for hits, block in enumerate(hash_ids):
        if block not in cache:
            return hits
    return len(hash_ids)


def hit_rate(trace: Iterable[TraceRequest], cache: Policy) -> float:
    """Hits divided by the prompt blocks of all requests. `cache` is empty before, and filled after."""
    hits = blocks = 0
    for request in trace:
        hits += prefix_hits(cache, request.hash_ids)
        blocks += len(request.hash_ids)
        for block in reversed(request.hash_ids):
            cache.access(block)
    return hits / blocks
