"""Contract C12 with drafts: what others draft changes nothing that a tenant inside its guarantee sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny
from tenant_worlds import BLOCK, View, load, params, watch

from minillm.config import TenantLimits
from minillm.engine.batch import PlannedStep
from minillm.engine.engine import Engine
from minillm.engine.step_plan import StepPlan
from minillm.engine.stepping import Stepper
from minillm.speculation.lookahead import LookaheadBudget
from minillm.speculation.proposal import NO_PROPOSAL, Lookahead, Proposal

LIMITS = {"b": TenantLimits(guaranteed_blocks=30, guaranteed_tokens_per_step=24)}
CATCHING_UP = [(5, [7] * 60, params(20)), (6, [9] * 50, params(30))]
UNLIKE = [
    (20, list(range(5, 26)), params(20)),
    (22, list(range(30, 90)), params(12)),
    (26, [9] * 30, params(3)),
]


def differing(quiet: View, other: View) -> list[str]:
    return [f.name for f in fields(View) if getattr(quiet, f.name) != getattr(other, f.name)]


def arrive(engine: Engine, step: int, chance: random.Random) -> None:
    """Three short prompts before each step: the draft model always has something to catch up with."""
    for _ in range(3):
        engine.add_request([chance.randrange(5, 290)] * 12, params(6), "a")


def some(engine: Engine, step: int, chance: random.Random) -> None:
    """One prompt before each step."""
    engine.add_request([7] * 12, params(9), "a")


class ForOthers:
    """A drafter that finds nothing in b's texts."""

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        return [Proposal([[5]]) if each.sequence.tenant == "a" else NO_PROPOSAL for each in lookaheads]  # type: ignore[attr-defined]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Nothing to learn."""


def seen_with_a_draft_model(folder: Path) -> list[str]:
    """What differs if others arrive while the draft model catches up with b's prompts, 4 tokens a step."""
    sizes = {
        "kv_memory": 2 * 200 * BLOCK * tiny.BLOCK_BYTES,
        "max_num_batched_tokens": 200,
        "max_num_seqs": 40,
    }
    options = sizes | {"prefill_chunk": 4, "draft_model": str(folder), "num_draft_tokens": 3}
    views = [
        watch(load(folder, LIMITS, **options), others, requests=CATCHING_UP) for others in (_nobody, arrive)
    ]
    assert len(views[0].outputs) < 50, "drafts were accepted"
    return differing(*views)


def seen_with_drafts_of_others(folder: Path) -> list[str]:
    """What differs if the others have drafts, and b has none."""
    parts = {"drafter": lambda model, config: ForOthers()}
    options = {"prefill_chunk": 5, "num_draft_tokens": 5, "adaptive_draft": False, "parts": parts}
    return differing(
        *(watch(load(folder, LIMITS, **options), others, requests=UNLIKE) for others in (_nobody, some))
    )


def _nobody(engine: Engine, step: int, chance: random.Random) -> None:
    """The others are idle."""


def test_the_draft_model_s_work_is_divided(folder: Path) -> None:
    assert seen_with_a_draft_model(folder) == []


def test_control_one_budget_for_all_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan: Callable[[Stepper, StepPlan], list[LookaheadBudget]] = Stepper._plan_lookahead

    def together(self: Stepper, step: StepPlan) -> list[LookaheadBudget]:
        return [budget._replace(group=0) for budget in plan(self, step)]

    monkeypatch.setattr(Stepper, "_plan_lookahead", together)
    assert {"outputs", "events"} <= set(seen_with_a_draft_model(folder))


def test_look_ahead_is_freed_at_the_same_place(folder: Path) -> None:
    assert seen_with_drafts_of_others(folder) == []


def test_control_freeing_only_if_nobody_has_a_draft_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: Any = Stepper._free_lookahead

    def only_if_nobody(self: Stepper, step: PlannedStep) -> None:
        if not step.is_speculative:
            free(self, step)

    monkeypatch.setattr(Stepper, "_free_lookahead", only_if_nobody)
    assert seen_with_drafts_of_others(folder) == ["events"]
