"""The speculative decode step: guess, verify all guesses in one pass, keep those that stand, roll back.

    plan      leave to look ahead, out of what the scheduler's plan has left over: blocks and token budget
    draft     the drafter guesses up to `depth` tokens for each sequence, in one or several lanes
    verify    one ragged pass of the target over every newest token and every guess:

              sequence a   newest a1 a2 a3      4 rows        the same attention, the same arithmetic a row
              sequence b   newest               1 row         as in prefill and decode (contract C2)
              sequence c   newest c1 c2         3 rows

    settle    the walk's tokens are appended, the blocks behind them given back

    table   [ full ][ full ][ t t t n ][ 1 2 3 - ]        n newest, 1 accepted, 2 and 3 rejected:
                                       [ 1 x x - ]        x are never read (kv_len ends before them), never
                                                          published, and overwritten by what comes next

Look-ahead takes nothing from anybody: where blocks or budget are short it shrinks, to nothing if need be.
So with and without speculation the same requests are admitted, refused, capped (contract C7).

Paper: Leviathan et al. (arXiv 2211.17192). Left out: drafting the next step while this one is verified.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakSet

from torch import Tensor

from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.request import Request
from minillm.engine.scheduler import StepPlan
from minillm.engine.verdicts import Guess, Judge, Verdict
from minillm.errors import MinillmError
from minillm.memory.block_table import blocks_for
from minillm.model.runner import ModelRunner, SequenceRows
from minillm.speculation.controller import Controller
from minillm.speculation.drafts import Draft, Drafter, Lookahead


@dataclass
class Times:
    """Seconds of one speculative step: in the drafter; in the target and the verification."""

    draft: float
    verify: float


class Speculation:
    """Adds look-ahead to plans and carries it out. `max_tokens` is the most rows of a step."""

    def __init__(
        self,
        drafter: Drafter,
        controller: Controller,
        judge: Judge,
        runner: ModelRunner,
        memory: KVCacheManager,
        max_paths: int,
        max_tokens: int,
    ) -> None:
        self._drafter, self._controller, self._judge = drafter, controller, judge
        self._runner, self._memory = runner, memory
        self._max_paths, self._max_tokens = max_paths, max_tokens
        self._vocab_size = runner.decoder.config.vocab_size
        self._undraftable: WeakSet[Request] = WeakSet()  # an overflow in a draft's row has reached theirs

    # Planning -------------------------------------------------------------------------------

    def plan(self, plan: StepPlan) -> None:
        """Give the plan's decoding sequences leave to look ahead, as far as there is room and it pays."""
        if not plan.decode:
            return
        rows = self._max_tokens - len(plan.decode) - sum(chunk.end - chunk.start for chunk in plan.prefill)
        blocks = self._memory.available - plan.num_blocks
        for request, wanted in zip(plan.decode, self._controller.choose(plan.decode), strict=True):
            # The step gives one token more than it drafts.
            depth = min(wanted, request.max_tokens - len(request.output_token_ids) - 1, rows)
            if depth <= 0 or request in self._undraftable:
                continue
            owned = len(request.block_table.block_ids) + plan.blocks.get(request, 0)
            depth, paths, taken = self._fit(request.num_tokens, owned, depth, rows, blocks)
            if depth:
                plan.lookahead[request] = depth, paths
                plan.num_blocks += taken
                rows -= paths * (1 + depth) - 1
                blocks -= taken

    def _fit(self, num_tokens: int, owned: int, depth: int, rows: int, blocks: int) -> tuple[int, int, int]:
        """The longest draft, then the most paths, that fit: (depth, paths, blocks they take)."""
        size = self._memory.pool.block_size
        while depth and (taken := blocks_for(num_tokens + depth, size) - owned) > blocks:
            depth -= 1
        if depth == 0:
            return 0, 0, 0
        path_blocks = blocks_for(num_tokens + depth, size) - (num_tokens - 1) // size
        more = min(self._max_paths - 1, (rows - depth) // (depth + 1), (blocks - taken) // path_blocks)
        return depth, 1 + more, taken + more * path_blocks

    # The step -------------------------------------------------------------------------------

    def run(self, plan: StepPlan) -> tuple[list[Verdict], Tensor, Times] | None:
        """Draft and verify.

        Returns:
            A verdict on each decoding sequence, which `settle` must be given once its tokens are appended;
            the logits [num_rows, vocab_size] that the verdicts' rows are of; and how long it took. None,
            and nothing is different, where nobody had a guess: decode without.
        """
        guesses = list[Guess]()
        try:
            for request in plan.decode:
                guesses.append(self._reserve(request, *plan.lookahead.get(request, (0, 1))))
            seconds = self._draft(guesses)
            if any(guess.draft.paths for guess in guesses):
                return self._verify(guesses, seconds)
            for guess in guesses:
                self._choose_lane(guess, 0)
                guess.request.block_table.truncate(guess.request.num_tokens)
            return None
        except BaseException:
            for guess in guesses:  # their own tables are the engine's to clear
                self._free(guess.own)
            raise

    def _draft(self, guesses: list[Guess]) -> float:
        """Ask the drafter; returns the seconds it took."""
        asked = [guess for guess in guesses if guess.lookahead.depth]
        started = time.perf_counter()
        drafts = self._drafter.propose([guess.lookahead for guess in asked])
        seconds = time.perf_counter() - started
        for guess, draft in zip(asked, drafts, strict=True):
            guess.draft = self._checked(guess.lookahead, draft)
        return seconds

    def _verify(self, guesses: list[Guess], draft_seconds: float) -> tuple[list[Verdict], Tensor, Times]:
        self._part_lanes(guesses)
        started = time.perf_counter()
        logits = self._runner.all_logits([rows for guess in guesses for rows in _rows(guess)])
        verdicts = self._judge.judge(guesses, logits)
        times = Times(draft_seconds, time.perf_counter() - started)
        self._controller.saw_target(len(logits), times.verify)
        self._learn(verdicts, times.draft)
        for verdict in verdicts:
            self._choose_lane(verdict.guess, verdict.lane)
        return verdicts, logits, times

    def saw_plain_step(self, rows: int, seconds: float) -> None:
        """A decode pass without drafts, its draws included, took so long."""
        self._controller.saw_target(rows, seconds)

    def settle(self, verdict: Verdict, computed: int) -> tuple[int, int]:
        """Give back the blocks behind what stands of a sequence's look-ahead.

        Args:
            computed: rows that stand, the newest token's and those of the drafted ones that were appended.

        Returns:
            Blocks that were taken for looking ahead, and how many of them were given back.
        """
        guess, request = verdict.guess, verdict.guess.request
        request.num_computed_tokens += computed
        request.block_table.truncate(request.num_computed_tokens)
        kept = len(request.block_table.block_ids) - guess.owned
        return guess.taken, guess.taken - kept

    def _reserve(self, request: Request, depth: int, paths: int) -> Guess:
        """Take the blocks that were planned: the sequence's own, and those of other lanes."""
        table, start, end = request.block_table, request.num_computed_tokens, request.num_tokens + depth
        table.grow(request.num_tokens)
        owned = len(table.block_ids)
        table.grow(end)
        own = [table.branch(start, end) for _ in range(paths - 1)]
        shared = table.block_ids[: start // self._memory.pool.block_size]
        lookahead = Lookahead(request, depth, [table.block_ids, *(shared + blocks for blocks in own)])
        return Guess(request, lookahead, own, owned, len(table.block_ids) - owned + sum(map(len, own)))

    def _choose_lane(self, guess: Guess, lane: int) -> None:
        """The sequence goes on in this lane; the others' blocks are free again."""
        losers = list(guess.own)
        if lane:
            table, start = guess.request.block_table, guess.request.num_computed_tokens
            losers[lane - 1] = table.adopt(start, guess.own[lane - 1])
        guess.own = []
        self._free(losers)

    def _free(self, lanes: list[list[int]]) -> None:
        for blocks in lanes:
            self._memory.pool.free(blocks)

    def _checked(self, lookahead: Lookahead, draft: Draft) -> Draft:
        """The draft, which may come from anybody's drafter, if it keeps to what was asked."""
        paths, depth = draft.paths, lookahead.depth
        if len(paths) > len(lookahead.lanes) or any(len(path) > depth for path in paths):
            raise MinillmError(
                f"the drafter gave {len(paths)} paths of up to {max(map(len, paths))} tokens, asked for "
                f"{len(lookahead.lanes)} of {depth}",
                "Lookahead says how much may be drafted",
            )
        for token_id in (token_id for path in paths for token_id in path):
            if not 0 <= token_id < self._vocab_size:
                raise MinillmError(
                    f"the drafter gave token id {token_id}, outside the vocabulary of {self._vocab_size}",
                    "the draft must share the target's tokenizer",
                )
        return draft

    def _part_lanes(self, guesses: Sequence[Guess]) -> None:
        """Give every other path its own copy of the block that the sequence fills at present."""
        source, destination, size = list[int](), list[int](), self._memory.pool.block_size
        for guess in guesses:
            block, filled = divmod(guess.request.num_computed_tokens, size)
            if filled:
                used = guess.lookahead.lanes[1 : len(guess.draft.paths)]
                source += [guess.lookahead.lanes[0][block]] * len(used)
                destination += [lane[block] for lane in used]
        if source:
            self._runner.copy_blocks(source, destination)

    def _learn(self, verdicts: Sequence[Verdict], seconds: float) -> None:
        """Tell drafter and controller what became of the drafts."""
        levels = paths = 0
        is_usual = True  # who is drafted for the first time has a whole prompt to be caught up with
        for verdict in verdicts:
            guess, draft = verdict.guess, verdict.guess.draft
            if not draft.paths:
                continue
            self._drafter.settle(guess.lookahead, draft, verdict.lane, verdict.accepted)
            if not verdict.tokens:
                self._undraftable.add(guess.request)
            drafted = len(draft.paths[verdict.lane])
            self._controller.saw_verdict(guess.request, drafted, verdict.accepted)
            is_usual &= guess.request.num_drafted > 0
            levels, paths = max(levels, drafted), paths + len(draft.paths)
        if levels and is_usual:
            self._controller.saw_draft(paths, levels, seconds)


def _rows(guess: Guess) -> list[SequenceRows]:
    """The rows to verify: the newest token and a path, for every path; the newest alone without a draft."""
    request, start = guess.request, guess.request.num_computed_tokens
    newest = request.output_token_ids[-1]
    lanes = zip(guess.draft.paths or [[]], guess.lookahead.lanes, strict=False)
    return [SequenceRows([newest, *path], start, lane) for path, lane in lanes]
