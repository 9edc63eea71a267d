"""How far each sequence may look ahead in a step, what its drafter proposes, and what is learned from it.

    plan      leave to look ahead, out of what the scheduler's plan has left over: blocks and token budget
    propose   the drafter guesses up to `depth` tokens for each sequence, in one or several branches
    verify    one ragged pass of the target over every newest token and every guess (in the worker):

              sequence a   newest a1 a2 a3      4 rows        the same attention, the same arithmetic a row
              sequence b   newest               1 row         as in prefill and decode (contract C2)
              sequence c   newest c1 c2         3 rows

    learn     the drafter and the controller see which tokens stand

    table   [ full ][ full ][ t t t n ][ 1 2 3 - ]        n newest, 1 accepted, 2 and 3 rejected:
                                       [ 1 x x - ]        x are never read (kv_len ends before them), never
                                                          published, and overwritten by what comes next

Look-ahead takes only what is left over: where blocks or budget are short it shrinks, to nothing if need be.
So with and without speculation the same requests are admitted, refused, capped (contract C7).

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


class Leave(NamedTuple):
    """What one sequence may take: tokens to draft, branches, and the blocks that both need."""

    depth: int
    branches: int
    blocks: int


NO_LEAVE = Leave(0, 1, 0)


class Outcome(NamedTuple):
    """Of one sequence in one step: tokens drafted in all, tokens of the longest branch, tokens that stand."""

    drafted: int
    depth: int
    accepted: int


class Speculation:
    """Plans look-ahead and asks the drafter. `max_tokens` is the most rows of a step."""

    def __init__(
        self, drafter: Drafter, controller: Controller, max_branches: int, max_tokens: int, vocab_size: int
    ) -> None:
        self.drafter, self.controller = drafter, controller
        self._max_branches, self._max_tokens, self._vocab_size = max_branches, max_tokens, vocab_size

    def plan(
        self, sequences: Sequence[DraftSequence], owned: Sequence[int], rows: int, blocks: int, size: int
    ) -> list[Leave]:
        """Leave to look ahead for the sequences of a step, as far as there is room and it pays.

        Args:
            sequences: those that decode in this step.
            owned: how many blocks each will have for its newest token.
            rows: rows of the step that are taken already.
            blocks: blocks of `size` tokens that nobody else asks for.
        """
        rows, given = self._max_tokens - rows, list[Leave]()
        for sequence, has, wanted in zip(sequences, owned, self.controller.choose(sequences), strict=True):
            # The step gives one token more than it drafts.
            depth = min(wanted, sequence.max_tokens - len(sequence.output_token_ids) - 1, rows)
            leave = NO_LEAVE
            if depth > 0 and not sequence.draft.is_excluded:
                leave = self._fit(sequence.num_tokens, has, Leave(depth, rows, blocks), size)
            if leave.depth:
                rows -= leave.branches * (1 + leave.depth) - 1
                blocks -= leave.blocks
            given.append(leave)
        return given

    def _fit(self, num_tokens: int, owned: int, most: Leave, size: int) -> Leave:
        """The longest draft, then the most branches, that fit; `most`: the depth, rows and blocks left."""
        depth, rows, blocks = most
        while depth and (taken := blocks_for(num_tokens + depth, size) - owned) > blocks:
            depth -= 1
        if depth == 0:
            return NO_LEAVE
        branch_blocks = blocks_for(num_tokens + depth, size) - (num_tokens - 1) // size
        more = min(self._max_branches - 1, (rows - depth) // (depth + 1), (blocks - taken) // branch_blocks)
        return Leave(depth, 1 + more, taken + more * branch_blocks)

    def propose(self, lookaheads: Sequence[Lookahead]) -> tuple[list[Proposal], float]:
        """The drafter's proposals, and the seconds they took. Where depth is 0 it is not asked.

        Raises:
            PartError: a proposal goes beyond what was allowed.
        """
        asked = [lookahead for lookahead in lookaheads if lookahead.depth]
        started = time.perf_counter()
        found = self.drafter.propose(asked)
        seconds = time.perf_counter() - started
        if not isinstance(found, list) or len(found) != len(asked):
            number = len(found) if isinstance(found, list) else type(found).__name__
            raise PartError(
                f"the drafter gave {number} for {len(asked)} sequences",
                "give a list of Proposals, one for each",
            )
        answers = iter(found)
        return [
            self._checked(lookahead, next(answers)) if lookahead.depth else NO_PROPOSAL
            for lookahead in lookaheads
        ], seconds

    def _checked(self, lookahead: Lookahead, proposal: Proposal) -> Proposal:
        """The proposal, which may come from anybody's drafter, if it keeps to what was asked."""
        if not _is_proposal(proposal):
            raise PartError(
                f"the drafter gave a {type(proposal).__name__} that is no Proposal of token ids",
                "branches is a list of lists of int",
            )
        branches, depth = proposal.branches, lookahead.depth
        if len(branches) > len(lookahead.block_tables) or any(len(branch) > depth for branch in branches):
            raise PartError(
                f"the drafter gave {len(branches)} branches of up to {max(map(len, branches))} tokens, "
                f"asked for {len(lookahead.block_tables)} of {depth}",
                "Lookahead says how much may be drafted",
            )
        for token_id in (token_id for branch in branches for token_id in branch):
            if not 0 <= token_id < self._vocab_size:
                raise PartError(
                    f"the drafter gave token id {token_id}, outside the vocabulary of {self._vocab_size}",
                    "the draft must share the target's tokenizer",
                )
        probs, wanted = proposal.probs, (len(branches[0]) if branches else 0, self._vocab_size)
        if probs is not None and (not isinstance(probs, Tensor) or tuple(probs.shape) != wanted):
            raise PartError(
                f"the drafter gave probs that are not {list(wanted)}", "one row for each token of the branch"
            )
        return proposal

    # What is learned ------------------------------------------------------------------------

    def saw_target(self, rows: int, seconds: float) -> None:
        """A decode or verifying pass of the target over so many rows took so long, draws included."""
        self.controller.saw_target(rows, seconds)

    def learn(
        self,
        lookaheads: Sequence[Lookahead],
        proposals: Sequence[Proposal],
        results: Sequence[VerifyResult],
        seconds: float,
    ) -> None:
        """Show drafter and controller what became of the proposals, which took `seconds` to make."""
        levels = branches = 0
        is_usual = True  # the first draft for a sequence has its whole prompt to catch up with
        for lookahead, proposal, result in zip(lookaheads, proposals, results, strict=True):
            if not proposal.branches:
                continue
            sequence = lookahead.sequence
            self.drafter.settle(lookahead, proposal, result.branch, result.accepted)
            if not result.tokens:
                sequence.draft.is_excluded = True
            drafted = len(proposal.branches[result.branch])
            self.controller.saw_result(sequence, drafted, result.accepted)
            is_usual &= sequence.draft.num_drafted > 0
            levels, branches = max(levels, drafted), branches + len(proposal.branches)
        if levels and is_usual:
            self.controller.saw_draft(branches, levels, seconds)


def outcome(proposal: Proposal, result: VerifyResult, appended: int) -> Outcome:
    """A result in numbers; what stands behind the end of an answer is no token of it."""
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
