"""`EngineMetrics` over runs that Ctrl-C disturbs at many points: figures follow from what the trace shows."""

from __future__ import annotations

from collections import Counter

import pytest
from interrupts import Points
from recount import faults
from scenarios import SCENARIOS, Run, Stage

from minillm.observe.online import EngineMetrics


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage") / "model")


def disturbed(stage: Stage, name: str, stride: int) -> list[tuple[str, Run]]:
    """The runs of a scenario, each interrupted at one point, with the place of that point."""
    found = []
    for step in SCENARIOS[name].disturbed:
        counting = Points()
        stage.run(name, step, lambda engine, points=counting: points.around(engine.step)())  # type: ignore[misc]
        for target in range(step % stride, counting.count, stride):
            points = Points(target)
            run = stage.run(name, step, lambda engine, points=points: points.around(engine.step)())  # type: ignore[misc]
            found.append((points.where, run))
    return found


def has_late_token(run: Run) -> bool:
    """Whether a token's event comes after its sequence's end: Ctrl-C came between the token and its event."""
    ended = set[tuple[str, int]]()
    for event in run.trace:
        if event.kind == "finish":
            ended.add((event.request_id, event["index"]))
        elif event.kind == "sample" and any((r, i) in ended for r, i in event["requests"]):
            return True
    return False


def check(stage: Stage, name: str, stride: int) -> None:
    runs = disturbed(stage, name, stride)
    assert runs
    for where, run in runs:
        metrics = EngineMetrics().replay(run.trace)
        if has_late_token(run):
            continue
        assert faults(metrics, run.trace) == [], where
        if "_deliver_all" not in where:  # else the trace lacks an event
            assert metrics.num_live == metrics.waiting == metrics.running == 0, where


@pytest.mark.parametrize("name", SCENARIOS)
def test_figures_follow_after_an_interrupt_at_some_points(stage: Stage, name: str) -> None:
    check(stage, name, stride=97)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_figures_follow_after_an_interrupt_at_many_points(stage: Stage, name: str) -> None:
    check(stage, name, stride=5)


def test_some_of_these_traces_have_a_second_admit(stage: Stage) -> None:
    """The control: the case that needs care is among them."""
    admits = Counter[int]()
    for _, run in disturbed(stage, "prefill", stride=23):
        admits.update(Counter(e.request_id for e in run.trace if e.kind == "admit").values())
    assert admits[2] > 0
