"""Replicas: the inverted index against a search of all caches, and each rule of the routers by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
from list_caches import ListLRU, prompts

from minillm.bench.cache_sim import routing
from minillm.bench.cache_sim.generate import conversations
from minillm.bench.cache_sim.policies import LRU
from minillm.bench.cache_sim.replay import hit_rate, prefix_hits
from minillm.bench.cache_sim.report import ROUTERS, run_cache
from minillm.bench.cache_sim.routing import Fleet, Router, at_random, longest_prefix, round_robin, route
from minillm.bench.cache_sim.trace import TraceRequest


def slow_route(
    trace: Sequence[TraceRequest], nodes: int, blocks: int, router: str
) -> Iterator[tuple[int, int]]:
    """(node, hits) of each request: every cache is searched for every request."""
    caches = [ListLRU(blocks) for _ in range(nodes)]
    done: list[TraceRequest] = []
    where: list[int] = []
    computed = [0] * nodes
    for request in trace:
        load = [0] * nodes
        for earlier, node in zip(done, where, strict=True):
            load[node] += earlier.timestamp + 40 * earlier.output_length > request.timestamp
        bound, least = {"no rules": (math.inf, 0), "bound": (1.25, 0), "both": (1.25, 0.25)}[router]
        most = max(8, bound * (sum(load) + 1) / nodes)
        found = [prefix_hits(cache, request.hash_ids) for cache in caches]
        free = [node for node in range(nodes) if load[node] < most]
        longest = max(found[node] for node in free)
        if longest < least * len(request.hash_ids):
            longest = 0
        best = [node for node in free if found[node] == longest or longest == 0]
        node = min(best, key=lambda node: (load[node], computed[node], node))
        yield node, found[node]
        for block in reversed(request.hash_ids):
            caches[node].access(block)
        computed[node] += len(request.hash_ids) - found[node]
        done.append(request)
        where.append(node)


RULES = {
    "no rules": longest_prefix(math.inf, 0.0),
    "bound": longest_prefix(least_match=0.0),
    "both": longest_prefix(),
}


def fast_route(trace: Sequence[TraceRequest], fleet: Fleet, router: Router) -> Iterator[tuple[int, int]]:
    for request in trace:
        fleet.end_requests(request.timestamp)
        node = router(fleet, request.hash_ids)
        yield node, fleet.serve(node, request)


def busy_trace(seed: int) -> list[TraceRequest]:
    """A turn a second; 24 or 48 are in flight, so that each part of the load bound holds requests back."""
    made, tokens = conversations(12, seed), 1200 if seed % 2 else 600
    return [TraceRequest(i * 1000.0, r.input_length, tokens, r.hash_ids) for i, r in enumerate(made)]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_what_a_search_of_all_caches_finds(rules: str, seed: int) -> None:
    trace = busy_trace(seed)
    fast = list(fast_route(trace, Fleet(5, 30), RULES[rules]))
    assert fast == list(slow_route(trace, 5, 30, rules))
    used = len({node for node, _ in fast})
    assert used == 1 if rules == "no rules" else used >= 3


@pytest.mark.parametrize(
    "other",
    [longest_prefix(1.5, 0.25), longest_prefix(1.25, 0.5), longest_prefix(1.25, 0.0)],
    ids=["bound", "least match", "no least match"],
)
def test_control_another_rule_is_found(other: Router) -> None:
    trace = busy_trace(1)
    slow = list(slow_route(trace, 5, 30, "both"))
    assert list(fast_route(trace, Fleet(5, 30), RULES["both"])) == slow
    assert list(fast_route(trace, Fleet(5, 30), other)) != slow


def test_control_an_index_that_misses_evictions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(LRU):
        def access(self, block: int) -> list[int]:
            super().access(block)
            return []

    monkeypatch.setattr(routing, "LRU", Silent)
    wrong = [
        list(fast_route(trace, Fleet(5, 30), RULES["both"])) != list(slow_route(trace, 5, 30, "both"))
        for trace in map(busy_trace, range(4))
    ]
    assert any(wrong)


def test_round_robin_and_random_by_hand() -> None:
    """Two prompts in turns on two nodes: each node sees one of them. On three nodes each sees both."""
    trace = prompts(*[[0, 1], [2, 3]] * 6)
    two, three = (route(trace, Fleet(n, 4), round_robin()) for n in (2, 3))
    assert (two.hit_rate, two.load_imbalance, two.work_imbalance) == (20 / 24, 1, 1)
    assert three.hit_rate == (24 - 3 * 4) / 24
    assert route(trace, Fleet(1, 4), at_random()) == route(trace, Fleet(1, 4), round_robin())
    assert len({node for node, _ in fast_route(trace, Fleet(3, 4), at_random())}) == 3


def test_a_node_is_left_out_above_the_load_bound() -> None:
    """Twenty equal prompts at once on two nodes. Without a bound all stay where the first one went.

    With it the ninth goes to the other node, which then has the prefix too.
    """
    trace = [TraceRequest(0.0, 512, 25, (0,))] * 20
    bound, none = (route(trace, Fleet(2, 4), longest_prefix(b)) for b in (1.25, math.inf))
    assert (none.peak_load, none.load_imbalance) == (20, 2.0)
    assert (bound.peak_load, bound.load_imbalance) == (10, 1.0)
    assert (none.hit_rate, bound.hit_rate) == (19 / 20, 18 / 20)


def test_a_short_match_is_not_followed() -> None:
    """A new prompt that shares one block of five goes to the other node; its second turn follows it."""
    trace = prompts([0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [0, 5, 6, 7, 8, 9])
    assert list(fast_route(trace, Fleet(2, 9), longest_prefix())) == [(0, 0), (1, 0), (1, 5)]
    assert list(fast_route(trace, Fleet(2, 9), longest_prefix(least_match=0.2))) == [(0, 0), (0, 1), (0, 5)]


def test_one_node_is_one_cache() -> None:
    trace = conversations(30)
    for router in ROUTERS.values():
        found = route(trace, Fleet(1, 50), router())
        assert found.hit_rate == hit_rate(trace, LRU(50))
        assert (found.load_imbalance, found.work_imbalance) == (1, 1)


def test_a_thousand_nodes() -> None:
    """With prefix-aware routing a thousand small caches find nearly what one unbounded cache finds."""
    trace = conversations(300)
    report = run_cache(trace, [100], [1000], 100)
    rates = {row["router"]: row["hit_rate"] for row in report["fleets"]}
    aware = rates.pop("longest prefix, load bound, least match")
    assert aware > 0.9 * report["unbounded_hit_rate"] and aware > 3 * rates["round robin"]
    assert aware == max(aware, *rates.values())
