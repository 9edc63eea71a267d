"""Look-ahead: plan how many tokens to draft for each sequence, get the drafts, learn from the results.

    plan      give each sequence a look-ahead budget from the blocks and rows that the scheduler's plan leaves
    propose   the drafter drafts up to `depth` tokens for each sequence, in one or several branches
    verify    one ragged pass of the target over every newest token and every draft token (in the worker):

              sequence a   newest a1 a2 a3      4 rows        attention and arithmetic of a row are the
              sequence b   newest               1 row         same as in prefill and decode (contract C2)
              sequence c   newest c1 c2         3 rows

    learn     the drafter and the controller get the accepted tokens

    table   [ full ][ full ][ t t t n ][ 1 2 3 - ]        n newest, 1 accepted, 2 and 3 rejected:
                                       [ 1 x x - ]        x are never read (kv_len ends before them), never
                                                          published, and overwritten by the next tokens

Look-ahead uses only blocks and rows that are left over. If there are too few, it shrinks, even to nothing.
So the same requests are admitted, refused and capped with and without speculation (contract C7).

Paper: Leviathan et al. (arXiv 2211.17192). Left out: drafting the next step while this one is verified.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from minillm.errors import PartError
from minillm.memory.block_table import blocks_for
from minillm.speculation.controller import Controller
from minillm.speculation.proposal import NO_PROPOSAL, Drafter, DraftSequence, Lookahead, Proposal
from minillm.worker.step import VerifyResult


class LookaheadBudget(NamedTuple):
    """What one sequence may use: tokens to draft, branches, and the additional blocks for them.

    `group`: as in `Lookahead`.
    """

    depth: int
    branches: int
    blocks: int
    group: int = 0


NO_LOOKAHEAD = LookaheadBudget(0, 1, 0)


class Outcome(NamedTuple):
    """One sequence in one step: all draft tokens, the tokens of the longest branch, the accepted tokens."""

    drafted: int
    depth: int
    accepted: int


class Speculation:
    """Plans look-ahead and calls the drafter. `max_tokens`: the most rows of a step."""

    def __init__(
        self, drafter: Drafter, controller: Controller, max_branches: int, max_tokens: int, vocab_size: int
    ) -> None:
        self.drafter, self.controller = drafter, controller
        self.max_tokens, self._max_branches, self._vocab_size = max_tokens, max_branches, vocab_size

    def plan(
        self,
        sequences: Sequence[DraftSequence],
        owned: Sequence[int],
        rows: int,
        blocks: int,
        size: int,
        adaptive: bool = True,
    ) -> list[LookaheadBudget]:
        """Give each sequence of a step a look-ahead budget, as far as there is room and drafting pays.

        Args:
            sequences: the decoding sequences of this step.
            owned: the number of blocks that each will have for its newest token.
            rows: rows of the step that are already used.
            blocks: free blocks of `size` tokens that nothing else in this step needs.
            adaptive: False gives the full depth, whatever the controller has measured.
        """
        rows, budgets = self.max_tokens - rows, list[LookaheadBudget]()
        depths = self.controller.choose(sequences) if adaptive else [self.controller.depth] * len(sequences)
        for sequence, has, wanted in zip(sequences, owned, depths, strict=True):
            # A step gives one token more than it drafts.
            depth = min(wanted, sequence.max_tokens - len(sequence.output_token_ids) - 1, rows)
            budget = NO_LOOKAHEAD
            if depth > 0 and not sequence.draft.is_excluded:
                budget = self._fit(sequence.num_tokens, has, LookaheadBudget(depth, rows, blocks), size)
            if budget.depth:
                rows -= budget.branches * (1 + budget.depth) - 1
                blocks -= budget.blocks
            budgets.append(budget)
        return budgets

    def _fit(self, num_tokens: int, owned: int, most: LookaheadBudget, size: int) -> LookaheadBudget:
        """Find the longest draft that fits, then the most branches. `most`: depth, rows and blocks left."""
        depth, rows, blocks, _ = most
        while depth and (taken := blocks_for(num_tokens + depth, size) - owned) > blocks:
            depth -= 1
        if depth == 0:
            return NO_LOOKAHEAD
        branch_blocks = blocks_for(num_tokens + depth, size) - (num_tokens - 1) // size
        more = min(self._max_branches - 1, (rows - depth) // (depth + 1), (blocks - taken) // branch_blocks)
        return LookaheadBudget(depth, 1 + more, taken + more * branch_blocks)

    def propose(self, lookaheads: Sequence[Lookahead]) -> tuple[list[Proposal], float]:
        """Return a proposal for each look-ahead, and the drafting time in seconds.

        The drafter is not called for a look-ahead of depth 0.

        Raises:
            PartError: a proposal is malformed or exceeds its look-ahead.
        """
        asked = [lookahead for lookahead in lookaheads if lookahead.depth]
        started = time.perf_counter()
        found = self.drafter.propose(asked)
        seconds = time.perf_counter() - started
        if not isinstance(found, list) or len(found) != len(asked):
            number = len(found) if isinstance(found, list) else type(found).__name__
            raise PartError(
                f"the drafter returned {number} for {len(asked)} sequences",
                "return a list of Proposals, one per sequence",
            )
        answers = iter(found)
        return [
            self._checked(lookahead, next(answers)) if lookahead.depth else NO_PROPOSAL
            for lookahead in lookaheads
        ], seconds

    def _checked(self, lookahead: Lookahead, proposal: Proposal) -> Proposal:
        """Return the proposal if it is valid. The drafter may be a replaced part."""
        if not _is_proposal(proposal):
            raise PartError(
                f"the drafter returned a {type(proposal).__name__}, not a Proposal of token ids",
                "branches must be a list of lists of int",
            )
        branches, depth = proposal.branches, lookahead.depth
        if len(branches) > len(lookahead.block_tables) or any(len(branch) > depth for branch in branches):
            raise PartError(
                f"the drafter returned {len(branches)} branches of up to {max(map(len, branches))} tokens; "
                f"allowed are {len(lookahead.block_tables)} of {depth}",
                "draft at most Lookahead.depth tokens in each of len(Lookahead.block_tables) branches",
            )
        for token_id in (token_id for branch in branches for token_id in branch):
            if not 0 <= token_id < self._vocab_size:
                raise PartError(
                    f"the drafter returned token id {token_id}, outside the vocabulary of {self._vocab_size}",
                    "the draft must share the target's tokenizer",
                )
        probs, wanted = proposal.probs, (len(branches[0]) if branches else 0, self._vocab_size)
        if probs is not None and not (
            isinstance(probs, Tensor) and probs.is_floating_point() and tuple(probs.shape) == wanted
        ):
            raise PartError(
                f"the drafter returned probs that are not floating-point numbers of shape {list(wanted)}",
                "return one row per token of the branch",
            )
        return proposal

    # Learning -------------------------------------------------------------------------------

    def record_target(self, rows: int, seconds: float) -> None:
        """Record the time of a decode or verification pass of the target over `rows` rows, with sampling."""
        self.controller.record_target(rows, seconds)

    def learn(
        self,
        lookaheads: Sequence[Lookahead],
        proposals: Sequence[Proposal],
        results: Sequence[VerifyResult],
        seconds: float,
    ) -> None:
        """Report the results to the drafter and the controller. `seconds`: the drafting time."""
        levels = branches = 0
        is_usual = True  # not timed: a sequence's first draft, before which its whole prompt is computed
        for lookahead, proposal, result in zip(lookaheads, proposals, results, strict=True):
            if not proposal.branches:
                continue
            sequence = lookahead.sequence
            self.drafter.settle(lookahead, proposal, result.branch, result.accepted)
            if not result.tokens:
                sequence.draft.is_excluded = True
            drafted = len(proposal.branches[result.branch])
            self.controller.record_result(sequence, drafted, result.accepted)
            is_usual &= sequence.draft.num_drafted > 0
            levels, branches = max(levels, drafted), branches + len(proposal.branches)
        if levels and is_usual:
            self.controller.record_draft(branches, levels, seconds)


def outcome(proposal: Proposal, result: VerifyResult, appended: int) -> Outcome:
    """Count the tokens of a result. Accepted tokens after the end of the answer do not count."""
    depth = max(map(len, proposal.branches), default=0)
    return Outcome(sum(map(len, proposal.branches)), depth, min(result.accepted, appended))


def _is_proposal(proposal: object) -> bool:
    return (
        isinstance(proposal, Proposal)
        and isinstance(proposal.branches, list)
        and all(
            isinstance(branch, list) and all(isinstance(token, int) for token in branch)
            for branch in proposal.branches
        )
    )
