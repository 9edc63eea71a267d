"""Many replicas, each with a cache of its own: which one gets a request?

    request --> router --> node 0 [ LRU ]      round robin, random: the next turn of a chat lands anywhere,
                       --> node 1 [ LRU ]                           and its prefix is computed again
                       --> node 2 [ LRU ]      longest prefix:      it lands where its prefix is cached

    holders   block 0 -> {node 0, 1, 2}        an inverted index: the nodes that hold a block. A prefix is
              block 7 -> {node 1, 2}           cached on the nodes that hold all of its blocks, so the sets
              block 8 -> {node 2}              are intersected and no cache is searched

Two rules keep the longest prefix from harm. Nearly all prompts begin with the same block, so without rules
every request goes to the node that saw the first one.

    load bound    a node is left out while it has its share in flight: `LOAD_BOUND` times the mean, and at
                  least `LEAST_BOUND`, because decoding few sequences costs as much as decoding one
    least match   a prefix shorter than a quarter of the prompt is not followed: it is cheaper to compute it
                  again than to crowd one node and evict what the others need there

Of the nodes that remain, the one with the fewest requests in flight is taken, then the one that computed the
fewest blocks. Papers: Mirrokni et al., "Consistent Hashing with Bounded Loads" (SODA 2018); Zheng et al.,
"SGLang" (arXiv 2312.07104), whose router has a least match too.

Left out: queues. A request is in flight for `TOKEN_MS` milliseconds a token of its answer, wherever it runs.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from minillm.bench.cache_sim.policies import LRU
from minillm.bench.cache_sim.replay import prefix_hits
from minillm.bench.cache_sim.trace import TraceRequest

TOKEN_MS = 40.0
LOAD_BOUND = 1.25
LEAST_BOUND = 8
LEAST_MATCH = 0.25


class Fleet:
    """`nodes` replicas, each with an LRU of `blocks` blocks.

    `load`: requests in flight on each node. `computed`: blocks that each node had to compute.
    """

    def __init__(self, nodes: int, blocks: int) -> None:
        self.holders: defaultdict[int, set[int]] = defaultdict(set)
        self.load, self.computed = [0] * nodes, [0] * nodes
        self._ends: list[tuple[float, int]] = []  # a heap: (when a request in flight ends, its node)
        self._caches = [LRU(blocks) for _ in range(nodes)]

    @property
    def in_flight(self) -> int:
        """Requests in flight on all nodes."""
        return len(self._ends)

    def end_requests(self, now: float) -> None:
        """End the requests that are done at `now` (milliseconds)."""
        while self._ends and self._ends[0][0] <= now:
            self.load[heapq.heappop(self._ends)[1]] -= 1

    def serve(self, node: int, request: TraceRequest) -> int:
        """Begin a request on a node. Returns the hits."""
        cache, blocks = self._caches[node], request.hash_ids
        hits = prefix_hits(cache, blocks)
        for block in reversed(blocks):
            for evicted in cache.access(block):
                self.holders[evicted].remove(node)
            self.holders[block].add(node)
        self.load[node] += 1
        self.computed[node] += len(blocks) - hits
        heapq.heappush(self._ends, (request.timestamp + request.output_length * TOKEN_MS, node))
        return hits


Router = Callable[[Fleet, Sequence[int]], int]  # (the fleet, hash ids of a prompt) -> a node


def round_robin() -> Router:
    """A router that takes one node after the other."""
    turn = -1

    def choose(fleet: Fleet, _hash_ids: Sequence[int]) -> int:
        nonlocal turn
        turn = (turn + 1) % len(fleet.load)
        return turn

    return choose


def at_random(seed: int = 0) -> Router:
    """A router that takes any node."""
    random = Random(seed)
    return lambda fleet, _hash_ids: random.randrange(len(fleet.load))


def longest_prefix(load_bound: float = LOAD_BOUND, least_match: float = LEAST_MATCH) -> Router:
    """A router that takes the node with the longest cached prefix.

    `load_bound`: of the mean number of requests in flight, at least 1; infinite: no bound.
    `least_match`: the share of the prompt that must be cached, from 0 to 1.
    """

    def choose(fleet: Fleet, hash_ids: Sequence[int]) -> int:
        free = nodes = _below(load_bound, fleet)
        hits = 0
        for block in hash_ids:
            longer = nodes & fleet.holders.get(block, _NOBODY)
            if not longer:
                break
            nodes, hits = longer, hits + 1
        if hits < least_match * len(hash_ids):
            nodes = free
        return min(nodes, key=lambda node: (fleet.load[node], fleet.computed[node], node))

    return choose


_NOBODY: frozenset[int] = frozenset()


def _below(load_bound: float, fleet: Fleet) -> set[int]:
    """The nodes below the bound. There is always one, because not all can be above the mean."""
    share = load_bound * (fleet.in_flight + 1) / len(fleet.load)
    bound = max(LEAST_BOUND, math.ceil(share)) if math.isfinite(share) else math.inf
    return {node for node, load in enumerate(fleet.load) if load < bound}


@dataclass(frozen=True)
class Routed:
    """A trace on a fleet. Both imbalances are 1 where all nodes have the same.

    `peak_load`: the most requests that one node had in flight.
    `load_imbalance`: `peak_load` divided by that of a fleet whose requests are spread evenly.
    `work_imbalance`: blocks computed by the node that computed most, divided by the mean.
    """

    hit_rate: float
    peak_load: int
    load_imbalance: float
    work_imbalance: float


def route(trace: Iterable[TraceRequest], fleet: Fleet, router: Router) -> Routed:
    """Serve a trace of at least one request."""
    hits = blocks = peak = in_flight = 0
    for request in trace:
        fleet.end_requests(request.timestamp)
        node = router(fleet, request.hash_ids)
        hits += fleet.serve(node, request)
        blocks += len(request.hash_ids)
        peak, in_flight = max(peak, fleet.load[node]), max(in_flight, fleet.in_flight)
    nodes = len(fleet.load)
    return Routed(
        hit_rate=hits / blocks,
        peak_load=peak,
        load_imbalance=peak / math.ceil(in_flight / nodes),
        work_imbalance=max(fleet.computed) * nodes / sum(fleet.computed),
    )
