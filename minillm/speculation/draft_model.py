"""A small model that guesses for a large one, over the same block ids.

    target KV   [block 5][block 2][block 7]        one page table for both: allocation, preemption, rollback
    draft KV    [block 5][block 2][block 7]        and prefix hits happen once, for both
                 |--- written ----|                how far: `num_draft_computed_tokens`

    catch up    tokens the draft has not seen (after a prefill, a pause, a run of accepted tokens)
    level 0     their last row's logits are the first guess
    level 1..   each guess is fed back: one row for each path

The levels are a decode loop of their own, without the engine between two tokens: where every row goes is
known before the first, so the tensors that say so are made once for all levels.

Guesses are drawn with the very noise the target will draw with (coupled sampling), or with noise of their
own, reported with their distribution (rejection sampling).

Paper: Leviathan et al. (arXiv 2211.17192). Left out: drafts that stop when they become unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.model.runner import ModelRunner, SequenceRows
from minillm.ops.sampling import DRAFT, DRAW, SamplingBatch, best_tokens, probabilities
from minillm.speculation.drafts import NO_DRAFT, Draft, Lookahead


@dataclass
class _Path:
    """A path being drafted: whose it is, where, and which candidate it takes at each level."""

    lookahead: Lookahead
    row: int  # of the logits of level 0
    lane: list[int]
    ranks: Sequence[int]
    depth: int
    keys: list[int]
    tokens: list[int] = field(default_factory=list)


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
        self._ranks = list(product(*map(range, tree)))  # which candidate each path takes at each depth

    @torch.inference_mode()
    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Draft]:
        """A path in each lane; nothing for a sequence that is still being caught up with, or too long."""
        ready, logits = self._catch_up(lookaheads)
        paths = [path for row, lookahead in enumerate(ready) for path in self._paths(row, lookahead)]
        paths.sort(key=lambda path: -path.depth)  # stable; so those that go on are always the first
        if not paths:
            return [NO_DRAFT] * len(lookaheads)
        self._part_lanes(ready)
        probs = self._draw_levels(paths, logits)
        return [self._draft(lookahead, paths, probs) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, draft: Draft, lane: int, kept: int) -> None:
        """The draft's keys are right up to the last token that stands, if it was fed to the draft at all."""
        if draft.paths:
            sequence = lookahead.sequence
            fed = len(draft.paths[lane]) - 1  # its last guess was never fed back
            sequence.num_draft_computed_tokens = sequence.num_tokens + min(fed, kept)

    # Level 0 --------------------------------------------------------------------------------

    def _catch_up(self, lookaheads: Sequence[Lookahead]) -> tuple[list[Lookahead], Tensor]:
        """Feed what the draft has not seen; those who are up to date now, and their logits.

        Who is nearly there goes first, and needs two tokens at most: a long prompt holds up nobody.
        """
        budget = self._chunk + 2 * len(lookaheads)
        batch, ready, rows = list[SequenceRows](), list[Lookahead](), list[int]()
        for lookahead in sorted(lookaheads, key=_behind):
            sequence = lookahead.sequence
            start, total = sequence.num_draft_computed_tokens, sequence.num_tokens
            end = min(total, start + budget)
            if budget == 0 or total > self._max_model_len:
                continue
            if end == total:
                ready.append(lookahead)
                rows.append(len(batch))
            batch.append(SequenceRows(sequence.tokens(start, end), start, lookahead.lanes[0]))
            sequence.num_draft_computed_tokens = end
            budget -= end - start
        logits = self.runner.last_logits(batch) if batch else torch.empty(0)
        return ready, logits if len(rows) == len(batch) else logits[rows]

    def _paths(self, row: int, lookahead: Lookahead) -> list[_Path]:
        sequence, purpose = lookahead.sequence, DRAFT if self._with_probs else DRAW
        depth = min(lookahead.depth, self._max_model_len - sequence.num_tokens + 1)
        keys = sequence.noise_keys(depth, purpose)
        lanes = zip(lookahead.lanes, self._ranks, strict=False)
        return [_Path(lookahead, row, lane, ranks, depth, keys) for lane, ranks in lanes]

    def _part_lanes(self, lookaheads: Sequence[Lookahead]) -> None:
        """Give every other lane the block that holds the newest token."""
        source, destination, size = list[int](), list[int](), self.runner.block_size
        for lookahead in lookaheads:
            block = (lookahead.sequence.num_tokens - 1) // size
            source += [lookahead.lanes[0][block]] * (len(lookahead.lanes) - 1)
            destination += [lane[block] for lane in lookahead.lanes[1:]]
        if source:
            self.runner.copy_blocks(source, destination)

    # All levels -----------------------------------------------------------------------------

    def _draw_levels(self, paths: list[_Path], logits: Tensor) -> list[Tensor]:
        """Give every path its tokens, level by level; the levels' distributions, where they are wanted."""
        rows = [(path.lookahead.sequence.num_tokens, path.lane, path.depth - 1) for path in paths]
        steps = self.runner.step_metadata(rows)
        order = [path.row for path in paths]
        logits = logits if order == list(range(len(logits))) else logits[order]
        probs, ids = list[Tensor](), torch.empty(0)
        for level in range(paths[0].depth):
            paths = [path for path in paths if path.depth > level]
            if level:
                logits = self.runner.step_logits(ids[: len(paths)], steps[level - 1])
            batch = SamplingBatch(
                params=[path.lookahead.sequence.params for path in paths],
                keys=[path.keys[level] for path in paths],
                seen=[self._seen(path) for path in paths],
                num_token_ids=self._num_token_ids,
            )
            ids = self._choose(logits, batch, [path.ranks[level] for path in paths])
            if self._with_probs:
                probs.append(self._widen(probabilities(logits, batch)))
            for path, token_id in zip(paths, ids.tolist(), strict=True):
                path.tokens.append(token_id)
        return probs

    def _seen(self, path: _Path) -> list[int]:
        seen = path.lookahead.sequence.seen_token_ids
        return seen + path.tokens if seen else seen

    def _choose(self, logits: Tensor, batch: SamplingBatch, ranks: list[int]) -> Tensor:
        """The candidate of each row that its path takes: int64 [rows]."""
        most = max(ranks)
        if most == 0:
            return self.runner.decoder.ops.sample(logits, batch)
        best = best_tokens(logits, batch, most + 1)
        return best[torch.arange(len(ranks)), torch.tensor(ranks)]

    def _widen(self, probs: Tensor) -> Tensor:
        """As wide as the target's vocabulary; both end in padding that is never drawn."""
        return F.pad(probs, (0, self._vocab_size - probs.shape[1]))

    def _draft(self, lookahead: Lookahead, paths: list[_Path], probs: list[Tensor]) -> Draft:
        own = [(row, path) for row, path in enumerate(paths) if path.lookahead is lookahead]
        if not own:
            return NO_DRAFT
        row, first = own[0]
        drawn_from = torch.stack([level[row] for level in probs[: first.depth]]) if probs else None
        return Draft([path.tokens for _, path in own], drawn_from)


def _behind(lookahead: Lookahead) -> int:
    """Tokens the draft has not seen."""
    return lookahead.sequence.num_tokens - lookahead.sequence.num_draft_computed_tokens
