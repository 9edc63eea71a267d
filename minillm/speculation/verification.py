"""Verification: decide which draft tokens the target accepts, and sample the token after them.

    rows   n  a1 a2 a3 | n  b1 b2        two branches of one sequence; the two rows of n have the same logits
    node   0  1  2  3    4  5  6         parents -1 0 1 2  -1 0 5: the parent of b1 is the first root, node 0

Coupled (default): a token is sampled from every row as without a draft, and `verify_coupled` walks the tree.
Rejection: `verify_draft` accepts by probabilities; chains only.
A sequence without a draft is sampled normally: its result must not depend on the others' drafts.

A row whose logits are NaN or infinite is never sampled from. A branch ends before such a row. If it is the
row of the newest token, a draft token whose values overflow may be the cause (0 x inf at a masked position
is NaN). Then the sequence gets no token in this step and is decoded without drafts from then on.
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
from minillm.ops.verification import verify_coupled
from minillm.worker.step import DraftRows, VerifyResult
from minillm.worker.worker import Sampler

NO_TOKEN = -1  # as a draft token: equals no sampled token; as a parent: no node


class VerifyDraft(Protocol):
    """The rule of rejection sampling, with the arguments and the result of `Ops.verify_draft`."""

    def __call__(
        self, draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]: ...


class Verifier:
    """Verifies drafts. `verify_draft`: the rule of rejection sampling; None means coupled verification."""

    def __init__(
        self,
        ops: Ops,
        sampler: Sampler,
        verify_draft: VerifyDraft | None = None,
    ) -> None:
        self._ops, self._sampler, self._verify_draft = ops, sampler, verify_draft

    def verify(self, rows: Sequence[DraftRows], logits: Tensor, num_token_ids: int) -> list[VerifyResult]:
        """Return one result per sequence.

        `logits` [num_rows, vocab_size]: the rows of all branches, one branch after the other.
        """
        healthy = self._ops.finite_rows(logits).tolist()
        if not all(healthy):
            logits = torch.where(torch.tensor(healthy, device=logits.device).unsqueeze(1), logits, 0.0)
        batch = _sampling_batch(rows, num_token_ids)
        if self._verify_draft is None:
            return self.decide(rows, self._sampler(logits, batch), healthy, logits)
        trees = _trees(rows, healthy)
        walks = self._sampled([tree for tree in trees if not tree.chain], logits, batch)
        chains = [tree for tree in trees if tree.chain]
        walks |= _rejection(chains, probabilities(logits, batch), self._verify_draft)
        return self._results([walks[tree.start] for tree in trees], logits)

    def draws(self, rows: Sequence[DraftRows], num_token_ids: int) -> SamplingBatch | None:
        """The draws of coupled verification, one per row. None: rejection, which needs the logits first."""
        return _sampling_batch(rows, num_token_ids) if self._verify_draft is None else None

    def decide(
        self, rows: Sequence[DraftRows], sampled: Tensor, healthy: Sequence[bool], logits: Tensor
    ) -> list[VerifyResult]:
        """Coupled verification of rows whose tokens are already sampled."""
        trees = _trees(rows, healthy)
        walks = self._coupled(trees, sampled, logits.device)
        return self._results([walks[tree.start] for tree in trees], logits)

    def _coupled(self, trees: list[Tree], sampled: Tensor, device: torch.device) -> dict[int, Walk]:
        """Walk all trees; return each walk under the first row of its tree.

        Tokens that are on the CPU already are compared there: the walk is shorter than a launch.
        """
        drafted = [token for tree in trees for token in tree.drafted]
        parents = [parent for tree in trees for parent in tree.parents]
        starts = [0, *(tree.end for tree in trees)]
        columns = (column(values, device=sampled.device) for values in (drafted, parents, starts))
        walk_trees = self._ops.verify_coupled if sampled.device == device else verify_coupled
        tokens, nodes = (found.tolist() for found in walk_trees(sampled, *columns))
        walks = {}
        for tree in trees:
            walked = [node for node in nodes[tree.start : tree.end] if node >= 0]
            walks[tree.start] = tree.walk(tokens[tree.start : tree.start + len(walked)], walked)
        return walks

    def _sampled(self, trees: list[Tree], logits: Tensor, batch: SamplingBatch) -> dict[int, Walk]:
        """Sample one token for each sequence without a draft, as in a step without drafts."""
        if not trees:
            return {}
        rows = [tree.start for tree in trees]
        sampled = self._sampler(logits[rows], batch.rows(rows))
        return {
            tree.start: tree.walk([token], [0]) for tree, token in zip(trees, sampled.tolist(), strict=True)
        }

    def _results(self, walks: list[Walk], logits: Tensor) -> list[VerifyResult]:
        """Make the results, with log-probabilities for the sequences that want them."""
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
    """The tokens a sequence gets. Token i was sampled from row `rows[i]` of the logits."""

    tree: Tree
    tokens: list[int]
    rows: list[int]
    branch: int = 0
    logprobs: list[dict[int, float]] | None = None


@dataclass(frozen=True)
class Tree:
    """The draft of a sequence as a tree, with one node per row from `start` on; see `verify_coupled`."""

    rows: DraftRows
    start: int
    branches: list[list[int]]
    drafted: list[int]
    parents: list[int]
    is_healthy: bool  # whether the newest token's row is finite

    @classmethod
    def of(cls, rows: DraftRows, start: int, healthy: Sequence[bool]) -> Tree:
        """Make the nodes of all branches. Branches that begin alike share the nodes of the first of them."""
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
        """One past its last row."""
        return self.start + len(self.drafted)

    @property
    def chain(self) -> list[int]:
        """The tokens of the first branch, up to the first row that is not finite."""
        tokens = self.drafted[1 : len(self.branches[0]) + 1]
        return tokens[: tokens.index(NO_TOKEN)] if NO_TOKEN in tokens else tokens

    def walk(self, tokens: list[int], nodes: list[int]) -> Walk:
        """Make the walk in which token i was sampled at node `nodes[i]`."""
        if not self.is_healthy:
            return Walk(self, [], [])
        ends = accumulate(len(branch) + 1 for branch in self.branches)
        branch = next(i for i, end in enumerate(ends) if nodes[-1] < end)
        return Walk(self, tokens, [self.start + node for node in nodes], branch)


def _trees(rows: Sequence[DraftRows], healthy: Sequence[bool]) -> list[Tree]:
    """The tree of each sequence; `healthy` says of every row whether its logits are finite."""
    trees, start = list[Tree](), 0
    for sequence in rows:
        trees.append(Tree.of(sequence, start, healthy))
        start = trees[-1].end
    return trees


def _sampling_batch(rows: Sequence[DraftRows], num_token_ids: int) -> SamplingBatch:
    """The sampling parameters of every row, as without a draft: its noise key, the tokens before it."""
    params, keys, seen = list[Filters](), list[int](), list[list[int]]()
    for own in rows:
        for branch in own.branches or [[]]:
            params += [own.filters] * (len(branch) + 1)
            keys += own.keys[: len(branch) + 1]
            seen += [own.seen + branch[:i] if own.seen else own.seen for i in range(len(branch) + 1)]
    return SamplingBatch(params, keys, seen, num_token_ids)


def _rejection(trees: list[Tree], probs: Tensor, verify_draft: VerifyDraft) -> dict[int, Walk]:
    """Verify chains by rejection sampling; return each walk under the first row of its tree.

    `probs` [num_rows, vocab_size]: the target's distributions. They are padded to equal lengths here.
    """
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
    """The distributions of the drafts [num_sequences, longest, vocab_size]; None if all are point masses."""
    given = [(i, tree, tree.rows.probs) for i, tree in enumerate(trees) if tree.rows.probs is not None]
    if not given:
        return None
    result = torch.zeros_like(like)
    for i, tree, probs in given:
        result[i, : len(tree.chain)] = probs[: len(tree.chain)]
    return result
