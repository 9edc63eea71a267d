"""The draft model: a small model that drafts tokens for a large one, over the same block ids.

    target KV   [block 5][block 2][block 7]        both use one block table: allocation, preemption, rollback
    draft KV    [block 5][block 2][block 7]        and prefix hits happen once, for both
                 |--- written ----|                length: `draft.num_computed_tokens`

    catch up    compute the tokens that the draft model lacks (after a prefill, a pause, accepted tokens)
    level 0     the logits after the last of these rows give the first draft token
    level 1..   each draft token is fed back: one row per branch

One level of a small model takes a few dozen microseconds of arithmetic, and a step of the engine ten times as
long. So the drafter runs all levels itself, without the engine. If the backend is fused and only chains are
drafted, the catching up and all levels are a single call (`decode_ahead`).

In coupled verification, draft tokens are sampled with the same noise that the target will use. In rejection
sampling they are sampled with separate noise and reported with their distribution.

Paper: Leviathan et al. (arXiv 2211.17192). Left out: ending a draft early when the draft model is unsure.
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
from minillm.worker.step import Copy, PrefillChunk, SequenceRows


@dataclass(frozen=True)
class _CatchUp:
    """The rows of one sequence in this call, and its draft length: 0 if more tokens are still missing."""

    lookahead: Lookahead
    rows: SequenceRows
    depth: int


class DraftModel:
    """Drafts with the model of `runner`, whose KV cache uses the target's block ids.

    Args:
        runner: the draft model over its own KV tensors.
        num_token_ids: number of ids the tokenizer has; other ids are never drafted.
        vocab_size: vocabulary size of the target, the width of reported distributions.
        max_model_len: context length of the draft model; longer sequences get no draft.
        chunk: the most missing tokens of a group to compute in one call, besides the new ones of every step.
        tree: number of candidates at each depth (1 everywhere for a chain); its length is the longest draft.
        with_probs: sample with separate noise and report the distributions (rejection sampling).
        has_long_rope: the draft model tells short from long sequences, as its target does (longrope).
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
        has_long_rope: bool = False,
    ) -> None:
        self.runner = runner
        self._num_token_ids, self._vocab_size, self._chunk = num_token_ids, vocab_size, chunk
        self._max_model_len, self._with_probs = max_model_len, with_probs
        self._has_long_rope = has_long_rope
        self._ranks = list(product(*map(range, tree)))  # for each branch its candidate's rank at each depth

    def prefill(self, chunk: PrefillChunk) -> bool:
        """Compute keys and values of a chunk; False if it is beyond the draft model's context."""
        if chunk.start + len(chunk.token_ids) > self._max_model_len:
            return False
        offset = chunk.rope_offset if self._has_long_rope else 0
        self.runner.last_logits([SequenceRows(chunk.token_ids, chunk.start, chunk.block_table, offset)])
        return True

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """Draft one branch per table. A sequence that is too long, or not yet caught up, gets no draft."""
        caught = sorted(self._catch_up(lookaheads), key=lambda c: -c.depth)
        if not caught:
            return [NO_PROPOSAL] * len(lookaheads)
        if self.runner.is_fused and all(map(self._is_plain, caught)):
            drafts = self._draft_at_once(caught)
        else:
            drafts = self._draft_by_levels(caught)
        return [drafts.get(id(lookahead), NO_PROPOSAL) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Mark accepted tokens as computed by the draft model, if it was fed with them while drafting."""
        if proposal.branches:
            sequence = lookahead.sequence
            fed = len(proposal.branches[branch]) - 1  # the last draft token was never fed back
            sequence.draft.num_computed_tokens = sequence.num_tokens + min(fed, kept)

    def _catch_up(self, lookaheads: Sequence[Lookahead]) -> list[_CatchUp]:
        """Choose the missing tokens to compute for each sequence; at least the newest is always missing.

        Sequences that lack the fewest tokens go first. In normal decoding a sequence lacks at most two, so a
        long prompt does not delay the others. Each group has its own share of the work.
        """
        caught, left = list[_CatchUp](), dict[int, int]()  # tokens that each group may still compute
        for lookahead in lookaheads:
            left[lookahead.group] = left.get(lookahead.group, self._chunk) + 2
        for lookahead in sorted(lookaheads, key=_behind):
            sequence, group = lookahead.sequence, lookahead.group
            start, total = sequence.draft.num_computed_tokens, sequence.num_tokens
            end = min(total, start + left[group])
            if end == start or total > self._max_model_len:
                continue
            depth = min(lookahead.depth, self._max_model_len - total + 1) if end == total else 0
            offset = sequence.rope_offset if self._has_long_rope else 0
            rows = SequenceRows(sequence.tokens(start, end), start, lookahead.block_tables[0], offset)
            caught.append(_CatchUp(lookahead, rows, depth))
            sequence.draft.num_computed_tokens = end
            left[group] -= end - start
        return caught

    def _keys(self, caught: _CatchUp) -> list[int]:
        return caught.lookahead.sequence.noise_keys(caught.depth, DRAFT if self._with_probs else DRAW)

    # Chains: all levels in one call ---------------------------------------------------------

    def _is_plain(self, caught: _CatchUp) -> bool:
        """Whether `decode_ahead` can draft it: one branch, no repetition penalty, no distributions."""
        penalty = caught.lookahead.sequence.params.repetition_penalty
        return len(caught.lookahead.block_tables) == 1 and penalty == 1.0 and not self._with_probs

    def _draft_at_once(self, caught: list[_CatchUp]) -> dict[int, Proposal]:
        batch = SamplingBatch(
            params=[c.lookahead.sequence.filters for c in caught],
            keys=[0] * len(caught),  # unused: `decode_ahead` gets one key per level
            seen=[()] * len(caught),
            num_token_ids=self._num_token_ids,
        )
        keys, depths = [self._keys(c) for c in caught], [c.depth for c in caught]
        tokens = self.runner.decode_ahead([c.rows for c in caught], depths, keys, batch)
        return {
            id(c.lookahead): Proposal([branch]) for c, branch in zip(caught, tokens, strict=True) if branch
        }

    # Trees and distributions: level by level ------------------------------------------------

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
        offset = caught.rows.rope_offset
        return [Branch(sequence, row, table, ranks, caught.depth, keys, offset) for table, ranks in tables]

    def _copy_newest_block(self, ready: Sequence[_CatchUp]) -> None:
        """Copy the block that holds the newest token to every branch after the first."""
        copies, size = list[Copy](), self.runner.block_size
        for c in ready:
            block, tables = (c.lookahead.sequence.num_tokens - 1) // size, c.lookahead.block_tables
            copies += [(tables[0][block], table[block]) for table in tables[1:]]
        self.runner.copy_blocks(copies)


def _behind(lookahead: Lookahead) -> int:
    """The number of tokens that the draft model lacks."""
    return lookahead.sequence.num_tokens - lookahead.sequence.draft.num_computed_tokens
