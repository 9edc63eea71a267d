"""A small model that guesses for a large one, over the same block ids.

    target KV   [block 5][block 2][block 7]        one page table for both: allocation, preemption, rollback
    draft KV    [block 5][block 2][block 7]        and prefix hits happen once, for both
                 |--- written ----|                how far: `draft.num_computed_tokens`

    catch up    tokens the draft has not seen (after a prefill, a pause, a run of accepted tokens)
    level 0     their last row's logits are the first guess
    level 1..   each guess is fed back: one row for each branch

A level of a small model is a few dozen microseconds of arithmetic, and a step of the engine ten times that.
So the levels never leave the drafter, and where the backend can, and nothing but chains is drafted, all of
them, the catching up included, are a single call (`decode_ahead`).

Guesses are drawn with the very noise the target will draw with (coupled sampling), or with noise of their
own, reported with their distribution (rejection sampling).

Paper: Leviathan et al. (arXiv 2211.17192). Left out: drafts that stop when they become unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from minillm.ops.sampling import DRAFT, DRAW, SamplingBatch
from minillm.speculation.levels import Branch, draw_levels
from minillm.speculation.proposal import NO_PROPOSAL, Lookahead, Proposal
from minillm.worker.runner import ModelRunner
from minillm.worker.step import Copy, SequenceRows


@dataclass(frozen=True)
class _CatchUp:
    """One sequence's rows in this call, and how far to draft behind them: 0 if it is still behind."""

    lookahead: Lookahead
    rows: SequenceRows
    depth: int


class DraftModel:
    """Drafts with `runner`'s model, whose cache has the target's block ids.

    Args:
        runner: the draft model over its own tensors.
        num_token_ids: ids the tokenizer has; others are never drafted.
        vocab_size: of the target; what is reported of probabilities is that wide.
        max_model_len: positions the draft model has; sequences beyond it are not drafted for.
        chunk: the most tokens it catches up with in one call, beside what every step brings.
        tree: candidates at each depth; of a chain one, and its length is the longest draft.
        with_probs: draw with own noise, and report what was drawn from.
    """

    def __init__(
        self,
        runner: ModelRunner,
        num_token_ids: int,
        vocab_size: int,
        max_model_len: int,
        chunk: int,
        tree: tuple[int, ...],
        with_probs: bool = False,
    ) -> None:
        self.runner = runner
        self._num_token_ids, self._vocab_size, self._chunk = num_token_ids, vocab_size, chunk
        self._max_model_len, self._with_probs = max_model_len, with_probs
        self._ranks = list(product(*map(range, tree)))  # which candidate each branch takes at each depth

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """A branch for each table; nothing for a sequence that is still being caught up with, or too long."""
        caught = sorted(self._catch_up(lookaheads), key=lambda c: -c.depth)
        if not caught:
            return [NO_PROPOSAL] * len(lookaheads)
        if self.runner.is_fused and all(map(self._is_plain, caught)):
            drafts = self._draft_at_once(caught)
        else:
            drafts = self._draft_by_levels(caught)
        return [drafts.get(id(lookahead), NO_PROPOSAL) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """The draft's keys are right up to the last token that stands, if it was fed to the draft at all."""
        if proposal.branches:
            sequence = lookahead.sequence
            fed = len(proposal.branches[branch]) - 1  # its last guess was never fed back
            sequence.draft.num_computed_tokens = sequence.num_tokens + min(fed, kept)

    def _catch_up(self, lookaheads: Sequence[Lookahead]) -> list[_CatchUp]:
        """What is to be fed of each sequence; the newest token at least, if there is no more.

        Who is nearly there goes first, and needs two tokens at most: a long prompt holds up nobody.
        """
        budget, caught = self._chunk + 2 * len(lookaheads), list[_CatchUp]()
        for lookahead in sorted(lookaheads, key=_behind):
            sequence = lookahead.sequence
            start, total = sequence.draft.num_computed_tokens, sequence.num_tokens
            end = min(total, start + budget)
            if end == start or total > self._max_model_len:
                continue
            depth = min(lookahead.depth, self._max_model_len - total + 1) if end == total else 0
            rows = SequenceRows(sequence.tokens(start, end), start, lookahead.block_tables[0])
            caught.append(_CatchUp(lookahead, rows, depth))
            sequence.draft.num_computed_tokens = end
            budget -= end - start
        return caught

    def _keys(self, caught: _CatchUp) -> list[int]:
        return caught.lookahead.sequence.noise_keys(caught.depth, DRAFT if self._with_probs else DRAW)

    # Chains, all levels in one call ---------------------------------------------------------

    def _is_plain(self, caught: _CatchUp) -> bool:
        """Whether one branch is drafted, and the sampler needs neither its tokens nor its distributions."""
        penalty = caught.lookahead.sequence.params.repetition_penalty
        return len(caught.lookahead.block_tables) == 1 and penalty == 1.0 and not self._with_probs

    def _draft_at_once(self, caught: list[_CatchUp]) -> dict[int, Proposal]:
        batch = SamplingBatch(
            params=[c.lookahead.sequence.filters for c in caught],
            keys=[0] * len(caught),  # one for each level is given apart
            seen=[()] * len(caught),
            num_token_ids=self._num_token_ids,
        )
        keys, depths = [self._keys(c) for c in caught], [c.depth for c in caught]
        tokens = self.runner.decode_ahead([c.rows for c in caught], depths, keys, batch)
        return {
            id(c.lookahead): Proposal([branch]) for c, branch in zip(caught, tokens, strict=True) if branch
        }

    # Anything, level by level ---------------------------------------------------------------

    def _draft_by_levels(self, caught: list[_CatchUp]) -> dict[int, Proposal]:
        logits = self.runner.last_logits([c.rows for c in caught])
        ready = [c for c in caught if c.depth]
        branches = [branch for row, c in enumerate(ready) for branch in self._branches(row, c)]
        if not branches:
            return {}
        self._copy_newest_block(ready)
        vocab_size = self._vocab_size if self._with_probs else 0
        probs = draw_levels(self.runner, branches, logits, self._num_token_ids, vocab_size)
        drafts = dict[int, Proposal]()
        for c in ready:
            rows = [row for row, branch in enumerate(branches) if branch.sequence is c.lookahead.sequence]
            drawn_from = torch.stack([level[rows[0]] for level in probs[: c.depth]]) if probs else None
            drafts[id(c.lookahead)] = Proposal([branches[row].tokens for row in rows], drawn_from)
        return drafts

    def _branches(self, row: int, caught: _CatchUp) -> list[Branch]:
        sequence, keys = caught.lookahead.sequence, self._keys(caught)
        tables = zip(caught.lookahead.block_tables, self._ranks, strict=False)
        return [Branch(sequence, row, table, ranks, caught.depth, keys) for table, ranks in tables]

    def _copy_newest_block(self, ready: Sequence[_CatchUp]) -> None:
        """Give every other branch the block that holds the newest token."""
        copies, size = list[Copy](), self.runner.block_size
        for c in ready:
            block, tables = (c.lookahead.sequence.num_tokens - 1) // size, c.lookahead.block_tables
            copies += [(tables[0][block], table[block]) for table in tables[1:]]
        self.runner.copy_blocks(copies)


def _behind(lookahead: Lookahead) -> int:
    """Tokens the draft has not seen."""
    return lookahead.sequence.num_tokens - lookahead.sequence.draft.num_computed_tokens
