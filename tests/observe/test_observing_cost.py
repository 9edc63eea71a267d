"""The bench of what observing costs: it measures pairs, and leaves the engine as it was."""

from __future__ import annotations

from pathlib import Path

import tiny

from minillm.bench.observing import observing_cost


def test_pairs_are_measured_and_nobody_listens_afterwards(folder: Path) -> None:
    llm = tiny.load(folder)
    cost = observing_cost(llm, batch=3, pairs=40)
    assert cost.pairs == 40 and cost.batch == 3 and cost.step_seconds > 0
    assert cost.low <= cost.share <= cost.high
    assert llm.engine.events.listeners == [] and tiny.all_free(llm)
