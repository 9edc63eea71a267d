"""The budget for look-ahead: within rows and blocks, never less than they allow; which draft tokens count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.memory.block_table import blocks_for
from minillm.speculation.controller import Controller
from minillm.speculation.lookahead import NO_LOOKAHEAD, LookaheadBudget, Speculation, outcome
from minillm.speculation.proposal import NO_PROPOSAL, Proposal
from minillm.speculation.state import DraftState
from minillm.worker.step import VerifyResult

DEPTH = 5


def sequence(num_tokens: int, left: int, is_excluded: bool = False) -> Any:
    """`left` tokens may still be given to it."""
    draft = DraftState(is_excluded=is_excluded)
    return SimpleNamespace(num_tokens=num_tokens, max_tokens=left, output_token_ids=[], draft=draft)


def speculation(max_branches: int, max_tokens: int) -> Speculation:
    controller = Controller(DEPTH, max_branches, adaptive=False)
    return Speculation(None, controller, max_branches, max_tokens, 100)  # type: ignore[arg-type]


def needed(num_tokens: int, owned: int, depth: int, branches: int, size: int) -> tuple[int, int]:
    """(rows beyond the newest token's, blocks) of a look-ahead, counted one by one."""
    whole = {position // size for position in range(num_tokens + depth)}
    own = {position // size for position in range(num_tokens - 1, num_tokens + depth)}
    return branches * (1 + depth) - 1, len(whole) - owned + (branches - 1) * len(own)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 40),
    st.integers(0, 12),
)
def test_leave_is_all_that_fits(
    lanes: list[tuple[int, int, bool]], size: int, max_branches: int, rows: int, blocks: int
) -> None:
    """First the longest draft, then the most branches of it, one sequence after another."""
    sequences = [sequence(n, left, excluded) for n, left, excluded in lanes]
    owned = [blocks_for(n, size) for n, _, _ in lanes]
    plan = speculation(max_branches, len(lanes) + rows)
    leaves = plan.plan(sequences, owned, len(lanes), blocks, size)
    assert len(leaves) == len(lanes)
    for (n, left, excluded), has, leave in zip(lanes, owned, leaves, strict=True):

        def fits(depth: int, branches: int, lane: tuple[int, int, int, int] = (n, has, rows, blocks)) -> bool:
            want = needed(*lane[:2], depth, branches, size)
            return want[0] <= lane[2] and want[1] <= lane[3]

        depth = max(d for d in range(DEPTH + 1) if d <= left - 1 and (d == 0 or fits(d, 1)))
        if excluded or not depth:
            assert leave == NO_LOOKAHEAD
            continue
        branches = max(b for b in range(1, max_branches + 1) if fits(depth, b))
        assert leave == LookaheadBudget(depth, branches, needed(n, has, depth, branches, size)[1])
        rows -= needed(n, has, depth, branches, size)[0]
        blocks -= leave.blocks


@pytest.mark.parametrize(
    ("branches", "tokens", "appended", "expected"),
    [
        ([], [7], 1, (0, 0, 0)),
        ([[1, 2, 3]], [1, 2, 3, 9], 4, (3, 3, 3)),
        ([[1, 2, 3]], [1, 9], 2, (3, 3, 1)),
        ([[1, 2, 3]], [9], 1, (3, 3, 0)),
        ([[1, 2, 3]], [], 0, (3, 3, 0)),
        ([[1, 2], [1], [4, 5, 6]], [4, 9], 2, (6, 3, 1)),
        # The answer ends with the second of three drafted tokens that stand, and with the first of them.
        ([[1, 2, 3]], [1, 2, 3, 9], 2, (3, 3, 2)),
        ([[1, 2, 3]], [1, 2, 3, 9], 1, (3, 3, 1)),
    ],
)
def test_what_stands_behind_the_end_does_not_count(
    branches: list[list[int]], tokens: list[int], appended: int, expected: tuple[int, int, int]
) -> None:
    proposal = Proposal(branches) if branches else NO_PROPOSAL
    assert outcome(proposal, VerifyResult(tokens), appended) == expected
