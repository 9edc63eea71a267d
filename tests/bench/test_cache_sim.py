"""The cache simulator against slow oracles made of lists, with controls that must differ.

The trace of Mooncake's conversations is not part of this repository. With MINILLM_TRACE=FILE its figures are
tested too.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.bench.cache_sim import routing, s3_fifo
from minillm.bench.cache_sim.generate import conversations
from minillm.bench.cache_sim.policies import LRU, Policy
from minillm.bench.cache_sim.replay import hit_rate, prefix_hits
from minillm.bench.cache_sim.report import ROUTERS, run_cache
from minillm.bench.cache_sim.routing import Fleet, Router, at_random, longest_prefix, round_robin, route
from minillm.bench.cache_sim.s3_fifo import S3FIFO
from minillm.bench.cache_sim.trace import TraceRequest, read_trace

TRACE = Path(os.environ.get("MINILLM_TRACE", ""))
needs_trace = pytest.mark.skipif(
    not TRACE.is_file(), reason="MINILLM_TRACE names no trace of Mooncake's conversations"
)
COMMITTED = Path(__file__).with_name("conversations.jsonl")


def prompts(*hash_ids: Sequence[int]) -> list[TraceRequest]:
    """A request a second, with answers of 25 tokens: each is over when the next one comes."""
    return [TraceRequest(1000.0 * i, 512 * len(ids), 25, tuple(ids)) for i, ids in enumerate(hash_ids)]


# ---- oracles --------------------------------------------------------------------------------------


class ListLRU:
    """The least recently used block is first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.order = capacity, list[int]()

    def __contains__(self, block: int) -> bool:
        return block in self.order

    def access(self, block: int) -> list[int]:
        before = list(self.order)
        self.order = [*(b for b in self.order if b != block), block][-self.capacity :]
        return [b for b in before if b not in self.order]


class ListS3FIFO:
    """Algorithm 1 of the paper, line by line. Heads are at index 0, tails at index -1."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tenth = max(1, capacity // 10)
        self.s, self.m, self.g = list[int](), list[int](), list[int]()
        self.freq: dict[int, int] = {}

    def __contains__(self, block: int) -> bool:
        return block in self.s or block in self.m

    def access(self, x: int) -> list[int]:
        before = self.s + self.m
        if x in self:
            self.freq[x] = min(self.freq[x] + 1, 3)
        else:
            while len(self.s) + len(self.m) >= self.capacity:
                if len(self.s) >= self.tenth:
                    self.evict_s()
                else:
                    self.evict_m()
            (self.m if x in self.g else self.s).insert(0, x)
            self.g = [b for b in self.g if b != x]
            self.freq[x] = 0
        return [b for b in before if b not in self]

    def evict_s(self) -> None:
        evicted = False
        while not evicted and self.s:
            t = self.s.pop()
            if self.freq[t] > 1:
                self.freq[t] = 0
                self.m.insert(0, t)
                if len(self.m) > self.capacity - self.tenth:
                    self.evict_m()
            else:
                self.g = [t, *self.g][: self.capacity - self.tenth]
                evicted = True

    def evict_m(self) -> None:
        evicted = False
        while not evicted and self.m:
            t = self.m.pop()
            if self.freq[t] > 0:
                self.m.insert(0, t)
                self.freq[t] -= 1
            else:
                evicted = True


Make = Callable[[int], Policy]


def agree(policy: Policy, oracle: Policy, accesses: Sequence[int]) -> bool:
    """Whether both hold and evict the same blocks at all times."""
    for block in accesses:
        if (block in policy) != (block in oracle):
            return False
        if sorted(policy.access(block)) != sorted(oracle.access(block)):
            return False
    return all((block in policy) == (block in oracle) for block in set(accesses))


def random_accesses(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [int(rng.expovariate(0.1)) for _ in range(300)]


# ---- policies -------------------------------------------------------------------------------------

PAIRS = pytest.mark.parametrize(
    ("policy", "oracle"), [(LRU, ListLRU), (S3FIFO, ListS3FIFO)], ids=["lru", "s3-fifo"]
)


@PAIRS
@settings(deadline=None)
@given(capacity=st.integers(1, 30), accesses=st.lists(st.integers(0, 40), max_size=200))
def test_a_policy_equals_its_oracle(policy: Make, oracle: Make, capacity: int, accesses: list[int]) -> None:
    assert agree(policy(capacity), oracle(capacity), accesses)


@PAIRS
def test_a_policy_equals_its_oracle_where_few_blocks_are_popular(policy: Make, oracle: Make) -> None:
    for seed in range(20):
        assert agree(policy(3 * seed + 1), oracle(3 * seed + 1), random_accesses(seed))


class Fifo(LRU):
    """LRU without what makes it LRU: a hit refreshes nothing."""

    def access(self, block: int) -> list[int]:
        return [] if block in self else super().access(block)


def test_control_a_hit_that_refreshes_nothing_is_found() -> None:
    assert not any(agree(Fifo(10), ListLRU(10), random_accesses(seed)) for seed in range(20))


@pytest.mark.parametrize("name", ["USED_OFTEN", "MAX_COUNT", "_remember"])
def test_control_each_rule_of_s3_fifo_is_found_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "_remember":
        monkeypatch.setattr(S3FIFO, name, lambda self, block: None)
    else:
        monkeypatch.setattr(s3_fifo, name, getattr(s3_fifo, name) - 1)
    assert not all(agree(S3FIFO(20), ListS3FIFO(20), random_accesses(seed)) for seed in range(20))


def test_s3_fifo_lets_blocks_pass_that_are_used_once() -> None:
    """Blocks 0 to 4 are used often, then 20 new blocks come: LRU of 10 loses them, S3-FIFO does not."""
    scan = [*[0, 1, 2, 3, 4] * 3, *range(100, 120)]
    caches = LRU(10), S3FIFO(10)
    for cache in caches:
        for block in scan * 2:
            cache.access(block)
    assert [sum(block in cache for block in range(5)) for cache in caches] == [0, 5]


# ---- hits -----------------------------------------------------------------------------------------


def test_a_hit_needs_all_blocks_before_it() -> None:
    cache = LRU(10)
    for block in (0, 7, 9):
        cache.access(block)
    assert prefix_hits(cache, (0, 7, 8, 9, 41)) == 2
    assert prefix_hits(cache, (8, 0, 7)) == 0
    assert prefix_hits(cache, (0, 7, 9)) == 3


def test_the_end_of_a_prompt_is_evicted_before_its_beginning() -> None:
    """A prompt of 4 blocks in a cache of 3: the first three are kept. From first to last, none would hit."""
    assert hit_rate(prompts([0, 1, 2, 3], [0, 1, 2, 3]), LRU(3)) == 3 / 8


def test_two_conversations_by_hand() -> None:
    """Two turns each, one system block, two new blocks a turn: 16 blocks, 9 distinct.

    LRU of 5, least recent first. After the first turns: 2 1 4 3 0, so 0 hits once. The third prompt hits
    0, 1 and 2, and leaves 6 5 2 1 0. The fourth finds only 0.
    """
    trace = prompts([0, 1, 2], [0, 3, 4], [0, 1, 2, 5, 6], [0, 3, 4, 7, 8])
    assert hit_rate(trace, LRU(9)) == 7 / 16
    assert hit_rate(trace, LRU(5)) == (1 + 3 + 1) / 16


# ---- a trace that is made here --------------------------------------------------------------------


def test_the_committed_trace_is_what_its_function_makes() -> None:
    assert read_trace(COMMITTED) == conversations(12, seed=4)


@pytest.mark.parametrize("trace", [read_trace(COMMITTED), conversations(100)], ids=["committed", "100"])
def test_only_new_blocks_miss(trace: list[TraceRequest]) -> None:
    """Every prompt repeats one before it, so each distinct block misses once."""
    distinct, blocks = set[int](), 0
    for request in trace:
        known = [block in distinct for block in request.hash_ids]
        assert known == sorted(known, reverse=True)
        distinct.update(request.hash_ids)
        blocks += len(request.hash_ids)
    for policy in (LRU, S3FIFO):
        assert hit_rate(trace, policy(len(distinct))) == (blocks - len(distinct)) / blocks
    assert hit_rate(trace, LRU(len(distinct) // 20)) < 1 - len(distinct) / blocks


@pytest.mark.parametrize("capacity", [3, 20, 60])
@PAIRS
def test_the_committed_trace_by_oracle(policy: Make, oracle: Make, capacity: int) -> None:
    trace = read_trace(COMMITTED)
    assert hit_rate(trace, policy(capacity)) == hit_rate(trace, oracle(capacity))


# ---- replicas -------------------------------------------------------------------------------------


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


# ---- Mooncake's trace -----------------------------------------------------------------------------


@needs_trace
def test_mooncakes_conversations() -> None:
    trace = read_trace(TRACE)
    assert len(trace) == 12_031
    expected = {1_000: 0.0445, 10_000: 0.2112, 30_000: 0.3257, 50_000: 0.3546, 100_000: 0.3637}
    report = run_cache(trace, list(expected), [1000], 1000)
    assert report["unbounded_hit_rate"] == pytest.approx(0.3664, abs=0.002)
    found = {row["blocks"]: row["hit_rate"] for row in report["caches"] if row["policy"] == "LRU"}
    assert found == pytest.approx(expected, abs=0.002)
    assert report["fleets"][-1]["hit_rate"] > 5 * report["fleets"][0]["hit_rate"]
