"""What `add_request` and a step do must not grow with the number of waiting requests: counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import tiny

from minillm import LLM, SamplingParams
from minillm.config import TenantLimits
from minillm.engine.queue_counts import QueueCounts

FOREVER = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True, deadline=3600.0)
OPTIONS: dict[str, Any] = {"max_num_seqs": 4, "max_queued_requests": 1 << 20, "max_queued_tokens": 1 << 30}
FEW, MANY = 40, 1200


def lines(call: Callable[[], Any]) -> int:
    """The number of Python lines that `call` executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def work(folder: Path, waiting: int, **options: Any) -> dict[str, int]:
    """Lines of `add_request`, of a step, and of a step with a listener, while `waiting` requests wait."""
    llm = tiny.load(folder, **(OPTIONS | options))
    tenants = ("ann", "ben", None)
    for i in range(waiting):
        llm.engine.add_request([5 + i % 9, 6, 7], FOREVER, tenants[i % 3])
    for _ in range(3):
        llm.engine.step()
    found = {"add": lines(lambda: llm.engine.add_request([5, 6, 7], FOREVER, "ann"))}
    llm.engine.step()
    found["step"] = lines(llm.engine.step)
    with llm.engine.events.record():
        llm.engine.step()
        found["step, listener"] = lines(llm.engine.step)
    found["stats"] = lines(llm.engine.stats)
    found["abort"] = lines(lambda: abort_one(llm))
    return found


def abort_one(llm: LLM) -> None:
    last = next(reversed(llm.engine._registry.live))
    llm.engine.abort_request(last)
    llm.engine.step()


LIMITS = {"ann": TenantLimits(guaranteed_blocks=8, guaranteed_tokens_per_step=4), "ben": TenantLimits(8, 40)}


@pytest.mark.parametrize("options", [{}, {"tenant_limits": LIMITS}], ids=["plain", "limits"])
def test_the_work_does_not_grow_with_the_queue(folder: Path, options: dict[str, Any]) -> None:
    few, many = work(folder, FEW, **options), work(folder, MANY, **options)
    # A few lines more: a search by halves looks at more places of a longer line.
    assert {name: many[name] - few[name] for name in few if many[name] > few[name] + 60} == {}


def test_control_counting_everybody_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_room = QueueCounts.require_room

    def recount(counts: QueueCounts, request: Any) -> None:
        counts.distrust()
        counts.refresh([*counts.waiting.values(), *counts.started.values()])
        require_room(counts, request)

    few = work(folder, FEW)
    monkeypatch.setattr(QueueCounts, "require_room", recount)
    assert work(folder, MANY)["add"] > few["add"] + 10 * (MANY - FEW) // 2
