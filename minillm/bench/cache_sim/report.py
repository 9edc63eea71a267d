"""All figures of `minillm bench cache`: policies by size, and replicas by router.

The figures depend on the trace and the sizes alone, not on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

from minillm.bench.cache_sim.policies import LRU, Policy
from minillm.bench.cache_sim.replay import hit_rate
from minillm.bench.cache_sim.routing import (
    LEAST_BOUND,
    LEAST_MATCH,
    LOAD_BOUND,
    TOKEN_MS,
    Fleet,
    Router,
    at_random,
    longest_prefix,
    round_robin,
    route,
)
from minillm.bench.cache_sim.s3_fifo import S3FIFO
from minillm.bench.cache_sim.trace import TraceRequest
from minillm.bench.parts import Progress, no_progress, run_parts

POLICIES: dict[str, Callable[[int], Policy]] = {"LRU": LRU, "S3-FIFO": S3FIFO}
ROUTERS: dict[str, Callable[[], Router]] = {
    "round robin": round_robin,
    "random": at_random,
    "longest prefix, no rules": partial(longest_prefix, math.inf, 0.0),
    "longest prefix, load bound": partial(longest_prefix, LOAD_BOUND, 0.0),
    "longest prefix, load bound, least match": longest_prefix,
}


def run_cache(
    trace: Sequence[TraceRequest],
    sizes: Sequence[int],
    fleets: Sequence[int],
    node_blocks: int,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Every policy with each of `sizes` (blocks), every router on each of `fleets` (nodes).

    `node_blocks`: blocks of each node's cache.
    """
    caches = list(product(sizes, POLICIES))
    routed = list(product(fleets, ROUTERS))
    distinct = len({block for request in trace for block in request.hash_ids})

    def one_cache(size: int, policy: str) -> dict[str, Any]:
        return {"policy": policy, "blocks": size, "hit_rate": hit_rate(trace, POLICIES[policy](size))}

    def one_fleet(nodes: int, router: str) -> dict[str, Any]:
        found = route(trace, Fleet(nodes, node_blocks), ROUTERS[router]())
        return {"nodes": nodes, "router": router, **asdict(found)}

    parts: dict[str, Callable[[], Any]] = {"unbounded": lambda: hit_rate(trace, LRU(distinct))}
    parts |= {f"cache {i}": partial(one_cache, *pair) for i, pair in enumerate(caches)}
    parts |= {f"fleet {i}": partial(one_fleet, *pair) for i, pair in enumerate(routed)}
    found = run_parts(parts, progress)
    return {
        "trace": _summary(trace, distinct),
        "unbounded_hit_rate": found["unbounded"],
        "caches": [found[f"cache {i}"] for i in range(len(caches))],
        "fleets": [found[f"fleet {i}"] for i in range(len(routed))],
        "node_blocks": node_blocks,
        "load_bound": LOAD_BOUND,
        "least_bound": LEAST_BOUND,
        "least_match": LEAST_MATCH,
        "token_ms": TOKEN_MS,
    }


def _summary(trace: Sequence[TraceRequest], distinct: int) -> dict[str, Any]:
    return {
        "requests": len(trace),
        "seconds": (trace[-1].timestamp - trace[0].timestamp) / 1000,
        "prompt_tokens": sum(request.input_length for request in trace),
        "answer_tokens": sum(request.output_length for request in trace),
        "blocks": sum(len(request.hash_ids) for request in trace),
        "distinct_blocks": distinct,
    }
