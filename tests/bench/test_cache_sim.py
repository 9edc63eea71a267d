"""The cache simulator against slow oracles made of lists, with controls that must differ.

The trace of Mooncake's conversations is not part of this repository. With MINILLM_TRACE=FILE its figures are
tested too.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from list_caches import ListLRU, ListS3FIFO, prompts

from minillm.bench.cache_sim import s3_fifo
from minillm.bench.cache_sim.generate import conversations
from minillm.bench.cache_sim.policies import LRU, Policy
from minillm.bench.cache_sim.replay import hit_rate, prefix_hits
from minillm.bench.cache_sim.report import run_cache
from minillm.bench.cache_sim.s3_fifo import S3FIFO
from minillm.bench.cache_sim.trace import TraceRequest, read_trace

TRACE = Path(os.environ.get("MINILLM_TRACE", ""))
needs_trace = pytest.mark.skipif(
    not TRACE.is_file(), reason="MINILLM_TRACE names no trace of Mooncake's conversations"
)
COMMITTED = Path(__file__).with_name("conversations.jsonl")


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
