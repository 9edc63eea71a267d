"""The event `blocks`: applied one after another, the changes give the tables that the engine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny

from minillm import LLM, SamplingParams
from minillm.engine.block_map import PUBLIC
from minillm.observe.events import Event

Tables = dict[tuple[str, int], list[int]]


class Follower:
    """Applies `blocks` events."""

    def __init__(self) -> None:
        self.tables: Tables = {}
        self.cached: set[int] = set()

    def __call__(self, event: Event) -> None:
        if event.kind != "blocks":
            return
        for request_id, index, ids in event["tables"]:
            self.tables[request_id, index] = ids
        assert not self.cached & set(event["cached"]) and set(event["uncached"]) <= self.cached
        self.cached = (self.cached | set(event["cached"])) - set(event["uncached"])
        self.tables = {key: ids for key, ids in self.tables.items() if ids}

    @property
    def used(self) -> set[int]:
        return {block for ids in self.tables.values() for block in ids}


def unused(llm: LLM) -> set[int]:
    """What the prefix caches say that they alone own."""
    memory: Any = llm.engine.memory
    managers = memory.lanes.values() if hasattr(memory, "lanes") else [memory]
    return {block for manager in managers if manager.cache for block in manager.cache._unused}


def steps(llm: LLM) -> Iterator[int]:
    recorded.submit(llm)
    for step in range(400):
        if not llm.engine.has_unfinished_requests():
            return
        llm.engine.step()
        yield step


def followed(llm: LLM) -> Follower:
    follower = Follower()
    llm.engine.events.listeners.append(follower)
    return follower


@pytest.mark.parametrize("name", recorded.OPTIONS)
def test_the_map_is_the_engine_s_after_every_step(folder: Path, tmp_path: Path, name: str) -> None:
    llm = recorded.load(folder, tmp_path / "run", name)
    follower, shared = followed(llm), 0
    for _ in steps(llm):
        engine = llm.engine
        own: Tables = {(s.request_id, s.index): s.block_table.block_ids for s in engine.scheduler.running}
        own[PUBLIC] = engine.memory.public.block_ids
        assert follower.tables == {key: ids for key, ids in own.items() if ids}
        assert follower.cached == unused(llm) and not follower.cached & follower.used
        stats = engine.stats()
        assert (len(follower.used), len(follower.cached)) == (stats["used_blocks"], stats["cached_blocks"])
        shared += sum(map(len, follower.tables.values())) > len(follower.used)
    assert shared > 0 and set(follower.tables) == ({PUBLIC} if name == "tenants" else set())


def test_only_changes_are_told(folder: Path, tmp_path: Path) -> None:
    """A table of one block that does not grow is told once; when its sequence has ended, as empty."""
    llm = recorded.load(folder, tmp_path / "run", "no cache")
    with llm.engine.events.record() as trace:
        llm.generate([5, 6, 7], SamplingParams(max_tokens=6, ignore_eos=True))
    told = [event["tables"] for event in trace if event.kind == "blocks"]
    assert [len(tables) for tables in told] == [1, 0, 0, 0, 0, 1]
    assert len(told[0][0][2]) == 1 and told[-1][0][2] == []


def test_a_failed_step_loses_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is replaced; the next event tells the new tables."""
    llm = recorded.load(folder, tmp_path / "run")
    follower = followed(llm)
    for step in steps(llm):
        if step == 6:
            with monkeypatch.context() as patched:
                patched.setattr(llm.engine._stepper._commit, "apply", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    llm.engine.step()
        elif step > 6:
            own = {(s.request_id, s.index): s.block_table.block_ids for s in llm.engine.scheduler.running}
            assert follower.tables == {key: ids for key, ids in own.items() if ids}
            assert follower.cached == unused(llm)


def test_control_a_lost_event_gives_another_map(folder: Path, tmp_path: Path) -> None:
    llm = recorded.load(folder, tmp_path / "run")
    events = [event for event in recorded.run(llm) if event.kind == "blocks"]
    lost = next(i for i, event in enumerate(events) if event["cached"])
    whole, less = Follower(), Follower()
    for event in events:
        whole(event)
    with pytest.raises(AssertionError):
        list(map(less, events[:lost] + events[lost + 1 :]))


def test_nobody_is_told_without_a_record(folder: Path) -> None:
    llm = recorded.load(folder, None)
    assert llm.engine.events.detail is None and llm.engine.events.listeners == []
    kinds = {event.kind for event in recorded.run(llm)}
    assert "step" in kinds and "blocks" not in kinds


def test_a_request_computes_the_same_when_it_is_recorded(folder: Path, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=12, seed=3, n=2)
    plain, written = tiny.load(folder), tiny.load(folder, record=tmp_path / "run")
    ids = [
        [[o.token_ids for o in r.outputs] for r in llm.generate(recorded.PROMPTS, params)]
        for llm in (plain, written)
    ]
    assert ids[0] == ids[1]
