"""From the target's logits to a result for every sequence: which drafted tokens stand, and what follows them.

    rows   n  a1 a2 a3 | n  b1 b2        two branches of one sequence: two rows of logits for n, alike
    node   0  1  2  3    4  5  6         parents -1 0 1 2  -1 0 5: the second branch hangs on the first root

Coupled, the default: every row draws as it would without a draft, and `verify_coupled` walks the tree.
Rejection: `verify_draft` accepts by probabilities; chains only.
A sequence without a draft is sampled normally: its result must not depend on the others' drafts.

A row whose logits are NaN or infinite is never drawn from. In the middle of a branch the branch ends before
it. If it is the newest token's own, the cause may be a drafted token whose values overflow (0 x inf in a
masked place is NaN): nothing is emitted, and the sequence decodes without drafts from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Protocol

import torch
from torch import Tensor

from minillm.ops.columns import column
from minillm.ops.contract import Ops
from minillm.ops.sampling import Filters, SamplingBatch, probabilities, uniforms
from minillm.worker.step import DraftRows, VerifyResult
from minillm.worker.worker import Sampler

NO_TOKEN = -1  # a drafted token that no draw equals, a parent that no node is


class VerifyDraft(Protocol):
    """The rule of rejection sampling: `Ops.verify_draft`'s arguments and result."""

    def __call__(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]: ...


class Verifier:
    """Verifies drafts. `verify_draft` None means coupled; otherwise it is the rule of rejection sampling."""

    def __init__(
        self,
        ops: Ops,
        sampler: Sampler,
        verify_draft: VerifyDraft | None = None,
    ) -> None:
        self._ops, self._sampler, self._verify_draft = ops, sampler, verify_draft

    def verify(self, rows: Sequence[DraftRows], logits: Tensor, num_token_ids: int) -> list[VerifyResult]:
        """A result for each sequence; `logits` [num_rows, vocab_size] are all branches' rows, end to end."""
        healthy = self._ops.finite_rows(logits).tolist()
        if not all(healthy):
            logits = torch.where(torch.tensor(healthy, device=logits.device).unsqueeze(1), logits, 0.0)
        trees, start = list[Tree](), 0
        for sequence in rows:
            trees.append(Tree.of(sequence, start, healthy))
            start = trees[-1].end
        batch = _sampling_batch(trees, num_token_ids)
        if self._verify_draft is None:
            walks = self._coupled(trees, logits, batch)
        else:
            walks = self._sampled([tree for tree in trees if not tree.chain], logits, batch)
            chains = [tree for tree in trees if tree.chain]
            walks |= _rejection(chains, probabilities(logits, batch), self._verify_draft)
        return self._results([walks[tree.start] for tree in trees], logits)

    def _coupled(self, trees: list[Tree], logits: Tensor, batch: SamplingBatch) -> dict[int, Walk]:
        """Walks by their trees' first rows."""
        sampled = self._sampler(logits, batch)
        drafted = [token for tree in trees for token in tree.drafted]
        parents = [parent for tree in trees for parent in tree.parents]
        starts = [0, *(tree.end for tree in trees)]
        columns = (column(values, device=sampled.device) for values in (drafted, parents, starts))
        tokens, nodes = (found.tolist() for found in self._ops.verify_coupled(sampled, *columns))
        walks = {}
        for tree in trees:
            walked = [node for node in nodes[tree.start : tree.end] if node >= 0]
            walks[tree.start] = tree.walk(tokens[tree.start : tree.start + len(walked)], walked)
        return walks

    def _sampled(self, trees: list[Tree], logits: Tensor, batch: SamplingBatch) -> dict[int, Walk]:
        """One token for each sequence without a draft, sampled as in a step without drafts."""
        if not trees:
            return {}
        rows = [tree.start for tree in trees]
        sampled = self._sampler(logits[rows], batch.rows(rows))
        return {
            tree.start: tree.walk([token], [0]) for tree, token in zip(trees, sampled.tolist(), strict=True)
        }

    def _results(self, walks: list[Walk], logits: Tensor) -> list[VerifyResult]:
        """Add the log-probabilities of the tokens whose sequences want them."""
        wanted = [walk for walk in walks if walk.tokens and walk.tree.rows.top is not None]
        if wanted:
            rows = [row for walk in wanted for row in walk.rows]
            tokens = torch.tensor([token for walk in wanted for token in walk.tokens], device=logits.device)
            tops = [walk.tree.rows.top or 0 for walk in wanted for _ in walk.tokens]
            found = iter(self._ops.token_logprobs(logits[rows], tokens, tops))
            for walk in wanted:
                walk.logprobs = list(islice(found, len(walk.tokens)))
        return [VerifyResult(walk.tokens, walk.branch, walk.logprobs) for walk in walks]


@dataclass
class Walk:
    """The tokens a sequence gets, each drawn from the logits in its entry of `rows`."""

    tree: Tree
    tokens: list[int]
    rows: list[int]
    branch: int = 0
    logprobs: list[dict[int, float]] | None = None


@dataclass(frozen=True)
class Tree:
    """A sequence's draft as nodes, one for each row from `start` on; arguments of `verify_coupled`."""

    rows: DraftRows
    start: int
    branches: list[list[int]]
    drafted: list[int]
    parents: list[int]
    is_healthy: bool  # the newest token's row

    @classmethod
    def of(cls, rows: DraftRows, start: int, healthy: Sequence[bool]) -> Tree:
        """Nodes of all branches. A token that several branches begin with is reached in the first of them."""
        branches = rows.branches or [[]]
        drafted, parents, known = list[int](), list[int](), dict[tuple[int, ...], int]()
        for branch in branches:
            parent = NO_TOKEN
            for depth, token in enumerate([NO_TOKEN, *branch]):
                node = len(drafted)
                drafted.append(token if healthy[start + node] else NO_TOKEN)
                parents.append(parent)
                parent = node if len(branches) == 1 else known.setdefault(tuple(branch[:depth]), node)
        return cls(rows, start, branches, drafted, parents, healthy[start])

    @property
    def end(self) -> int:
        """The row behind its last."""
        return self.start + len(self.drafted)

    @property
    def chain(self) -> list[int]:
        """The first branch, up to the first row that cannot be drawn from."""
        tokens = self.drafted[1 : len(self.branches[0]) + 1]
        return tokens[: tokens.index(NO_TOKEN)] if NO_TOKEN in tokens else tokens

    def walk(self, tokens: list[int], nodes: list[int]) -> Walk:
        """The walk that emits `tokens`, drawn behind `nodes`."""
        if not self.is_healthy:
            return Walk(self, [], [])
        ends = accumulate(len(branch) + 1 for branch in self.branches)
        branch = next(i for i, end in enumerate(ends) if nodes[-1] < end)
        return Walk(self, tokens, [self.start + node for node in nodes], branch)


def _sampling_batch(trees: Sequence[Tree], num_token_ids: int) -> SamplingBatch:
    """Every row as it would be drawn without a draft: its own position's noise, its ancestors seen."""
    params, keys, seen = list[Filters](), list[int](), list[list[int]]()
    for tree in trees:
        own = tree.rows
        for branch in tree.branches:
            params += [own.filters] * (len(branch) + 1)
            keys += own.keys[: len(branch) + 1]
            seen += [own.seen + branch[:i] if own.seen else own.seen for i in range(len(branch) + 1)]
    return SamplingBatch(params, keys, seen, num_token_ids)


def _rejection(trees: list[Tree], probs: Tensor, verify_draft: VerifyDraft) -> dict[int, Walk]:
    """Walks by first rows. `probs` [num_rows, vocab_size] is padded to as many rows for each sequence."""
    if not trees:
        return {}
    longest = max(len(tree.chain) for tree in trees)
    draft = torch.full((len(trees), longest), NO_TOKEN)
    target = probs.new_zeros(len(trees), longest + 1, probs.shape[1])
    draws = []
    for i, tree in enumerate(trees):
        length = len(tree.chain)
        draft[i, :length] = torch.tensor(tree.chain, dtype=torch.int64)
        target[i, : length + 1] = probs[tree.start : tree.start + length + 1]
        keys = tree.rows.accept_keys[:longest] + [0] * (longest - len(tree.rows.accept_keys))
        draws.append(uniforms([*keys, tree.rows.replace_key], 1, probs.device).squeeze(1))
    found, accepted = verify_draft(
        draft.to(probs.device), _drawn_from(trees, target[:, :longest]), target, torch.stack(draws)
    )
    return {
        tree.start: tree.walk(tokens[: count + 1], list(range(count + 1)))
        for tree, tokens, count in zip(trees, found.tolist(), accepted.tolist(), strict=True)
    }


def _drawn_from(trees: Sequence[Tree], like: Tensor) -> Tensor | None:
    """The drafts' distributions [num_sequences, longest, vocab_size]; None where they are point masses."""
    given = [(i, tree, tree.rows.probs) for i, tree in enumerate(trees) if tree.rows.probs is not None]
    if not given:
        return None
    result = torch.zeros_like(like)
    for i, tree, probs in given:
        result[i, : len(tree.chain)] = probs[: len(tree.chain)]
    return result
