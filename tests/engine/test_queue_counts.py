"""The counts of waiting requests decide as the rule does that looks at all of them (`require_place`)."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
from interrupts import Points

from minillm import SamplingParams
from minillm.config import EngineConfig, TenantLimits
from minillm.engine.queue_counts import QueueCounts, require_place
from minillm.engine.request import Request
from minillm.engine.sequence import Sequence
from minillm.errors import QueueFull
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.text.detokenizer import NullDetokenizer

TENANTS = ("ann", "ben", "cleo", "dan", None, "")
LIMITS: dict[str | None, TenantLimits] = {
    "ann": TenantLimits(guaranteed_blocks=4, max_queued_tokens=40),
    "ben": TenantLimits(max_queued_tokens=30),
    "cleo": TenantLimits(guaranteed_tokens_per_step=4),
    None: TenantLimits(max_queued_tokens=60),
}


def make(number: int, tenant: str | None, tokens: int) -> Request:
    table, params = BlockTable(BlockPool(4, 4)), SamplingParams(max_tokens=1)
    sequence = Sequence(
        f"r{number}", 0, [1] * tokens, params, 0, 1, table, NullDetokenizer(), tenant=tenant, order=number
    )
    return Request(sequence.request_id, [sequence])


def fits(request: Request, live: dict[str, Request], config: EngineConfig) -> bool:
    try:
        require_place(request, live.values(), config)
    except QueueFull:
        return False
    return True


def run(seed: int, limits: Any) -> list[str]:
    """Random additions, starts, ends and interrupts; what the counts got wrong."""
    chance, found = random.Random(seed), list[str]()
    config = EngineConfig(tenant_limits=limits, max_queued_requests=6, max_queued_tokens=90)
    counts, live = QueueCounts(config), dict[str, Request]()
    for number in range(400):
        request = make(number, chance.choice(TENANTS), chance.randrange(1, 40))
        counts.refresh(live.values())
        right = fits(request, live, config)
        if counts.has_room(request) != right:
            found.append(f"{number}: {not right}")
        if right:
            counts.begin()
            live[request.request_id] = request
            counts.add(request)
        for each in chance.sample(list(live.values()), min(len(live), chance.randrange(3))):
            if chance.random() < 0.5 and each.admitted is None:
                each.sequences[0].admitted = 1.0
                counts.note_started([each.request_id])
            else:
                counts.begin()
                ended = live.pop(each.request_id)
                if chance.random() < 0.9:  # otherwise an interrupt comes in the middle
                    counts.remove(ended)
        if chance.random() < 0.05:
            counts.waiting.clear()  # a failed step hides what has started
            counts.distrust()
    counts.refresh(live.values())
    assert {*counts.waiting} == {name for name, each in live.items() if each.admitted is None}
    assert {*counts.waiting, *counts.started} == {*live}
    return found


@pytest.mark.parametrize("limits", [None, LIMITS], ids=["no limits", "limits"])
def test_the_counts_decide_as_the_rule(limits: Any) -> None:
    assert [found for seed in range(20) for found in run(seed, limits)] == []


def test_an_interrupted_change_is_not_forgotten_after_the_next_one() -> None:
    """Two requests end in one step. Ctrl-C comes while the first is removed; recovery removes the second."""
    config, removals = EngineConfig(), Points()
    for target in range(20):
        counts, live = QueueCounts(config), {f"r{number}": make(number, "ben", 5) for number in range(3)}
        counts.distrust()
        for request in live.values():
            request.sequences[0].admitted = 1.0
        counts.refresh(live.values())
        removals = Points(target)
        counts.begin()
        with suppress(KeyboardInterrupt):
            removals.around(counts.remove)(live.pop("r0"))
        counts.begin()
        counts.remove(live.pop("r1"))
        counts.refresh(live.values())
        assert ({*counts.started}, {*counts.waiting}) == ({"r2"}, set()), removals.where
        if not removals.where:
            break
    assert not removals.where and removals.count > 2, "every point was tried"


def test_control_a_start_that_is_not_counted_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QueueCounts, "note_started", lambda counts, ids: None)
    with pytest.raises(AssertionError):
        assert run(0, LIMITS) == []


def test_a_tenant_that_has_left_leaves_no_entry() -> None:
    counts = QueueCounts(EngineConfig(tenant_limits=LIMITS))
    for number in range(100):
        request = make(number, f"tenant {number}", 3)
        counts.add(request)
        counts.remove(request)
    assert not counts._requests and not counts._tokens and not counts.waiting and not counts.started
