"""From the target's logits to a verdict on every guess: which tokens stand, and what comes behind them.

    rows   n  a1 a2 a3 | n  b1 b2        two paths of one sequence: two rows of logits for n, alike
    node   0  1  2  3    4  5  6         parents -1 0 1 2  -1 0 5: the second path hangs on the first root

Coupled, the default: every row draws as it would without a draft, and `verify_coupled` walks the tree.
Rejection: `verify_draft` accepts by probabilities; chains only.
Who has no draft in a step draws by the sampler, as in a step in which nobody has one.

A row whose logits are NaN or infinite is never drawn from. In the middle of a path the path ends before
it. If it is the newest token's own, the cause may be a drafted token whose values overflow (0 x inf in a
masked place is NaN): nothing is emitted, and the sequence decodes without drafts from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.engine.request import Request
from minillm.ops.columns import column
from minillm.ops.contract import Ops
from minillm.ops.sampling import ACCEPT, REPLACE, SamplingBatch, probabilities, uniforms
from minillm.speculation.drafts import NO_DRAFT, Draft, Lookahead

NOBODY = -1  # a drafted token that no draw equals


@dataclass
class Guess:
    """One sequence's part in a speculative step.

    Lane 0 is its own table, `own` the blocks of the others. The table `owned` so many blocks before `taken`
    ones, other lanes' included, were added for looking ahead.
    """

    request: Request
    lookahead: Lookahead
    own: list[list[int]]
    owned: int
    taken: int
    draft: Draft = NO_DRAFT


class Outcome(NamedTuple):
    """Tokens drafted on all paths, tokens of the longest, and how many stand."""

    drafted: int
    depth: int
    accepted: int


@dataclass(frozen=True)
class Verdict:
    """What a sequence gets: `tokens`, each drawn from the logits in its entry of `rows`.

    All but the last were drafted in `lane`. Without tokens the newest token's row was NaN or infinite.
    """

    guess: Guess
    tokens: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    lane: int = 0

    @property
    def accepted(self) -> int:
        """Drafted tokens that stand."""
        return max(0, len(self.tokens) - 1)

    def outcome(self, appended: int) -> Outcome:
        """In numbers; what stands behind the end of an answer is no token of it."""
        paths = self.guess.draft.paths
        depth = max(map(len, paths), default=0)
        return Outcome(sum(map(len, paths)), depth, min(self.accepted, appended))


class Judge:
    """Verifies drafts. `verify_draft` None means coupled; otherwise it is the rule of rejection sampling."""

    def __init__(
        self,
        ops: Ops,
        sampler: Callable[[Tensor, SamplingBatch], Tensor],
        num_token_ids: int,
        verify_draft: Callable[..., Any] | None = None,
    ) -> None:
        self._ops, self._sampler, self._num_token_ids = ops, sampler, num_token_ids
        self._verify_draft = verify_draft

    def judge(self, guesses: Sequence[Guess], logits: Tensor) -> list[Verdict]:
        """A verdict for each guess; `logits` [num_rows, vocab_size] has all its paths' rows, end to end."""
        healthy = self._ops.finite_rows(logits).tolist()
        if not all(healthy):
            logits = torch.where(torch.tensor(healthy, device=logits.device).unsqueeze(1), logits, 0.0)
        trees, start = list[Tree](), 0
        for guess in guesses:
            trees.append(Tree.of(guess, start, healthy))
            start = trees[-1].end
        batch = self._sampling_batch(trees)
        if self._verify_draft is None:
            return self._coupled(trees, logits, batch)
        probs = probabilities(logits, batch)
        by_row = dict(self._undrafted([tree for tree in trees if not tree.chain], logits, batch))
        by_row |= self._rejection([tree for tree in trees if tree.chain], probs, self._verify_draft)
        return [by_row[tree.start] for tree in trees]

    def _sampling_batch(self, trees: Sequence[Tree]) -> SamplingBatch:
        """Every row as it would be drawn without a draft: its own position's noise, its ancestors seen."""
        params, keys, seen = list[SamplingParams](), list[int](), list[list[int]]()
        for tree in trees:
            request, paths = tree.guess.request, tree.paths
            own_keys, own_seen = request.noise_keys(max(map(len, paths)) + 1), request.seen_token_ids
            for path in paths:
                params += [request.params] * (len(path) + 1)
                keys += own_keys[: len(path) + 1]
                seen += [own_seen + path[:i] if own_seen else own_seen for i in range(len(path) + 1)]
        return SamplingBatch(params, keys, seen, self._num_token_ids)

    def _coupled(self, trees: list[Tree], logits: Tensor, batch: SamplingBatch) -> list[Verdict]:
        sampled = self._sampler(logits, batch)
        drafted = [token for tree in trees for token in tree.drafted]
        parents = [parent for tree in trees for parent in tree.parents]
        starts = [0, *(tree.end for tree in trees)]
        columns = (column(values, device=sampled.device) for values in (drafted, parents, starts))
        tokens, nodes = (found.tolist() for found in self._ops.verify_coupled(sampled, *columns))
        verdicts = []
        for tree in trees:
            walked = [node for node in nodes[tree.start : tree.end] if node >= 0]
            verdicts.append(tree.verdict(tokens[tree.start : tree.start + len(walked)], walked))
        return verdicts

    def _undrafted(self, trees: list[Tree], logits: Tensor, batch: SamplingBatch) -> dict[int, Verdict]:
        """By row. Drawn as ever, so that what a sequence gets is no question of who else has a draft."""
        if not trees:
            return {}
        rows = [tree.start for tree in trees]
        sampled = self._sampler(logits[rows], batch.rows(rows))
        drawn = zip(trees, sampled.tolist(), strict=True)
        return {tree.start: tree.verdict([token], [0]) for tree, token in drawn}

    def _rejection(
        self, trees: list[Tree], probs: Tensor, verify_draft: Callable[..., Any]
    ) -> dict[int, Verdict]:
        """By row. `probs` [num_rows, vocab_size] is padded here to as many rows for each sequence."""
        if not trees:
            return {}
        longest = max(len(tree.chain) for tree in trees)
        draft = torch.full((len(trees), longest), NOBODY)
        target = probs.new_zeros(len(trees), longest + 1, probs.shape[1])
        draws = []
        for i, tree in enumerate(trees):
            length, request = len(tree.chain), tree.guess.request
            draft[i, :length] = torch.tensor(tree.chain, dtype=torch.int64)
            target[i, : length + 1] = probs[tree.start : tree.start + length + 1]
            keys = request.noise_keys(longest, ACCEPT) + request.noise_keys(1, REPLACE)
            draws.append(uniforms(keys, 1, probs.device).squeeze(1))
        found, accepted = verify_draft(
            draft.to(probs.device), _drawn_from(trees, target[:, :longest]), target, torch.stack(draws)
        )
        judged = zip(trees, found.tolist(), accepted.tolist(), strict=True)
        return {
            tree.start: tree.verdict(tokens[: count + 1], list(range(count + 1)))
            for tree, tokens, count in judged
        }


@dataclass(frozen=True)
class Tree:
    """A guess as nodes, one for each row from `start` on; arguments of `verify_coupled`."""

    guess: Guess
    start: int
    paths: list[list[int]]
    drafted: list[int]
    parents: list[int]
    is_healthy: bool  # the newest token's row

    @classmethod
    def of(cls, guess: Guess, start: int, healthy: Sequence[bool]) -> Tree:
        """Nodes of all paths. A token that several paths begin with is reached in the first of them."""
        paths = guess.draft.paths or [[]]
        drafted, parents, known = list[int](), list[int](), dict[tuple[int, ...], int]()
        for path in paths:
            parent = NOBODY
            for depth, token in enumerate([NOBODY, *path]):
                node = len(drafted)
                drafted.append(token if healthy[start + node] else NOBODY)
                parents.append(parent)
                parent = node if len(paths) == 1 else known.setdefault(tuple(path[:depth]), node)
        return cls(guess, start, paths, drafted, parents, healthy[start])

    @property
    def end(self) -> int:
        """The row behind its last."""
        return self.start + len(self.drafted)

    @property
    def chain(self) -> list[int]:
        """The first path, up to the first row that cannot be drawn from."""
        tokens = self.drafted[1 : len(self.paths[0]) + 1]
        return tokens[: tokens.index(NOBODY)] if NOBODY in tokens else tokens

    def verdict(self, tokens: list[int], nodes: list[int]) -> Verdict:
        """The verdict that emits `tokens`, drawn behind `nodes`."""
        if not self.is_healthy:
            return Verdict(self.guess)
        ends = accumulate(len(path) + 1 for path in self.paths)
        lane = next(i for i, end in enumerate(ends) if nodes[-1] < end)
        return Verdict(self.guess, tokens, [self.start + node for node in nodes], lane)


def _drawn_from(trees: Sequence[Tree], like: Tensor) -> Tensor | None:
    """The drafts' distributions [num_requests, longest, vocab_size]; None where they are point masses."""
    given = [(i, tree) for i, tree in enumerate(trees) if tree.guess.draft.probs is not None]
    if not given:
        return None
    result = torch.zeros_like(like)
    for i, tree in given:
        probs = tree.guess.draft.probs
        result[i, : len(tree.chain)] = probs[: len(tree.chain)]  # type: ignore[index]
    return result
